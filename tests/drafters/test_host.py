"""Drafts in plain Python, and sequences whose next round needs the host: the same bits, and nobody else waits or fails."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specdec import assemble
from specdec.config import EngineConfig
from specdec.draft.tree import DraftTree
from specdec.drafters.host import HostDrafter, Propose
from specdec.drafters.registry import on_host
from specdec.engine.sequence import HostWork
from specdec.errors import ConfigError
from specdec.llm import LLM, Completion
from specdec.request import FinishReason, Request, RequestOutput, SamplingParams, SpeculationParams
from specdec.round.plan import RoundPlan

PROMPTS = {"long": tuple((i * 7) % 250 + 3 for i in range(60)), "one": (5,), "short": tuple(range(10, 50))}
DEPTHS = pytest.mark.parametrize("depth", [0, 1, 2])
NUM_TOKENS = 20


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Callable[..., Path]) -> assemble.LoadedModel:
    return assemble.load(EngineConfig(model=str(tiny_checkpoint("llama")), dtype="float32", device="cpu"))


def llm(loaded: assemble.LoadedModel, propose: Propose | None = None, **fields: Any) -> LLM:
    names = ("ngram",) if propose is None else ("mine", "ngram")
    defaults = {"page_size": 16, "cache_gb": 0.01, "drafters": names, "adaptive": False, "max_tree_nodes": 8}
    config = EngineConfig(model=loaded.name, dtype="float32", device="cpu", **(defaults | fields))
    return LLM(assemble.build(config, loaded=loaded, drafters={} if propose is None else {"mine": on_host(propose)}))


def request(name: str, **fields: Any) -> Request:
    sampling = SamplingParams(temperature=0.8, seed=3, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=2)
    return Request(request_id=name, prompt_ids=PROMPTS[name.split()[0]], sampling=sampling, **fields)


REQUESTS = [request(name) for name in PROMPTS]


def content(done: Completion) -> tuple[object, ...]:
    return done.token_ids, done.text, done.logprobs, done.finish_reason


@pytest.fixture(scope="module")
def expected(loaded: assemble.LoadedModel) -> dict[str, Completion]:
    """Each request alone and undrafted."""
    alone = llm(loaded, drafters=(), max_batch=1)
    return {request.request_id: alone.generate([request])[0] for request in REQUESTS}


class Clairvoyant:
    """Proposes what will follow, so that drafts are accepted, and remembers what it was asked with."""

    def __init__(self, expected: dict[str, Completion], as_tree: bool = False) -> None:
        self.asked: list[tuple[int, ...]] = []
        self._texts = [(*PROMPTS[name], *done.token_ids) for name, done in expected.items()]
        self._as_tree = as_tree

    def __call__(self, tokens: Sequence[int]) -> Sequence[int] | DraftTree:
        self.asked.append(tuple(tokens))
        length = len(tokens)
        (text,) = [text for text in self._texts if text[:length] == tuple(tokens)]
        follow = text[length : length + 3]
        if not self._as_tree or len(follow) < 2:
            return follow
        # a wrong sibling before each right token
        drafts = [token for right in follow for token in ((right + 1) % 250, right)]
        parents = [0, *(max(2 * (index // 2), 0) for index in range(len(drafts)))]
        return DraftTree(np.array([tokens[-1], *drafts]), np.array(parents))


def members(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Who brings a tree to each round, as it is enqueued."""
    rounds: list[set[str]] = []
    enqueue = llm.engine._round.enqueue

    def note(plan: RoundPlan) -> None:
        of_slot = {sequence.slot: sequence.request_id for sequence in llm.engine._scheduler.running}
        rounds.append({of_slot[slot] for slot in plan.slots[plan.nodes > 0].tolist()})
        enqueue(plan)

    monkeypatch.setattr(llm.engine._round, "enqueue", note)
    return rounds


@DEPTHS
@pytest.mark.parametrize("as_tree", [False, True], ids=["chains", "trees"])
def test_the_bits_are_the_same(
    loaded: assemble.LoadedModel, expected: dict[str, Completion], depth: int, as_tree: bool
) -> None:
    mine = Clairvoyant(expected, as_tree)
    engine = llm(loaded, mine, depth=depth)
    for done in engine.generate(REQUESTS):
        assert content(done) == content(expected[done.request_id])
        assert done.stats.accepted_by_drafter["mine"] >= NUM_TOKENS / 2, "drafts made on the host are verified"
    engine.engine.check()


@DEPTHS
def test_it_is_asked_with_what_was_emitted(loaded: assemble.LoadedModel, expected: dict[str, Completion], depth: int) -> None:
    mine = Clairvoyant(expected)
    llm(loaded, mine, depth=depth).generate([request("long")])
    lengths = [len(tokens) for tokens in mine.asked]
    assert lengths[0] == len(PROMPTS["long"])
    assert lengths == sorted(set(lengths)), "never twice with the same tokens, never with less"


