"""`specdec bench lossless`: does anything but (prompt, sampling parameters, seed) change a token or a logprob?

The baseline decodes plainly, one request at a time, the prompt in one piece. Every setting repeats the same requests with
speculation, company, cut prompts, cached prefixes or forced preemption, and must give the same bits.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from specdec import assemble
from specdec.bench import suite
from specdec.bench.cases import Case, greedy_answers, prepare
from specdec.bench.environment import conditions
from specdec.bench.lossless_settings import BATCH_SIZES, Setting, make_requests, settings_for
from specdec.cache.pool import KVPool
from specdec.config import EngineConfig
from specdec.llm import LLM, Completion
from specdec.progress import Progress
from specdec.request import Request, TokenLogprob


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
        settings, max_tokens=min(settings.max_tokens, 12), prompts=min(settings.prompts, 3), seeds=1, batch_sizes=(1, 3, 8)
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
    base = replace(
        settings.config, drafters=(), draft_model=None, prefix_cache=False, max_batch=1, chunk_tokens=1 << 16, adaptive=True
    )
    loaded = assemble.load(settings.config, progress)
    llm = LLM(assemble.build(base, progress, loaded))
    cases = _cases(settings, llm, progress)
    requests = make_requests(cases, llm.tokenizer.vocab_size, settings.seeds, settings.max_tokens)
    expected = {done.request_id: done for done in _generate(llm, [requests[i : i + 1] for i in range(len(requests))], progress)}
    found = conditions(llm.assembled.device)
    oracle: dict[str, tuple[int, ...]] = {name: tuple(done.token_ids) for name, done in expected.items()}
    comparisons: list[Comparison] = []
    for setting in settings_for(settings.config, _preempting_gb(settings.config, loaded, requests), settings.batch_sizes):
        comparisons += _compare(setting, loaded, requests, expected, oracle, progress)
    return {
        "bench": "lossless",
        **found,
        "settings": {
            "model": settings.config.model,
            "dtype": llm.assembled.dtype,
            "device": llm.assembled.device,
            "baseline": "speculation off, one request at a time, whole prompts, no prefix cache",
            "requests": len(requests),
            "max_tokens": settings.max_tokens,
            "temperatures": sorted({request.sampling.temperature for request in requests}),
            "seeds": settings.seeds,
            "self_test": "exact" if llm.assembled.self_test.exact else llm.assembled.self_test.failure,
        },
        "results": {
            "same": all(comparison.same for comparison in comparisons),
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
    oracle: Mapping[str, Sequence[int]],
    progress: Progress,
) -> Iterator[Comparison]:
    """One engine, one comparison for each of the setting's passes."""
    llm = LLM(assemble.build(setting.config, progress, loaded, oracle=oracle))
    for name, size in setting.passes:
        before = llm.engine.status().num_preemptions
        comparison = Comparison(setting=name)
        for found in _generate(llm, [requests[i : i + size] for i in range(0, len(requests), size)], progress, name):
            comparison.add(expected[found.request_id], found)
        comparison.preemptions = llm.engine.status().num_preemptions - before
        yield comparison


def _generate(
    llm: LLM, groups: Sequence[Sequence[Request]], progress: Progress, description: str = "Baseline"
) -> Iterator[Completion]:
    with progress.task(description, sum(map(len, groups))) as advance:
        for group in groups:
            yield from llm.generate(group)
            advance(len(group))


def _preempting_gb(config: EngineConfig, loaded: assemble.LoadedModel, requests: Sequence[Request]) -> float:
    """A cache that holds the longest request with its largest tree, and hardly more: two together push each other out."""
    longest = max(len(request.prompt_ids) + request.sampling.max_tokens for request in requests) + config.max_tree_nodes
    pages = max(-(-longest // config.page_size) + 1, 3)
    return pages * KVPool.page_bytes(loaded.model.cache_specs, config.page_size, torch.float32) * 1.0001 / 1e9
