"""`specdec bench lossless`: does anything but (prompt, sampling parameters, seed) change a token or a logprob?

The baseline decodes plainly, one request at a time, the prompt in one piece. Every setting repeats the same requests with
speculation, rounds ahead of the host, company that comes and goes, cut prompts, cached prefixes or forced preemption, and must
give the same bits.
"""

import itertools
import random
import struct
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from specdec import assemble
from specdec.bench import suite
from specdec.bench.cases import Case, greedy_answers, prepare
from specdec.bench.environment import conditions
from specdec.bench.lossless_settings import (
    BATCH_SIZES,
    HOST_DRAFTER,
    PREEMPTION,
    SMALL_PAGE,
    WHOLE_PROMPT,
    Pass,
    Setting,
    make_requests,
    settings_for,
    under_pressure,
    with_wishes,
)
from specdec.cache.kinds import cache_dtype, page_bytes
from specdec.config import EngineConfig
from specdec.drafters.adversarial.drafter import oracle_key
from specdec.drafters.registry import on_host
from specdec.llm import LLM, Completion, complete
from specdec.progress import Progress
from specdec.request import FinishReason, Request, RequestOutput, TokenLogprob

_CACHE_GB = 2.0  # per engine, if not given
_LEAVING = 1 / 8  # of the requests of a pass with traffic


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
        """Compare one request, bit for bit; one that left early as far as it got."""
        left = found.finish_reason is FinishReason.ABORT
        until = len(found.token_ids) if left else None
        tokens = differing(expected.token_ids[:until], found.token_ids)
        logprobs = differing([_bits(x) for x in expected.logprobs[:until]], [_bits(x) for x in found.logprobs])
        end = not left and (expected.finish_reason, expected.stop_reason) != (found.finish_reason, found.stop_reason)
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
    for setting in settings_for(settings.config, small, tight, settings.batch_sizes):
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
            "tokens": sum(comparison.tokens for comparison in comparisons),
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
    answers = {} if setting.only_short else {oracle_key(r.prompt_ids, r.sampling): expected[r.request_id] for r in requests}
    oracle = {key: tuple(answer.token_ids) for key, answer in answers.items()}
    own = {HOST_DRAFTER: on_host(_what_followed)}
    llm = LLM(assemble.build(setting.config, progress, loaded, oracle, setting.fixed_shapes, own))
    for pass_ in setting.passes:
        asked = with_wishes(requests, setting.config.drafters) if pass_.odd else requests
        before = llm.engine.status().num_preemptions
        comparison = Comparison(setting=pass_.name)
        for found in _served(llm, pass_, asked, progress):
            comparison.add(expected[found.request_id], found)
        comparison.preemptions = llm.engine.status().num_preemptions - before
        yield comparison


def _served(llm: LLM, pass_: Pass, requests: Sequence[Request], progress: Progress) -> Iterator[Completion]:
    if pass_.at_once:
        groups = [requests[i : i + pass_.at_once] for i in range(0, len(requests), pass_.at_once)]
        yield from _generate(llm, groups, progress, pass_.name)
    else:
        yield from _traffic(llm, requests, progress, pass_.name)


def _generate(llm: LLM, groups: Sequence[Sequence[Request]], progress: Progress, description: str) -> Iterator[Completion]:
    with progress.task(description, sum(map(len, groups))) as advance:
        for group in groups:
            yield from complete(llm.generate(group))
            advance(len(group))


def _traffic(llm: LLM, requests: Sequence[Request], progress: Progress, description: str) -> list[Completion]:
    """Requests come before random rounds, a few at once or after a pause, and one in eight leaves early."""
    random_ = random.Random(0)  # anyone sees the same traffic
    engine, started, round_ = llm.engine, time.perf_counter(), 0
    done = {request.request_id: Completion(request_id=request.request_id) for request in requests}
    arrivals, leaves = deque[tuple[int, Request]](), list[tuple[int, str]]()
    for request in random_.sample(requests, len(requests)):
        round_ += random_.choice((0, 0, 1, 2, 5))
        arrivals.append((round_, request))
        if random_.random() < _LEAVING:
            leaves.append((round_ + random_.randrange(request.sampling.max_tokens), request.request_id))

    def sink(output: RequestOutput) -> None:
        done[output.request_id].add(output, time.perf_counter() - started)

    with progress.task(description, len(requests)) as advance:
        for round_ in itertools.count():
            while arrivals and arrivals[0][0] <= round_:
                engine.submit(arrivals.popleft()[1], sink)
                advance(1)
            for _, name in (leave for leave in leaves if leave[0] == round_):
                engine.abort(name)
            if not engine.step() and not arrivals:
                break
    return list(done.values())


def _what_followed(tokens: Sequence[int]) -> Sequence[int]:
    """A draft in plain Python: what followed the last token where it stood before."""
    places = (place for place in range(len(tokens) - 2, -1, -1) if tokens[place] == tokens[-1])
    place = next(places, len(tokens) - 1)
    return list(tokens[place + 1 : place + 4])


def _tight_gb(config: EngineConfig, loaded: assemble.LoadedModel, num_pages: int) -> float:
    """The size of a cache of so many pages."""
    stored = cache_dtype(loaded.model.dtype, loaded.model.device)
    return num_pages * page_bytes(loaded.model.cache_specs, config.page_size, stored) * 1.0001 / 1e9