@pytest.mark.parametrize("depth", [1, 2])
def test_it_sits_out_and_nobody_else_does(loaded: assemble.LoadedModel, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = llm(loaded, lambda tokens: (), depth=depth, max_tree_nodes=1)
    rounds = members(engine, monkeypatch)
    others = [
        request("one", speculation=SpeculationParams(drafter="ngram")),
        request("short", speculation=SpeculationParams(enabled=False)),
    ]
    engine.generate([request("long"), *others])
    both = [held for held in rounds if "one" in held or "short" in held]
    assert len(both) == NUM_TOKENS
    assert all({"one", "short"} <= held for held in both), "a token in every round"
    turns = [number for number, held in enumerate(rounds[: len(both)]) if "long" in held]
    assert len(turns) > 3
    assert {after - before for before, after in itertools.pairwise(turns)} == {depth + 1}


def test_at_depth_0_nobody_sits_out(loaded: assemble.LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = llm(loaded, lambda tokens: (), depth=0, max_tree_nodes=1)
    rounds = members(engine, monkeypatch)
    engine.generate([request("one"), request("short")])
    assert rounds == [{"one", "short"}] * NUM_TOKENS


def test_what_it_raises_fails_its_own_request(loaded: assemble.LoadedModel, expected: dict[str, Completion]) -> None:
    def broken(tokens: Sequence[int]) -> Sequence[int]:
        if len(tokens) > len(PROMPTS["long"]):
            raise KeyError("no idea")
        return ()

    engine = llm(loaded, broken, depth=1)
    outputs: dict[str, list[RequestOutput]] = {"long": [], "one": []}
    engine.engine.submit(request("long"), outputs["long"].append)
    engine.engine.submit(request("one", speculation=SpeculationParams(drafter="ngram")), outputs["one"].append)
    while engine.engine.step():
        pass
    assert outputs["long"][-1].finish_reason is FinishReason.ERROR
    assert "no idea" in (outputs["long"][-1].error or "")
    assert [token for output in outputs["one"] for token in output.token_ids] == expected["one"].token_ids
    engine.engine.check()
    assert engine.engine.status().pages_used == 0


@pytest.mark.parametrize(
    ("proposal", "message"),
    [
        ((5, 999), "the drafter mine drafts token 999, but ids lie below"),
        ((-1,), "drafts token -1"),
        (DraftTree(np.array([0, 1, 2]), np.array([0, 2, 0])), "a parent that is not an earlier node"),
    ],
    ids=["beyond the vocabulary", "negative", "a node below a later one"],
)
def test_what_no_target_can_verify_is_named(proposal: Sequence[int] | DraftTree, message: str) -> None:
    drafter = HostDrafter(
        "mine", lambda tokens: proposal, num_slots=1, max_drafts=4, vocab_size=100, device=torch.device("cpu")
    )
    with pytest.raises(ValueError, match=message):
        drafter.prepare(0, [1, 2, 3])


def test_what_has_no_room_is_lost(loaded: assemble.LoadedModel, expected: dict[str, Completion]) -> None:
    follow = expected["one"].token_ids
    engine = llm(loaded, lambda tokens: (*follow[len(tokens) - 1 :], *[7] * 100), max_tree_nodes=4)
    (done,) = engine.generate([request("one")])
    assert content(done) == content(expected["one"])
    assert done.stats.accepted_histogram[3] > 0
    assert len(done.stats.accepted_histogram) == 4


def test_siblings_that_are_the_same_are_one(loaded: assemble.LoadedModel, expected: dict[str, Completion]) -> None:
    follow = expected["one"].token_ids

    def twins(tokens: Sequence[int]) -> DraftTree:
        right = [*follow[len(tokens) - 1 :], 7, 7][:2]
        return DraftTree(np.array([tokens[-1], right[0], right[0], right[1], right[1]]), np.array([0, 0, 0, 1, 2]))

    (done,) = llm(loaded, twins).generate([request("one")])
    assert content(done) == content(expected["one"])


class Recorder:
    """Host work that is no drafter, as a grammar's would be."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def concerns(self, request: Request) -> bool:
        return request.request_id == "short"

    def prepare(self, slot: int, tokens: Sequence[int]) -> None:
        self.lengths.append(len(tokens))


def test_any_host_work_holds_its_sequence_back(
    loaded: assemble.LoadedModel, expected: dict[str, Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Recorder()
    assert isinstance(work, HostWork)
    engine = llm(loaded, depth=1, max_tree_nodes=1)
    monkeypatch.setattr(engine.engine, "_host_work", [work])
    for done in engine.generate(REQUESTS):
        assert content(done) == content(expected[done.request_id])
    assert work.lengths == [len(PROMPTS["short"]) + count for count in range(NUM_TOKENS)]


def test_a_name_that_is_taken_is_refused(loaded: assemble.LoadedModel) -> None:
    with pytest.raises(ConfigError, match="'ngram' already"):
        assemble.build(EngineConfig(model=loaded.name), loaded=loaded, drafters={"ngram": on_host(lambda tokens: ())})


def test_a_name_that_nobody_serves_is_refused_with_the_caller_s_own_ones(loaded: assemble.LoadedModel) -> None:
    config = EngineConfig(model=loaded.name, drafters=("yours",))
    with pytest.raises(ConfigError, match=r"'yours'; there are .*mine"):
        assemble.build(config, loaded=loaded, drafters={"mine": on_host(lambda tokens: ())})
