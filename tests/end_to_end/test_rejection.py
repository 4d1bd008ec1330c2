"""The rejection family in a whole engine: what it draws over many seeds is what the model's own distribution says."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from specdec import assemble
from specdec.config import EngineConfig
from specdec.llm import LLM, Completion
from specdec.request import Request, SamplingParams

NUM_DRAWS = 1500
MAX_TOKENS = 3  # of which the first two are compared: a draft, and a draft that follows one
PROMPT = tuple((i * 7) % 250 + 3 for i in range(20))
SAMPLING = SamplingParams(temperature=0.5, top_k=4, max_tokens=MAX_TOKENS, ignore_eos=True)
LIKELY = 1e-4  # a right engine falls below it once in ten thousand sets of seeds; these are fixed


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Callable[..., Path]) -> assemble.LoadedModel:
    return assemble.load(EngineConfig(model=str(tiny_checkpoint("llama")), dtype="float32", device="cpu"))


def llm(loaded: assemble.LoadedModel, **fields: Any) -> LLM:
    config = EngineConfig(
        model=loaded.name, dtype="float32", device="cpu", acceptance="rejection", adaptive=False,
        max_batch=64, max_tree_nodes=6, page_size=16, cache_gb=0.01, **fields,
    )  # fmt: skip
    return LLM(assemble.build(config, loaded=loaded))


def next_token(engine: LLM, prompt: tuple[int, ...]) -> dict[int, float]:
    """What temperature and top_k leave of the model's own distribution."""
    sampling = replace(SAMPLING, max_tokens=1, logprobs=SAMPLING.top_k)
    (entry,) = engine.generate([Request(request_id="probe", prompt_ids=prompt, sampling=sampling)])[0].logprobs
    weights = {token: math.exp(logprob / SAMPLING.temperature) for token, logprob in entry.top}
    return {token: weight / sum(weights.values()) for token, weight in weights.items()}


@pytest.fixture(scope="module")
def expected(loaded: assemble.LoadedModel) -> dict[tuple[int, int], float]:
    """The probability of each pair of tokens."""
    engine = llm(loaded, drafters=())
    first = next_token(engine, PROMPT)
    return {
        (token, later): chance * chance_later
        for token, chance in first.items()
        for later, chance_later in next_token(engine, (*PROMPT, token)).items()
    }


def draws(engine: LLM, prediction: tuple[int, ...]) -> list[Completion]:
    base = Request(request_id="", prompt_ids=PROMPT, sampling=SAMPLING, prediction_ids=prediction)
    requests = [replace(base, request_id=str(seed), sampling=replace(SAMPLING, seed=seed)) for seed in range(NUM_DRAWS)]
    return list(itertools.chain.from_iterable(engine.generate(requests[i : i + 250]) for i in range(0, NUM_DRAWS, 250)))


def p_value(found: list[Completion], expected: dict[tuple[int, int], float]) -> float:
    counts = Counter(tuple(completion.token_ids[:2]) for completion in found)
    assert counts.keys() <= expected.keys()
    observed = [counts[pair] for pair in expected]
    value: float = stats.chisquare(observed, [NUM_DRAWS * chance for chance in expected.values()]).pvalue
    return value


@pytest.mark.parametrize("drafter", ["draft-model", "prediction"])
def test_an_engine_draws_from_the_models_distribution(
    loaded: assemble.LoadedModel, expected: dict[tuple[int, int], float], tiny_checkpoint: Callable[..., Path], drafter: str
) -> None:
    """Drafts that were sampled from a model much like the target, and drafts that are a fixed choice; some are accepted."""
    much_alike = str(tiny_checkpoint("llama", rms_norm_eps=0.003)) if drafter == "draft-model" else None
    likeliest = max(expected, key=lambda pair: expected[pair])
    found = draws(llm(loaded, drafters=(drafter,), draft_model=much_alike), likeliest)
    accepted = sum(completion.stats.num_accepted_tokens for completion in found)
    assert NUM_DRAWS // 4 < accepted < sum(completion.stats.num_draft_tokens for completion in found)
    assert p_value(found, expected) > LIKELY
    flatter = {pair: chance**0.8 for pair, chance in expected.items()}
    wrong = {pair: weight / sum(flatter.values()) for pair, weight in flatter.items()}
    assert p_value(found, wrong) < LIKELY, "as many draws can tell a slightly wrong distribution"
