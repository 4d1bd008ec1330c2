"""`specdec bench lossless`: does anything but (prompt, sampling parameters, seed) change a token or a logprob?

The baseline decodes plainly, one request at a time, the prompt in one piece. Every setting repeats the same requests with
speculation, company, cut prompts, cached prefixes or forced preemption, and must give the same bits.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from specdec import assemble
from specdec.bench import suite
from specdec.bench.cases import Case, greedy_answers, prepare
from specdec.bench.environment import conditions
from specdec.bench.lossless_settings import (
    BATCH_SIZES,
    PREEMPTION,
    SMALL_PAGE,
    WHOLE_PROMPT,
    Setting,
    make_requests,
    settings_for,
    under_pressure,
)
from specdec.cache.kinds import cache_dtype, page_bytes
from specdec.config import EngineConfig
from specdec.llm import LLM, Completion
from specdec.progress import Progress
from specdec.request import Request, TokenLogprob

_CACHE_GB = 2.0  # per engine, if not given


@dataclass(frozen=True, kw_only=True, slots=True)
class LosslessSettings:
    """What to compare. `config` names the model; its drafters run beside the adversarial one."""

    config: EngineConfig
    max_tokens: int = 32
    prompts: int = 8
    seeds: int = 2
    batch_sizes: tuple[int, ...] = BATCH_SIZES


def quick(settings: LosslessSettings) -> LosslessSettings:
    """The same matrix with few requests, few tokens and fewer batch sizes."""
    return replace(
        settings, max_tokens=min(settings.max_tokens, 20), prompts=min(settings.prompts, 3), seeds=1, batch_sizes=(1, 3, 8)
    )


@dataclass(kw_only=True, slots=True)
class Comparison:
    """One setting against the baseline. `differing_ends`: requests that ended for another reason."""

    setting: str
    requests: int = 0
    tokens: int = 0
    differing_tokens: int = 0
    differing_logprobs: int = 0
    differing_ends: int = 0
    cached_prompt_tokens: int = 0
    preemptions: int = 0
    accepted_drafts: int = 0
    first_difference: str | None = None

    @property
    def same(self) -> bool:
        return not (self.differing_tokens or self.differing_logprobs or self.differing_ends)

    def add(self, expected: Completion, found: Completion) -> None:
        """Compare one request, bit for bit."""
        tokens = differing(expected.token_ids, found.token_ids)
        logprobs = differing([_bits(x) for x in expected.logprobs], [_bits(x) for x in found.logprobs])
        end = (expected.finish_reason, expected.stop_reason) != (found.finish_reason, found.stop_reason)
        self.requests += 1
        self.tokens += max(len(expected.token_ids), len(found.token_ids))
        self.differing_tokens += len(tokens)
        self.differing_logprobs += len(logprobs)
        self.differing_ends += end
        self.cached_prompt_tokens += found.num_cached_tokens
        self.accepted_drafts += found.stats.num_accepted_tokens
        if self.first_difference is None and (tokens or logprobs or end):
            place = min(tokens[:1] + logprobs[:1], default=len(expected.token_ids))
            self.first_difference = f"{found.request_id}, token {place}"


def run(settings: LosslessSettings, progress: Progress) -> dict[str, Any]:
    """Load, compare, and return the JSON data of the bench; `results.same` is the verdict.

    Raises:
        ConfigError: a bad setting or model.
    """
    settings = replace(settings, config=replace(settings.config, cache_gb=settings.config.cache_gb or _CACHE_GB))
    loaded = assemble.load(settings.config, progress)
    baselines = _Baselines(settings, loaded, progress)
    llm, requests = baselines.llm, baselines.requests
    found = conditions(llm.assembled.device)
    small = replace(settings.config, page_size=SMALL_PAGE if llm.assembled.device == "cpu" else settings.config.page_size)
    short, num_pages = under_pressure(requests, small.page_size)
    tight = replace(small, cache_gb=_tight_gb(small, loaded, num_pages))
    comparisons: list[Comparison] = []
    on_gpu = llm.assembled.device != "cpu"
    for setting in settings_for(settings.config, small, tight, settings.batch_sizes, on_gpu=on_gpu):
        chosen = short if setting.only_short else requests
        comparisons += _compare(setting, loaded, chosen, baselines.at(setting.config.page_size), progress)
    return {
        "bench": "lossless",
        **found,
        "settings": {
            "model": settings.config.model,
            "dtype": llm.assembled.dtype,
            "device": llm.assembled.device,
            "baseline": "speculation off, one request at a time, whole prompts, no prefix cache, nothing ahead of the host",
            "requests": len(requests),
            "max_tokens": settings.max_tokens,
            "temperatures": sorted({request.sampling.temperature for request in requests}),
            "seeds": settings.seeds,
            "page_sizes": [settings.config.page_size, small.page_size],
            "self_test": "exact" if llm.assembled.self_test.exact else llm.assembled.self_test.failure,
        },
        "results": {
            "same": all(comparison.same for comparison in comparisons),
            "not_tried": [
                found.setting for found in comparisons if found.setting.startswith(PREEMPTION) and not found.preemptions
            ],
            "settings": [asdict(comparison) for comparison in comparisons],
        },
    }


def differing(expected: Sequence[object], found: Sequence[object]) -> list[int]:
    """Places where two sequences differ; what one has and the other lacks counts as well."""
    shorter = min(len(expected), len(found))
    return [i for i in range(shorter) if expected[i] != found[i]] + list(range(shorter, max(len(expected), len(found))))


def _bits(entry: TokenLogprob) -> tuple[object, ...]:
    """Floats as their bytes: -0.0 is not 0.0, and NaN equals itself."""
    return entry.token, struct.pack("<d", entry.logprob), tuple((t, struct.pack("<d", p)) for t, p in entry.top)


class _Baselines:
    """Plain answers by page size. On the CPU a page is attention's tile, so page sizes differ in the last bits."""

    def __init__(self, settings: LosslessSettings, loaded: assemble.LoadedModel, progress: Progress) -> None:
        self._config = replace(
            settings.config,
            drafters=(),
            draft_model=None,
            prefix_cache=False,
            max_batch=1,
            chunk_tokens=WHOLE_PROMPT,
            depth=0,
        )
        self._loaded = loaded
        self._progress = progress
        self._answers: dict[int, dict[str, Completion]] = {}
        self.llm = LLM(assemble.build(self._config, progress, loaded))
        cases = _cases(settings, self.llm, progress)
        self.requests = make_requests(cases, self.llm.tokenizer.vocab_size, settings.seeds, settings.max_tokens)

    def at(self, page_size: int) -> dict[str, Completion]:
        if page_size not in self._answers:
            config = replace(self._config, page_size=page_size)
            llm = LLM(assemble.build(config, self._progress, self._loaded))
            alone = [[request] for request in self.requests]
            done = _generate(llm, alone, self._progress, f"Baseline, pages of {page_size}")
            self._answers[page_size] = {answer.request_id: answer for answer in done}
        return self._answers[page_size]


