"""The rejection family in a whole engine: what it draws over many seeds is what the model's own distribution says."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from scipy import stats

from specdec.llm import LLM, Completion
from specdec.request import Request, SamplingParams
from specdec.round.sample import draw
from specdec.round.sample.draw import Nucleus
from tests.end_to_end.conftest import Stage, TinyCheckpoint, rest, stages

NUM_DRAWS = 1500
MAX_TOKENS = 5  # the first is never a draft; the next two are compared: a draft, and a draft that follows one
PROMPT = tuple((i * 7) % 250 + 3 for i in range(20))
SAMPLING = SamplingParams(temperature=0.3, top_k=4, max_tokens=MAX_TOKENS, ignore_eos=True)
LIKELY = 1e-4  # a right engine falls below it once in ten thousand sets of seeds; these are fixed
Law = dict[tuple[int, int], float]

pytestmark = pytest.mark.parametrize(
    "stage", stages(("llama", "cpu", False), ("llama", "cpu", True), ("llama", "cuda", False)), indirect=True
)


def engine(stage: Stage, **fields: Any) -> LLM:
    base: dict[str, Any] = {"acceptance": "rejection", "adaptive": False, "max_batch": 64, "max_tree_nodes": 6}
    return stage.llm(**base | fields)


def next_token(llm: LLM, prompt: tuple[int, ...]) -> dict[int, float]:
    """What temperature and top_k leave of the model's own distribution."""
    sampling = replace(SAMPLING, max_tokens=1, logprobs=SAMPLING.top_k)
    (entry,) = llm.generate([Request(request_id="probe", prompt_ids=prompt, sampling=sampling)])[0].logprobs
    weights = {token: math.exp(logprob / SAMPLING.temperature) for token, logprob in entry.top}
    return {token: weight / sum(weights.values()) for token, weight in weights.items()}


def first_token(llm: LLM) -> int:
    chances = next_token(llm, PROMPT)
    return max(chances, key=lambda token: chances[token])


@pytest.fixture
def law(stage: Stage) -> Law:
    """The probability of each pair of tokens behind the likeliest first one."""
    llm = engine(stage, drafters=())
    start = (*PROMPT, first_token(llm))
    return {
        (token, later): chance * chance_later
        for token, chance in next_token(llm, start).items()
        for later, chance_later in next_token(llm, (*start, token)).items()
    }


def draws(llm: LLM, prediction: tuple[int, ...] = ()) -> list[Completion]:
    base = Request(request_id="", prompt_ids=PROMPT, sampling=SAMPLING, prediction_ids=prediction)
    requests = [replace(base, request_id=str(seed), sampling=replace(SAMPLING, seed=seed)) for seed in range(NUM_DRAWS)]
    found = list(itertools.chain.from_iterable(llm.generate(requests[i : i + 250]) for i in range(0, NUM_DRAWS, 250)))
    rest(llm)
    return found


def p_value(found: list[Completion], law: Law) -> float:
    """Of the pairs behind the first token that is drawn most often."""
    ((first, number),) = Counter(completion.token_ids[0] for completion in found).most_common(1)
    counts = Counter(tuple(completion.token_ids[1:3]) for completion in found if completion.token_ids[0] == first)
    assert counts.keys() <= law.keys()
    value: float = stats.chisquare([counts[pair] for pair in law], [number * chance for chance in law.values()]).pvalue
    return value


def alike(stage: Stage, tiny_checkpoint: TinyCheckpoint) -> dict[str, Any]:
    """A draft model much like the target."""
    folder = tiny_checkpoint("llama", num_hidden_layers=2, rms_norm_eps=0.003)
    return {"drafters": ("draft-model",), "draft_model": str(folder)}


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("drafter", ["draft-model", "prediction"])
def test_an_engine_draws_from_the_models_distribution(
    stage: Stage, law: Law, tiny_checkpoint: TinyCheckpoint, drafter: str, depth: int
) -> None:
    """Drafts that were sampled from a model much like the target, and drafts that are a fixed choice; some are accepted."""
    fields = alike(stage, tiny_checkpoint) if drafter == "draft-model" else {"drafters": (drafter,)}
    likeliest = (first_token(engine(stage, drafters=())), *max(law, key=lambda pair: law[pair]))
    found = draws(engine(stage, depth=depth, **fields), likeliest)
    accepted = sum(completion.stats.num_accepted_tokens for completion in found)
    assert NUM_DRAWS // 3 < accepted < sum(completion.stats.num_draft_tokens for completion in found)
    assert p_value(found, law) > LIKELY
    flatter = {pair: chance**0.5 for pair, chance in law.items()}
    wrong = {pair: weight / sum(flatter.values()) for pair, weight in flatter.items()}
    assert p_value(found, wrong) < LIKELY, "as many draws can tell a wrong distribution"


def test_what_is_learned_of_drafts_leaves_the_distribution_alone(
    stage: Stage, law: Law, tiny_checkpoint: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second choice that is right more often than the first is no reason to verify it alone."""
    llm = engine(stage, **alike(stage, tiny_checkpoint), max_tree_nodes=2)
    chances = llm.engine._planner.new_chances()
    assert chances is not None
    chances[0::2], chances[1::2] = 0.1, 0.9  # first and second choices of each depth
    monkeypatch.setattr(llm.engine._planner, "new_chances", lambda: chances)
    found = draws(llm)
    assert sum(completion.stats.num_accepted_tokens for completion in found) > NUM_DRAWS // 4
    assert p_value(found, law) > LIKELY


def test_no_round_is_void_because_of_what_it_drew(
    stage: Stage, law: Law, tiny_checkpoint: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round that is decided again would favour what makes no round void; so filters look at all tokens at once."""
    monkeypatch.setattr(draw, "NARROW", 2)
    llm = engine(stage, depth=1, **alike(stage, tiny_checkpoint))
    shape_of, used = llm.engine._round.shape_of, set[Nucleus]()

    def noted(*arguments: Any) -> Any:
        shape = shape_of(*arguments)
        used.add(shape.nucleus)
        return shape

    monkeypatch.setattr(llm.engine._round, "shape_of", noted)
    assert p_value(draws(llm), law) > LIKELY
    assert used == {Nucleus.WIDE if llm.engine._round.fixed_shapes else Nucleus.EXACT}
