"""`specdec bench acceptance`: how often drafts are right, by content type, and what that is worth in tokens per second."""

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from specdec import assemble
from specdec.bench import suite
from specdec.bench.cases import Case, greedy_answers, prepare
from specdec.bench.contenders import EngineContender, Sample, interleave, tokens_per_second
from specdec.bench.environment import conditions
from specdec.bench.statistics import ratio_over_prompts
from specdec.config import EngineConfig
from specdec.errors import ConfigError
from specdec.llm import LLM
from specdec.progress import Progress
from specdec.request import SamplingParams, SpeculationStats

ALL = "all"
_PLAIN, _DRAFTED = "plain", "drafted"
_CACHE_GB = 0.75  # per engine, if not given


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceptanceSettings:
    """What to measure."""

    config: EngineConfig
    temperature: float = 0.0
    repeats: int = 1
    max_tokens: int = 128
    prompts_per_type: int | None = None
    content: tuple[str, ...] = ()
    suite: Path | None = None


def run(settings: AcceptanceSettings, progress: Progress) -> dict[str, Any]:
    """Load, measure, and return the JSON data of the bench.

    Raises:
        ConfigError: a bad setting, model or suite, or no drafter.
    """
    if not settings.config.drafters:
        raise ConfigError("There is nothing to accept without a drafter; name one with --drafter.")
    prompts = suite.select(suite.load(settings.suite), settings.content, settings.prompts_per_type)
    config = replace(settings.config, max_batch=settings.config.max_batch or 1, cache_gb=settings.config.cache_gb or _CACHE_GB)
    loaded = assemble.load(config, progress)
    plain = LLM(assemble.build(replace(config, drafters=(), draft_model=None), progress, loaded))
    room = plain.engine.max_model_len - settings.max_tokens
    cases = prepare(prompts, loaded.tokenizer, greedy_answers(plain, settings.max_tokens), room, progress)
    contenders = [
        EngineContender(_PLAIN, lambda: plain, remembers=False),
        EngineContender(
            _DRAFTED,
            lambda: LLM(assemble.build(config, progress, loaded)),
            remembers="suffix" in config.drafters,
            predictions="prediction" in config.drafters,
        ),
    ]
    found = conditions(str(loaded.model.device))
    samples = interleave(
        contenders, cases.fitting, lambda case: _sampling(settings, case), settings.repeats, progress, plain.assembled.device
    )
    return {
        "bench": "acceptance",
        **found,
        "settings": {
            "model": config.model,
            "dtype": plain.assembled.dtype,
            "device": plain.assembled.device,
            "drafters": list(config.drafters),
            "draft_model": config.draft_model,
            "acceptance": config.acceptance,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "decoding": "one request at a time, answers end by themselves",
            "prefix_cache": config.prefix_cache,
            "baseline": "specdec without drafters, the same cases in turn",
            "repeats": settings.repeats,
            "suite": str(settings.suite) if settings.suite else "built-in",
            "cases": cases.counts,
            "skipped_as_too_long": list(cases.skipped),
        },
        "results": summarise(samples, cases.content_types),
    }


def summarise(samples: Sequence[Sample], content_types: Sequence[str]) -> dict[str, Any]:
    """The measures of each content type, and of all samples together."""
    by_type = {name: [sample for sample in samples if sample.content_type == name] for name in content_types}
    return {name: _summary(chosen) for name, chosen in (by_type | {ALL: list(samples)}).items()}


