"""What `specdec bench lossless` varies: the requests that all settings share, and the settings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from specdec.bench.cases import Case
from specdec.config import EngineConfig
from specdec.request import Request, SamplingParams

TEMPERATURES = (0.0, 0.7, 1.0)
BATCH_SIZES = (1, 2, 3, 4, 5, 6, 7, 8)
_FULL = max(BATCH_SIZES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """An engine, and the passes that all requests make through it: (name, requests at once)."""

    config: EngineConfig
    passes: tuple[tuple[str, int], ...]


def settings_for(config: EngineConfig, preempting_gb: float, batch_sizes: Sequence[int]) -> list[Setting]:
    """Every way in which a request may be served. Drafts are verified whole, whether they pay or not."""
    company = replace(config, max_batch=_FULL, prefix_cache=False, adaptive=False)
    adversarial = replace(company, drafters=("adversarial",), draft_model=None)
    plain = replace(company, drafters=(), draft_model=None)
    several = replace(company, drafters=(*(name for name in config.drafters if name != "adversarial"), "adversarial"))
    tight = replace(adversarial, cache_gb=preempting_gb, max_model_len=None)
    cached = replace(adversarial, prefix_cache=True, page_size=16)
    return [
        Setting(config=plain, passes=((f"plain, {_FULL} at once", _FULL),)),
        Setting(config=adversarial, passes=tuple((f"adversarial trees, {size} at once", size) for size in batch_sizes)),
        Setting(config=several, passes=((f"{' + '.join(several.drafters)}, {_FULL} at once", _FULL),)),
        Setting(
            config=replace(config, max_batch=_FULL, prefix_cache=False), passes=((f"planned trees, {_FULL} at once", _FULL),)
        ),
        Setting(config=replace(adversarial, chunk_tokens=16), passes=(("prompts in chunks of 16, 4 at once", 4),)),
        Setting(config=replace(adversarial, chunk_tokens=1 << 16), passes=(("prompts whole, 4 at once", 4),)),
        Setting(config=cached, passes=(("prefix cache filling, 4 at once", 4), ("prefix cache hit, 4 at once", 4))),
        Setting(config=tight, passes=((f"preemption forced, {_FULL} at once", _FULL),)),
    ]


def make_requests(cases: Sequence[Case], vocab_size: int, seeds: int, max_tokens: int) -> list[Request]:
    """Every case at every temperature with every seed; the other sampling parameters take turns."""
    varieties = _varieties(vocab_size, max_tokens)
    requests: list[Request] = []
    for case in cases:
        for temperature in TEMPERATURES:
            for seed in range(seeds):
                name, fields = varieties[len(requests) % len(varieties)]
                sampling = SamplingParams(temperature=temperature, seed=seed, max_tokens=max_tokens, logprobs=3, **fields)
                requests.append(
                    Request(
                        request_id=f"{case.id}, temperature {temperature:g}, seed {seed}, {name}",
                        prompt_ids=case.prompt_ids,
                        sampling=sampling,
                        prediction_ids=case.prediction_ids,
                    )
                )
    return requests


def _varieties(vocab_size: int, max_tokens: int) -> list[tuple[str, dict[str, Any]]]:
    """Seven, a prime, so that temperatures and seeds meet all of them."""
    return [
        ("no filter", {}),
        ("penalties", {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4}),
        ("top_k 40", {"top_k": 40, "ignore_eos": True}),
        ("top_p 0.9", {"top_p": 0.9}),
        ("min_p 0.05", {"min_p": 0.05, "min_tokens": max_tokens // 2}),
        ("logit_bias", {"logit_bias": dict.fromkeys(range(0, vocab_size, max(1, vocab_size // 50)), 4.0)}),
        ("stop", {"stop": ("e ", ".\n"), "top_k": 100, "top_p": 0.95, "repetition_penalty": 1.1, "min_tokens": 4}),
    ]
