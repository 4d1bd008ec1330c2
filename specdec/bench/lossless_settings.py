"""What `specdec bench lossless` varies: the requests that all settings share, and the settings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from specdec.bench.cases import Case
from specdec.config import EngineConfig
from specdec.request import Request, SamplingParams

TEMPERATURES = (0.0, 0.7, 1.0)
BATCH_SIZES = (1, 2, 3, 4, 5, 6, 7, 8)
SMALL_PAGE = 16  # tokens
PREEMPTION = "preemption"  # how the names of the settings begin that force it
WHOLE_PROMPT = 1 << 16  # chunk_tokens that cuts no prompt
_SHORT_CHUNK = 16
_FULL = max(BATCH_SIZES)
_LOOP_NODES = 8


@dataclass(frozen=True, slots=True)
class Setting:
    """An engine, and the passes that requests make through it: (name, requests at once)."""

    config: EngineConfig
    passes: tuple[tuple[str, int], ...]
    only_short: bool = False  # only requests that fit the small cache, see `under_pressure`


def settings_for(
    config: EngineConfig, small: EngineConfig, tight: EngineConfig, batch_sizes: Sequence[int], *, on_gpu: bool
) -> list[Setting]:
    """Every way in which a request may be served.

    Args:
        config: the model, its page size and drafters.
        small: the same with small pages, which short answers fill.
        tight: small pages, and a cache that two of the short requests outgrow.
        batch_sizes: how many requests share the rounds with adversarial trees.
        on_gpu: where rounds may run ahead of the host.
    """
    config, small, tight = (replace(each, depth=0) for each in (config, small, tight))
    several = (*config.drafters, "adversarial")
    chunked, whole = (
        replace(_adversarial(config), chunk_tokens=_SHORT_CHUNK),
        replace(_adversarial(config), chunk_tokens=WHOLE_PROMPT),
    )
    cached = replace(_adversarial(config), prefix_cache=True)
    cached_small = replace(_adversarial(small), prefix_cache=True)
    pressed = replace(tight, max_model_len=None)
    return [
        Setting(_together(config, ()), ((f"plain, {_FULL} at once", _FULL),)),
        Setting(_adversarial(config), tuple((f"adversarial trees, {size} at once", size) for size in batch_sizes)),
        Setting(_together(config, several), ((f"{', '.join(several)}: {_FULL} at once", _FULL),)),
        Setting(replace(config, max_batch=_FULL, prefix_cache=False), ((f"planned trees, {_FULL} at once", _FULL),)),
        Setting(chunked, ((f"prompts in chunks of {_SHORT_CHUNK}, 4 at once", 4),)),
        Setting(whole, (("prompts whole, 4 at once", 4),)),
        Setting(cached, (("prefix cache filling, 4 at once", 4), ("prefix cache hit, 4 at once", 4))),
        Setting(
            cached_small, (("small pages, prefix cache filling, 4 at once", 4), ("small pages, prefix cache hit, 4 at once", 4))
        ),
        Setting(_together(pressed, ()), ((f"{PREEMPTION}, plain, {_FULL} at once", _FULL),), only_short=True),
        Setting(_adversarial(pressed), ((f"{PREEMPTION}, adversarial trees, {_FULL} at once", _FULL),), only_short=True),
        *(_ahead_of_the_host(config) if on_gpu else ()),
    ]


def _ahead_of_the_host(config: EngineConfig) -> list[Setting]:
    ahead = replace(config, depth=1, max_batch=_FULL, prefix_cache=False)
    wide = replace(ahead, adaptive=False, max_tree_nodes=_LOOP_NODES)
    engines = (("plain", replace(ahead, drafters=())), ("planned drafts", ahead), (f"{_LOOP_NODES - 1} drafts", wide))
    return [
        Setting(engine, tuple((f"ahead of the host, {name}, {size} at once", size) for size in (1, 3, _FULL)))
        for name, engine in engines
    ]


def _together(config: EngineConfig, drafters: tuple[str, ...]) -> EngineConfig:
    """Drafts are verified whole, whether they pay or not."""
    draft_model = config.draft_model if "draft-model" in drafters else None
    return replace(config, max_batch=_FULL, prefix_cache=False, adaptive=False, drafters=drafters, draft_model=draft_model)


def _adversarial(config: EngineConfig) -> EngineConfig:
    return _together(config, ("adversarial",))


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


def under_pressure(requests: Sequence[Request], page_size: int) -> tuple[list[Request], int]:
    """Requests, shortest first, and a number of pages that holds each of them alone to its end, but not two of the shortest.

    Two of those are admitted: their prompts fit, and a page is left for the one that runs. Both want one after that.
    """
    shortest = min(requests, key=lambda request: len(request.prompt_ids))
    pages = max(2 * -(-len(shortest.prompt_ids) // page_size) + 1, _pages(shortest, page_size))
    fitting = [request for request in requests if _pages(request, page_size) <= pages]
    return sorted(fitting, key=lambda request: len(request.prompt_ids)), pages


def _pages(request: Request, page_size: int) -> int:
    return -(-(len(request.prompt_ids) + request.sampling.max_tokens) // page_size)


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
