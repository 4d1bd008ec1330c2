"""`specdec bench speed`: tokens per second, plain and speculative, beside transformers on the same prompts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from specdec import assemble
from specdec.bench import suite, transformers_baseline
from specdec.bench.cases import Cases, greedy_answers, prepare
from specdec.bench.contenders import Contender, EngineContender, Sample, decode_tokens_per_second, interleave, tokens_per_second
from specdec.bench.environment import conditions
from specdec.bench.statistics import Spread, over_repeats
from specdec.bench.transformers_baseline import TransformersContender
from specdec.config import EngineConfig
from specdec.llm import LLM
from specdec.models.source import resolve
from specdec.progress import Progress
from specdec.request import SamplingParams

PLAIN, DRAFTED = "specdec plain", "specdec drafted"
HF_PLAIN, HF_LOOKUP = "transformers", "transformers prompt lookup"
RATIOS = ((PLAIN, HF_PLAIN), (DRAFTED, HF_LOOKUP), (DRAFTED, PLAIN))
ALL = "all"
COPYING_TYPES = ("code-editing", "summarising")  # where the n-gram floor is asked for
_CACHE_GB = 0.75  # per engine, if not given


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedSettings:
    """What to measure. `config.drafters` are those of the speculative contender."""

    config: EngineConfig
    against_transformers: bool = True
    repeats: int = 3
    max_tokens: int = 128
    prompts_per_type: int = 2
    content: tuple[str, ...] = ()
    suite: Path | None = None
    predictions: bool = False  # whether the suite's predictions are given to specdec; transformers has no such input


@dataclass(frozen=True, kw_only=True, slots=True)
class Floors:
    """Ratios that must be reached; None asks for nothing."""

    plain: float | None = None  # specdec plain / transformers, over all content
    ngram: float | None = None  # specdec drafted / transformers prompt lookup, on each copying content type
    content: float | None = None  # specdec drafted / specdec plain, on every content type


def run(settings: SpeedSettings, progress: Progress) -> dict[str, Any]:
    """Load, measure, and return the JSON data of the bench.

    Raises:
        ConfigError: a bad setting, model or suite.
    """
    prompts = suite.select(suite.load(settings.suite), settings.content, settings.prompts_per_type)
    config = replace(settings.config, max_batch=settings.config.max_batch or 1, cache_gb=settings.config.cache_gb or _CACHE_GB)
    loaded = assemble.load(config, progress)
    baseline = _baseline(config, loaded, progress) if settings.against_transformers else []
    plain = LLM(assemble.build(replace(config, drafters=(), draft_model=None), progress, loaded))
    room = plain.engine.max_model_len - settings.max_tokens
    cases = prepare(prompts, loaded.tokenizer, greedy_answers(plain, settings.max_tokens), room, progress)
    contenders: list[Contender] = [EngineContender(PLAIN, lambda: plain, remembers=False)]
    if config.drafters:
        contenders.append(
            EngineContender(
                DRAFTED,
                lambda: LLM(assemble.build(config, progress, loaded)),
                remembers="suffix" in config.drafters,
                predictions=settings.predictions,
            )
        )
    contenders += baseline
    found = conditions(str(loaded.model.device))
    samples = interleave(
        contenders, cases.fitting, lambda _: _greedy(settings.max_tokens), settings.repeats, progress, plain.assembled.device
    )
    return {
        "bench": "speed",
        **found,
        "settings": _settings(settings, config, plain, cases),
        "results": summarise(samples, cases.content_types),
    }


def _baseline(config: EngineConfig, loaded: assemble.LoadedModel, progress: Progress) -> list[TransformersContender]:
    with progress.task("Loading transformers' model", None):
        model = transformers_baseline.load(resolve(config.model), loaded.model.dtype, str(loaded.model.device))
    eos = loaded.tokenizer.eos_token_ids
    return [
        TransformersContender(HF_PLAIN, model, eos, prompt_lookup=False),
        TransformersContender(HF_LOOKUP, model, eos, prompt_lookup=True),
    ]


def summarise(samples: Sequence[Sample], content_types: Sequence[str]) -> dict[str, Any]:
    """Per content type, and for all: tokens/s, ratios over repeats, share of tokens equal to those of plain decoding."""
    by_type = {name: [sample for sample in samples if sample.content_type == name] for name in content_types}
    return {name: _summary(chosen) for name, chosen in (by_type | {ALL: list(samples)}).items()}


def missed(results: dict[str, Any], floors: Floors) -> list[str]:
    """A line for each floor that the results do not reach, or that could not be judged."""
    types = [name for name in results if name != ALL]
    asked = [(floors.plain, ALL, (PLAIN, HF_PLAIN))]
    asked += [(floors.ngram, name, (DRAFTED, HF_LOOKUP)) for name in COPYING_TYPES if name in types]
    asked += [(floors.content, name, (DRAFTED, PLAIN)) for name in types]
    lines = []
    for floor, name, pair in asked:
        if floor is None:
            continue
        found = results[name]["ratios"].get(ratio_name(*pair))
        if found is None:
            lines.append(f"{name}: {ratio_name(*pair)} was not measured, {floor:g} is asked for")
        elif found["median"] < floor:
            lines.append(f"{name}: {ratio_name(*pair)} is {found['median']:.3f}, {floor:g} is asked for")
    return lines


def ratio_name(above: str, below: str) -> str:
    """How a ratio is called in the results."""
    return f"{above} / {below}"


def _summary(samples: Sequence[Sample]) -> dict[str, Any]:
    names = list(dict.fromkeys(sample.contender for sample in samples))
    repeats = sorted({sample.repeat for sample in samples})
    cells = {(s, r): [x for x in samples if x.contender == s and x.repeat == r] for s in names for r in repeats}
    speeds = {name: [tokens_per_second(cells[name, repeat]) for repeat in repeats] for name in names}
    decode = {name: [decode_tokens_per_second(cells[name, repeat]) for repeat in repeats] for name in names}
    return {
        "tokens_per_second": {name: asdict(over_repeats(values)) for name, values in speeds.items()},
        "decode_tokens_per_second": {
            name: asdict(over_repeats(known))
            for name, values in decode.items()
            if (known := [v for v in values if v is not None])
        },
        "ratios": {
            ratio_name(above, below): asdict(_ratio(speeds[above], speeds[below]))
            for above, below in RATIOS
            if above in speeds and below in speeds
        },
        "equal_tokens": {name: _equal_share(samples, name) for name in names if name != PLAIN},
        "acceptance_length": {name: length for name in names if (length := _acceptance_length(samples, name)) is not None},
    }


def _ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Each repeat's own ratio, so that a slow minute of the machine meets both sides."""
    return over_repeats([a / b for a, b in zip(above, below, strict=True)])


