"""Lookahead decoding: the pool against plain Python, the window against the target alone, the engine's bits with both."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from specdec import assemble
from specdec.config import EngineConfig
from specdec.draft.protocol import Drafter, ObserveView, Starter
from specdec.drafters.lookahead import LookaheadDrafter
from specdec.drafters.lookahead.drafter import GUESSES, NGRAM, WINDOW
from specdec.drafters.lookahead.kinds import lookahead_kinds, of_ngrams, of_window
from specdec.drafters.lookahead.pool import NUM_BUCKETS, NgramPool
from specdec.drafters.registry import DrafterResources
from specdec.kernels.tree_rows import Texts, TreeRows
from specdec.kernels.tree_walk import Accepted
from specdec.llm import LLM, Completion
from specdec.request import Request, SamplingParams, SpeculationParams
from tests.drafters.conftest import CPU, Gram, paths_of, texts_of, view_of


class PlainPool:
    """What `NgramPool` promises of one text: lists by bucket, newest first."""

    def __init__(self, guesses: int, size: int) -> None:
        self._guesses, self._size = guesses, size
        self._buckets: dict[int, list[Gram]] = {}

    def add(self, grams: Sequence[Gram]) -> None:
        """As many that are new as a bucket holds, of those that come at once."""
        new: dict[int, list[Gram]] = {}
        for gram in grams:
            bucket, come = gram[0] % NUM_BUCKETS, new.setdefault(gram[0] % NUM_BUCKETS, [])
            if gram not in self._buckets.get(bucket, []) and gram not in come:
                come.append(gram)
        for bucket, come in new.items():
            self._buckets[bucket] = [*come[: self._guesses][::-1], *self._buckets.get(bucket, [])][: self._guesses]

    def restart(self, tokens: Sequence[int]) -> None:
        self._buckets = {}
        last = {tuple(tokens[i : i + self._size]): i for i in range(len(tokens) - self._size + 1)}
        for gram in sorted(last, key=lambda gram: last[gram]):
            self.add([gram])

    def find(self, token: int) -> list[Gram]:
        """With holes where a bucket's n-gram begins with another token."""
        found = [gram if gram[0] == token else (-1,) * self._size for gram in self._buckets.get(token % NUM_BUCKETS, [])]
        return found + [(-1,) * self._size] * (self._guesses - len(found))


@pytest.mark.parametrize(("guesses", "size"), [(1, 2), (3, 3), (5, 4)])
def test_the_pool_holds_what_plain_lists_hold(guesses: int, size: int) -> None:
    random = np.random.default_rng(guesses)
    pool, plain = NgramPool(3, guesses, size, CPU), [PlainPool(guesses, size) for _ in range(3)]
    # few tokens, some of which share a bucket, so that everything happens
    vocabulary = np.array([1, 2, 3, 1 + NUM_BUCKETS, 2 + NUM_BUCKETS])
    for turn in range(40):
        if turn % 10 == 5:
            text, tokens = int(random.integers(3)), random.choice(vocabulary, int(random.integers(1, 40))).tolist()
            pool.restart(text, tokens)
            plain[text].restart(tokens)
        texts, grams = random.integers(0, 3, 9), random.choice(vocabulary, (9, size))
        wanted = random.random(9) < 0.8
        pool.add(torch.tensor(texts), torch.tensor(grams), torch.tensor(wanted))
        for text in range(3):
            plain[text].add([tuple(gram) for gram in grams[(texts == text) & wanted].tolist()])
            for token in vocabulary.tolist():
                found = pool.find(torch.tensor([text]), torch.tensor([token]))[0]
                assert [tuple(gram) for gram in found.tolist()] == plain[text].find(token)


def test_kinds_tell_who_proposes_a_token() -> None:
    random = np.random.default_rng(1)
    tokens = random.integers(0, 3, (50, 5, 3))
    tokens[random.random((50, 5)) < 0.2] = -1
    kinds = of_ngrams(torch.tensor(tokens))
    assert int(kinds.max()) < of_window(1, 2)[0], "those of the window come behind"
    assert [len(lookahead_kinds().priors_X)] == [kind + 1 for kind in of_window(1, 2)[1:]]
    met = set()
    for member, grams in enumerate(tokens.tolist()):
        for guess, gram in enumerate(grams):
            for depth in range(3 if gram[0] >= 0 else 0):
                above = [other for other in grams if other[0] >= 0 and other[:depth] == gram[:depth]]
                proposers = [other for other in above if other[depth] == gram[depth]]
                newest = above[0][depth] == gram[depth]
                counts = min(len(proposers), 3) - 1, min(len(above) - len(proposers), 2)
                met.add((depth, newest, *counts))
                assert int(kinds[member, guess, depth]) == ((depth * 2 + (not newest)) * 3 + counts[0]) * 3 + counts[1]
    assert len(met) > 30