def _summary(samples: Sequence[Sample]) -> dict[str, Any]:
    plain = [sample for sample in samples if sample.contender == _PLAIN]
    drafted = [sample for sample in samples if sample.contender == _DRAFTED]
    total = merge([sample.stats for sample in drafted if sample.stats is not None])
    prompts = list(dict.fromkeys(sample.case_id for sample in drafted))
    counts = {name: _stats_of(drafted, name) for name in prompts}
    return {
        "cases": len(prompts),
        "tokens": sum(len(sample.token_ids) for sample in drafted),
        "acceptance_length": asdict(
            ratio_over_prompts(
                [stats.num_steps + stats.num_accepted_tokens for stats in counts.values()],
                [stats.num_steps for stats in counts.values()],
            )
        ),
        "draft_acceptance_rate": total.draft_acceptance_rate,
        "drafted_per_step": total.num_draft_tokens / total.num_steps,
        "drafted_by_depth": total.drafted_by_depth,
        "rate_by_depth": rates(total.accepted_by_depth, total.drafted_by_depth),
        "accepted_histogram": total.accepted_histogram,
        "accepted_share_by_drafter": _shares(total),
        "rate_by_drafter": {
            name: total.accepted_by_drafter.get(name, 0) / drafts for name, drafts in total.drafted_by_drafter.items() if drafts
        },
        "tokens_per_second": {_PLAIN: tokens_per_second(plain), _DRAFTED: tokens_per_second(drafted)},
        "speedup": asdict(
            ratio_over_prompts(
                [_seconds_per_token(plain, name) * _tokens(drafted, name) for name in prompts],
                [_seconds(drafted, name) for name in prompts],
            )
        ),
        "equal_tokens": sum(a.token_ids == b.token_ids for a, b in zip(plain, drafted, strict=True)) / len(plain),
    }


def merge(parts: Sequence[SpeculationStats]) -> SpeculationStats:
    """Counts added up."""
    return SpeculationStats(
        num_steps=sum(part.num_steps for part in parts),
        num_draft_tokens=sum(part.num_draft_tokens for part in parts),
        num_accepted_tokens=sum(part.num_accepted_tokens for part in parts),
        accepted_histogram=_add([part.accepted_histogram for part in parts]),
        drafted_by_depth=_add([part.drafted_by_depth for part in parts]),
        accepted_by_depth=_add([part.accepted_by_depth for part in parts]),
        drafted_by_drafter=dict(sum((Counter(part.drafted_by_drafter) for part in parts), Counter[str]())),
        accepted_by_drafter=dict(sum((Counter(part.accepted_by_drafter) for part in parts), Counter[str]())),
    )


def rates(accepted: Sequence[int], drafted: Sequence[int]) -> list[float]:
    """[depth - 1] -> of the steps that drafted so deep, the share that accepted so deep."""
    padded = list(accepted) + [0] * (len(drafted) - len(accepted))
    return [hits / tries if tries else 0.0 for hits, tries in zip(padded, drafted, strict=True)]


def _add(lists: Sequence[Sequence[int]]) -> list[int]:
    longest = max((len(counts) for counts in lists), default=0)
    return [sum(counts[i] for counts in lists if i < len(counts)) for i in range(longest)]


def _shares(stats: SpeculationStats) -> dict[str, float]:
    total = sum(stats.accepted_by_drafter.values())
    return {name: count / total for name, count in stats.accepted_by_drafter.items()} if total else {}


def _stats_of(samples: Sequence[Sample], case_id: str) -> SpeculationStats:
    return merge([sample.stats for sample in samples if sample.case_id == case_id and sample.stats is not None])


def _tokens(samples: Sequence[Sample], case_id: str) -> int:
    return sum(len(sample.token_ids) for sample in samples if sample.case_id == case_id)


def _seconds(samples: Sequence[Sample], case_id: str) -> float:
    return sum(sample.seconds for sample in samples if sample.case_id == case_id)


def _seconds_per_token(samples: Sequence[Sample], case_id: str) -> float:
    return _seconds(samples, case_id) / _tokens(samples, case_id)


def _sampling(settings: AcceptanceSettings, case: Case) -> SamplingParams:
    """Each case has a seed of its own, the same for both contenders and every run."""
    return SamplingParams(
        temperature=settings.temperature, max_tokens=settings.max_tokens, seed=zlib.crc32(case.id.encode("utf-8"))
    )