def _equal_share(samples: Sequence[Sample], name: str) -> float:
    """Tokens before the first difference from plain decoding, over all tokens."""
    reference = {(s.case_id, s.repeat): s.token_ids for s in samples if s.contender == PLAIN}
    same = total = 0
    for sample in samples:
        if sample.contender == name:
            expected = reference[sample.case_id, sample.repeat]
            same += next((i for i, (a, b) in enumerate(zip(sample.token_ids, expected, strict=False)) if a != b),
                         min(len(sample.token_ids), len(expected)))  # fmt: skip
            total += max(len(sample.token_ids), len(expected))
    return same / total


def _acceptance_length(samples: Sequence[Sample], name: str) -> float | None:
    stats = [sample.stats for sample in samples if sample.contender == name and sample.stats is not None]
    steps = sum(found.num_steps for found in stats)
    return 1.0 + sum(found.num_accepted_tokens for found in stats) / steps if steps else None


def _greedy(max_tokens: int) -> SamplingParams:
    """Stop tokens are forbidden, so that every contender gives the same number of tokens."""
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, min_tokens=max_tokens)


def _settings(settings: SpeedSettings, config: EngineConfig, llm: LLM, cases: Cases) -> dict[str, Any]:
    return {
        "model": config.model,
        "dtype": llm.assembled.dtype,
        "device": llm.assembled.device,
        "decoding": f"greedy, {settings.max_tokens} new tokens each, stop tokens forbidden, one request at a time",
        "drafters": list(config.drafters),
        "predictions_given": settings.predictions,
        "prefix_cache": config.prefix_cache,
        "prompt_lookup_num_tokens": transformers_baseline.PROMPT_LOOKUP_TOKENS if settings.against_transformers else None,
        "repeats": settings.repeats,
        "suite": str(settings.suite) if settings.suite else "built-in",
        "cases": cases.counts,
        "skipped_as_too_long": list(cases.skipped),
    }