def test_drafts_are_the_pool_s_n_grams_and_the_window() -> None:
    drafter = LookaheadDrafter(2, CPU, window=3, ngram=3, guesses=2)
    text = [1, 7, 8, 1, 7, 9, 1]
    for slot in range(2):
        drafter.enter(slot, Starter(text, len(text), SamplingParams(), ()))
    window = drafter._window_SWK[0].tolist()
    assert {token for column in window for token in column} <= set(text)
    (own, other) = paths_of(drafter.draft(view_of(texts_of([text, [*text[:-1], 5], [0]]), [0, 1])).candidates)
    spine = [column[0] for column in window]
    in_window = [path for w in range(3) for path in ((*spine[: w + 1],), (*spine[: w + 1], window[w][1]))]
    assert own == [(7,), (7, 9), (7,), (7, 8), *in_window], "newest first"
    assert len(other) == len(in_window), "nothing begins with 5"


def test_void_rounds_and_members_without_a_tree_leave_everything_as_it_was() -> None:
    drafter = LookaheadDrafter(3, CPU, window=2, ngram=3, guesses=2)
    text = [4, 5, 6, 7, 8]
    for slot in range(3):
        drafter.enter(slot, Starter(text, len(text), SamplingParams(), ()))
    before = drafter._window_SWK.clone()
    texts, ones = texts_of([text] * 3 + [[0]]), torch.ones(3, dtype=torch.int64)
    roots = torch.arange(3)
    trees = TreeRows(
        tokens_T=8 * ones,
        positions_T=4 * ones,
        trees_T=roots,
        texts_T=roots,
        entries_T=ones,
        parents_T=roots,
        depths_T=0 * ones,
        paths_T=ones,
        ancestors_TD=roots[:, None],
        ancestor_entries_TD=roots[:, None],
        bases_M=4 * ones,
        starts_M=4 * ones,
        page_table_MP=ones[:, None],
    )
    accepted = Accepted(0 * ones, roots[:, None], 9 * ones[:, None], torch.tensor([True, False, True]), 9 * ones)
    view = view_of(texts, [0, 1, 2], [True, True, False])
    drafter.observe(ObserveView(view=view, rows=None, trees=trees, hidden={}, accepted=accepted))  # type: ignore[arg-type]
    assert not torch.equal(drafter._window_SWK[0], before[0])
    assert torch.equal(drafter._window_SWK[1:], before[1:])
    found = drafter._pool.find(torch.tensor([0, 1]), torch.tensor([7, 7]))
    assert found[0, 0].tolist() == [7, 8, 9], "what the target said"
    assert found[1].tolist() == [[-1] * 3] * 2, "of a void round nothing is believed"


def on_meta(drafter: LookaheadDrafter) -> LookaheadDrafter:
    """Its tensors without values."""
    for owner in (drafter, drafter._pool):
        for name, value in vars(owner).items():
            if isinstance(value, Tensor):
                setattr(owner, name, value.to("meta"))
    return drafter


def test_no_value_is_read_back_and_no_shape_depends_on_one() -> None:
    def whole(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.int64, device="meta")

    drafter = on_meta(LookaheadDrafter(2, CPU))
    texts = Texts(whole(3, 64).int(), whole(3), whole(3, 1))
    view = view_of(texts, [0, 1])
    candidates = drafter.draft(view).candidates
    for values in (candidates.tokens_MC, candidates.parents_MC, candidates.kinds_MC):
        assert values.shape == (2, (GUESSES + WINDOW) * (NGRAM - 1))
    shapes = {"ancestors_TD": (5, 4), "ancestor_entries_TD": (5, 4), "bases_M": (2,), "starts_M": (2,), "page_table_MP": (2, 1)}
    trees = TreeRows(**{field.name: whole(*shapes.get(field.name, (5,))) for field in dataclasses.fields(TreeRows)})
    accepted = Accepted(whole(2), whole(2, 4), whole(2, 4), whole(2).bool(), whole(5))
    drafter.observe(ObserveView(view=view, rows=None, trees=trees, hidden={}, accepted=accepted))  # type: ignore[arg-type]
    assert drafter._window_SWK.shape == LookaheadDrafter(2, CPU)._window_SWK.shape


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Callable[..., Path]) -> assemble.LoadedModel:
    return assemble.load(EngineConfig(model=str(tiny_checkpoint("llama")), dtype="float32", device="cpu"))