def _cases(settings: LosslessSettings, llm: LLM, progress: Progress) -> tuple[Case, ...]:
    prompts = suite.load()
    types = dict.fromkeys(prompt.content_type for prompt in prompts)
    spread = [next(prompt for prompt in prompts if prompt.content_type == name) for name in types]
    chosen = [replace(prompt, turns=prompt.turns[:1]) for prompt in spread[: settings.prompts]]
    room = llm.engine.max_model_len - settings.max_tokens
    return prepare(chosen, llm.tokenizer, greedy_answers(llm, settings.max_tokens), room, progress).fitting


def _compare(
    setting: Setting,
    loaded: assemble.LoadedModel,
    requests: Sequence[Request],
    expected: Mapping[str, Completion],
    progress: Progress,
) -> Iterator[Comparison]:
    """One engine, one comparison for each pass.

    The adversary knows the answers, so that some drafts are right; not where requests have to live long enough to be
    pushed out.
    """
    oracle = {} if setting.only_short else {name: tuple(answer.token_ids) for name, answer in expected.items()}
    llm = LLM(assemble.build(setting.config, progress, loaded, oracle=oracle))
    for name, size in setting.passes:
        before = llm.engine.status().num_preemptions
        comparison = Comparison(setting=name)
        for found in _generate(llm, [requests[i : i + size] for i in range(0, len(requests), size)], progress, name):
            comparison.add(expected[found.request_id], found)
        comparison.preemptions = llm.engine.status().num_preemptions - before
        yield comparison


def _generate(llm: LLM, groups: Sequence[Sequence[Request]], progress: Progress, description: str) -> Iterator[Completion]:
    with progress.task(description, sum(map(len, groups))) as advance:
        for group in groups:
            yield from llm.generate(group)
            advance(len(group))


def _tight_gb(config: EngineConfig, loaded: assemble.LoadedModel, num_pages: int) -> float:
    """The size of a cache of so many pages."""
    stored = cache_dtype(loaded.model.dtype, loaded.model.device)
    return num_pages * page_bytes(loaded.model.cache_specs, config.page_size, stored) * 1.0001 / 1e9
