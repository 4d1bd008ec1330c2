"""What `specdec bench lossless` varies: the requests that all settings share, and the settings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from specdec.bench.cases import Case
from specdec.config import DEFAULT_DRAFTERS, DRAFTERS, EngineConfig
from specdec.request import Request, SamplingParams, SpeculationParams

TEMPERATURES = (0.0, 0.7, 1.0)
BATCH_SIZES = (1, 2, 3, 4, 5, 6, 7, 8)
SMALL_PAGE = 16  # tokens
PREEMPTION = "preemption"  # how the names of the settings begin that force it
WHOLE_PROMPT = 1 << 16  # chunk_tokens that cuts no prompt
HOST_DRAFTER = "host"  # a drafter in plain Python, whose sequences sit out between rounds
DEPTHS = (0, 1, 2)
_SHORT_CHUNK = 16
_FULL = max(BATCH_SIZES)
_LENGTHS = 4  # that requests differ in


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """Requests on their way through an engine.

    at_once: that come together, the next when all of them have ended; 0: each comes before some round of its own, and some
        leave before their end.
    odd: every third has a wish of its own: no speculation, few nodes, one drafter.
    """

    name: str
    at_once: int = 0
    odd: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """An engine, and the passes that requests make through it."""

    config: EngineConfig
    passes: tuple[Pass, ...]
    only_short: bool = False  # only requests that fit the small cache, see `under_pressure`
    fixed_shapes: bool | None = None  # see `specdec.assemble.build`


def settings_for(config: EngineConfig, small: EngineConfig, tight: EngineConfig, batch_sizes: Sequence[int]) -> list[Setting]:
    """Every way in which a request may be served.

    Args:
        config: the model, its page size and drafters.
        small: the same with small pages, which short answers fill.
        tight: small pages, and a cache that two of the short requests outgrow.
        batch_sizes: how many requests share the rounds with adversarial trees.
    """
    adversarial = _whole_trees(config, ("adversarial",))
    several = replace(_whole_trees(config, (*config.drafters, "adversarial", HOST_DRAFTER)), depth=1)
    chunked, whole = (replace(adversarial, chunk_tokens=tokens) for tokens in (_SHORT_CHUNK, WHOLE_PROMPT))
    cached, cached_small = (replace(_whole_trees(each, ("adversarial",)), prefix_cache=True) for each in (config, small))
    pressed = replace(tight, max_model_len=None)
    return [
        Setting(_whole_trees(config, ()), (Pass(name="plain", at_once=_FULL), Pass(name="plain, traffic"))),
        Setting(adversarial, tuple(Pass(name=f"adversarial trees, {size} at once", at_once=size) for size in batch_sizes)),
        *(_at_depth(adversarial, depth) for depth in DEPTHS),
        *(_of_drafters(config, names) for names in _apart(config)),
        Setting(several, (Pass(name=f"{', '.join(several.drafters)}: depth 1, traffic, odd requests", odd=True),)),
        Setting(
            replace(config, max_batch=_FULL, prefix_cache=False),
            (Pass(name="planned trees", at_once=_FULL), Pass(name="planned trees, traffic, odd requests", odd=True)),
        ),
        Setting(chunked, (Pass(name=f"prompts in chunks of {_SHORT_CHUNK} beside answers, traffic"),)),
        Setting(whole, (Pass(name="prompts whole, 4 at once", at_once=4),)),
        Setting(cached, _filling_and_hit("prefix cache")),
        Setting(cached_small, _filling_and_hit("small pages, prefix cache")),
        *(
            Setting(_whole_trees(pressed, drafters), (Pass(name=f"{PREEMPTION}, {name}", at_once=_FULL),), only_short=True)
            for name, drafters in (("plain", ()), ("adversarial trees", ("adversarial",)))
        ),
    ]


def _at_depth(config: EngineConfig, depth: int) -> Setting:
    """Rounds ahead of the host have fixed shapes here, as they have on a GPU."""
    passes = (Pass(name=f"depth {depth}, traffic, odd requests", odd=True), Pass(name=f"depth {depth}, 3 at once", at_once=3))
    return Setting(replace(config, depth=depth), passes, fixed_shapes=True if depth else None)


def _of_drafters(config: EngineConfig, names: tuple[str, ...]) -> Setting:
    config = replace(_whole_trees(config, names), depth=1)
    return Setting(config, (Pass(name=f"{', '.join(names)}: whole trees, depth 1, traffic"),))


def _apart(config: EngineConfig) -> list[tuple[str, ...]]:
    """Every drafter, the lookups of the text together; the draft model where one is named."""
    others = [(name,) for name in DRAFTERS if name not in DEFAULT_DRAFTERS]
    return [DEFAULT_DRAFTERS, *(names for names in others if names != ("draft-model",) or config.draft_model is not None)]


def _filling_and_hit(name: str) -> tuple[Pass, ...]:
    return Pass(name=f"{name} filling, 4 at once", at_once=4), Pass(name=f"{name} hit, traffic")


def _whole_trees(config: EngineConfig, drafters: tuple[str, ...]) -> EngineConfig:
    """Drafts are verified whole, whether they pay or not."""
    draft_model = config.draft_model if "draft-model" in drafters else None
    return replace(config, max_batch=_FULL, prefix_cache=False, adaptive=False, drafters=drafters, draft_model=draft_model)


def make_requests(cases: Sequence[Case], vocab_size: int, seeds: int, max_tokens: int) -> list[Request]:
    """Every case at every temperature with every seed; the other sampling parameters and the lengths take turns."""
    varieties = _varieties(vocab_size, max_tokens)
    requests: list[Request] = []
    for case in cases:
        for temperature in TEMPERATURES:
            for seed in range(seeds):
                name, fields = varieties[len(requests) % len(varieties)]
                tokens = max(max_tokens - len(requests) % _LENGTHS, 1)
                sampling = SamplingParams(temperature=temperature, seed=seed, max_tokens=tokens, logprobs=3, **fields)
                requests.append(
                    Request(
                        request_id=f"{case.id}, temperature {temperature:g}, seed {seed}, {name}",
                        prompt_ids=case.prompt_ids,
                        sampling=sampling,
                        prediction_ids=case.prediction_ids,
                    )
                )
    return requests


def with_wishes(requests: Sequence[Request], drafters: Sequence[str]) -> list[Request]:
    """Every third request wishes for something else in how its drafts are made."""
    wishes = [
        SpeculationParams(enabled=False),
        SpeculationParams(max_nodes=2),
        *(SpeculationParams(drafter=name) for name in drafters),
    ]
    return [
        replace(request, speculation=wishes[number // 3 % len(wishes)]) if number % 3 == 0 else request
        for number, request in enumerate(requests)
    ]


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
    """Seven, a prime, so that temperatures, seeds and lengths meet all of them."""
    quarter = max_tokens // 4
    return [
        ("no filter", {}),
        ("penalties", {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4}),
        ("top_k 40", {"top_k": 40, "ignore_eos": True}),
        ("top_p 0.9", {"top_p": 0.9}),
        ("min_p 0.05", {"min_p": 0.05, "min_tokens": quarter}),
        ("logit_bias", {"logit_bias": dict.fromkeys(range(0, vocab_size, max(1, vocab_size // 50)), 4.0)}),
        (
            "stop",
            {"stop": ("e ", ".\n"), "top_k": 100, "top_p": 0.95, "repetition_penalty": 1.1, "min_tokens": quarter},
        ),
    ]