def llm(loaded: assemble.LoadedModel, make: Callable[[DrafterResources], Drafter] | None = None, **fields: Any) -> LLM:
    defaults: dict[str, Any] = {
        "page_size": 16,
        "cache_gb": 0.01,
        "drafters": ("lookahead",) if make is None else ("mine",),
        "adaptive": False,
    }
    config = EngineConfig(model=loaded.name, dtype="float32", device="cpu", **(defaults | fields))
    return LLM(
        assemble.build(config, loaded=loaded, drafters={"mine": lambda names, resources: make(resources)} if make else {})
    )


PROMPT = tuple((i * 7) % 250 + 3 for i in range(30))


class Watched(LookaheadDrafter):
    """Notes the text, the window before and after, and how many drafts were accepted, of slot 0's rounds."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(1, device, window=3, ngram=3, guesses=8)
        self.seen: list[tuple[Gram, list[list[int]], list[list[int]], int]] = []

    def observe(self, view: ObserveView) -> None:
        before = self._window_SWK[0].tolist()
        super().observe(view)
        if view.accepted is not None:
            text = view.view.texts.tokens_SL[0, : int(view.view.texts.lengths_S[0])].tolist()
            self.seen.append((tuple(text), before, self._window_SWK[0].tolist(), int(view.accepted.num_M[0])))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_each_column_goes_on_with_the_target_s_own_token(loaded: assemble.LoadedModel, temperature: float) -> None:
    made: list[Watched] = []

    def make(resources: DrafterResources) -> Drafter:
        made.append(Watched(resources.device))
        return made[-1]

    sampling = SamplingParams(temperature=temperature, seed=5, max_tokens=60, ignore_eos=True)
    llm(loaded, make, max_batch=1).generate([Request(request_id="1", prompt_ids=PROMPT, sampling=sampling)])
    alone = llm(loaded, drafters=(), max_batch=1)

    def own(tokens: Gram) -> int:
        request = Request(
            request_id="own",
            prompt_ids=tokens,
            sampling=SamplingParams(temperature=temperature, seed=5, max_tokens=1, ignore_eos=True),
        )
        return alone.generate([request])[0].token_ids[0]

    checked = 0
    for text, before, after, num_accepted in made[0].seen[1:12]:  # later, trees are too small for the whole window
        spine = [column[0] for column in before]
        for w in range(num_accepted, len(before)):
            if [column for column in before if column == before[w]] != [before[w]]:
                continue  # two columns alike, which the pool does not tell apart
            expected = own((*text, *spine[: w + 1], *before[w][1:]))
            assert after[w - num_accepted] == [*before[w][1:], expected]
            checked += 1
    assert checked > 20


REQUESTS = [
    Request(
        request_id=f"{name} {temperature}",
        prompt_ids=prompt,
        sampling=SamplingParams(temperature=temperature, seed=2, max_tokens=24, ignore_eos=True, logprobs=2),
        speculation=SpeculationParams(drafter=drafter),
    )
    for name, prompt, drafter in (("long", PROMPT, None), ("one", (5,), "lookahead"), ("short", tuple(range(10, 40)), "ngram"))
    for temperature in (0.0, 0.8)
]


@pytest.fixture(scope="module")
def expected(loaded: assemble.LoadedModel) -> dict[str, Completion]:
    alone = llm(loaded, drafters=("lookahead", "ngram"), max_batch=1, max_tree_nodes=1)
    return {request.request_id: alone.generate([request])[0] for request in REQUESTS}


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("adaptive", [False, True], ids=["whole", "planned"])
def test_the_bits_are_the_same(
    loaded: assemble.LoadedModel, expected: dict[str, Completion], adaptive: bool, depth: int
) -> None:
    engine = llm(loaded, drafters=("lookahead", "ngram"), depth=depth, adaptive=adaptive)
    done = engine.generate(REQUESTS)
    for completion in done:
        same = expected[completion.request_id]
        assert (completion.token_ids, completion.logprobs) == (same.token_ids, same.logprobs)
    engine.engine.check()
    drafted = {completion.request_id: completion.stats.drafted_by_drafter for completion in done}
    if not adaptive:
        assert drafted["long 0.0"]["lookahead"] > 0
    assert "lookahead" not in drafted["short 0.0"], "the request's own word counts"


def test_greedy_answers_are_the_same_under_the_rejection_rule(
    loaded: assemble.LoadedModel, expected: dict[str, Completion]
) -> None:
    engine = llm(loaded, drafters=("lookahead", "ngram"), acceptance="rejection")
    greedy = [request for request in REQUESTS if request.sampling.greedy]
    for completion in engine.generate(greedy):
        assert completion.token_ids == expected[completion.request_id].token_ids
