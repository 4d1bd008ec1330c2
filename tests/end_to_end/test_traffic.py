"""Requests of all kinds come and go at random beside each other, in engines of all kinds: nobody changes a bit of another."""

import random
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from specdec.request import FinishReason, Request, SpeculationParams
from specdec.round.sample import draw
from tests.end_to_end.conftest import ALL_DRAFTERS, Pool, Stage, TinyCheckpoint, hold, stages, traffic

EVERYWHERE = stages(*((family, "cpu", fixed) for family in ("llama", "qwen3_moe") for fixed in (False, True)))
ON_GPUS = stages(("llama", "cuda", False), ("qwen3_moe", "cuda", False))
DRAFTERS = (
    (), ("ngram",), ("suffix", "prediction"), ("adversarial",), ("adversarial",), ALL_DRAFTERS, ALL_DRAFTERS[:3],
    ("draft-model",), ("draft-model", "ngram", "adversarial"),
)  # fmt: skip
WISHES = (SpeculationParams(enabled=False), SpeculationParams(max_nodes=1), SpeculationParams(max_nodes=3))


@dataclass
class Scenario:
    """Settings of an engine, and by step what comes and who is aborted."""

    fields: dict[str, Any]
    narrow: int  # tokens that a nucleus is looked for among
    arrivals: dict[int, list[Request]] = field(default_factory=lambda: defaultdict(list))
    aborts: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))


def drawn(rng: random.Random, pool: Pool, draft_models: list[str]) -> Scenario:
    """Some requests come twice, so that they find their pages and what was learned from their answers."""
    fields: dict[str, Any] = {
        "depth": rng.choice((0, 1, 1, 1, 2)),
        "drafters": rng.choice(DRAFTERS),
        "adaptive": rng.random() < 0.3,
        "chunk_tokens": rng.choice((3, 7, 16, 64, 256)),
        "max_batch": rng.choice((1, 2, 3, 5, 32)),
        "prefix_cache": rng.random() < 0.7,
        "max_tree_nodes": rng.choice((2, 5, 8, 24, 64)),
        "max_tree_depth": rng.choice((2, 64)),
        "pages": rng.choice((None, 10, 12)),
    }
    if "draft-model" in fields["drafters"]:
        fields["draft_model"] = rng.choice(draft_models)
    scenario = Scenario(fields, rng.choice((4, 1024)))
    wishes = [*WISHES, *(SpeculationParams(drafter=name) for name in fields["drafters"])]
    asked = rng.sample(pool.requests, rng.randrange(4, 24))
    span = rng.choice((1, 10, 40))
    for again in range(rng.choice((1, 2))):
        for request in asked:
            at, name = again * span + rng.randrange(span), f"{request.request_id} #{again}"
            wish = rng.choice(wishes) if rng.random() < 0.4 else SpeculationParams()
            scenario.arrivals[at].append(replace(request, request_id=name, speculation=wish))
            if rng.random() < 0.25:
                scenario.aborts[at + rng.randrange(25)].append(name)
    return scenario


@pytest.mark.parametrize("stage", [*EVERYWHERE, *ON_GPUS], indirect=True)
@pytest.mark.parametrize("seed", range(8))
def test_who_comes_and_goes_changes_nobody(
    stage: Stage, pool: Pool, tiny_checkpoint: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    draft_models = [stage.loaded.name, str(tiny_checkpoint("llama", 9, num_hidden_layers=2))]
    rng = random.Random(f"{seed} {stage.loaded.model.config.family} {stage.fixed_shapes}")
    scenario = drawn(rng, pool, draft_models)
    monkeypatch.setattr(draw, "NARROW", scenario.narrow)
    heard = traffic(stage.llm(pool.oracle, **scenario.fields), scenario.arrivals, scenario.aborts)
    for name, found in heard.items():
        wanted = pool.expected[name.rpartition(" #")[0]]
        if found.finish_reason is FinishReason.ABORT:
            assert found.token_ids == wanted.token_ids[: len(found.token_ids)], name
            assert found.logprobs == wanted.logprobs[: len(found.token_ids)], name
        else:
            hold(replace(found, request_id=f"{name}: {scenario}"), wanted)


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("drafters", [(), ("adversarial",), ("draft-model",)], ids=["plain", "trees", "draft model"])
def test_a_slot_goes_to_the_next_while_rounds_of_the_last_are_underway(
    stage: Stage, pool: Pool, drafters: tuple[str, ...], depth: int
) -> None:
    """Each takes over at once, with parameters, pages and prompts of its own."""
    fields: dict[str, Any] = {"draft_model": stage.loaded.name} if "draft-model" in drafters else {}
    llm = stage.llm(pool.oracle, depth=depth, max_batch=2, drafters=drafters, adaptive=False, chunk_tokens=40, **fields)
    shuffled = random.Random(depth).sample(pool.requests, 24)
    for found in traffic(llm, {0: shuffled}).values():
        hold(found, pool.expected[found.request_id])
