"""`specdec bench speed --shape`: the engine on random weights, one stream and many, plain and with drafters.

Prompts are random tokens and tokens are drawn at T = 1, so that nothing repeats and rows go to many experts: n-gram
drafting finds nothing, which shows what it costs. A request that is given its own answer as the text it expects has drafts that
are always right, which shows what verification gains.
"""

import gc
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from specdec import assemble
from specdec.bench.environment import conditions
from specdec.bench.shapes import load_shape
from specdec.bench.statistics import over_repeats
from specdec.cache.kinds import cache_dtype, page_bytes
from specdec.config import EngineConfig
from specdec.llm import LLM, Completion
from specdec.models.base import Model
from specdec.progress import Progress
from specdec.request import Request, SamplingParams

PLAIN, NGRAM, ORACLE = "plain", "ngram, nothing to match", "told its answer (synthetic, always right)"
_BATCH_PROMPT, _BATCH_TOKENS = 64, 128
_ROUND_ROOM = 64  # positions that a round may write beyond the last token


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeSettings:
    """What to measure.

    oracle_nodes: tokens of a round whose drafts are always right. streams: numbers of concurrent requests.
    """

    shape: str
    config: EngineConfig
    context: int = 1024
    tokens: int = 256
    repeats: int = 3
    oracle_nodes: int = 5
    streams: tuple[int, ...] = (1, 8, 32, 64)


def run(settings: ShapeSettings, progress: Progress) -> dict[str, Any]:
    """Make the model, measure, and return the JSON data of the bench.

    Raises:
        ConfigError: a bad setting or shape.
    """
    started = time.perf_counter()
    loaded = load_shape(settings.shape, dtype=settings.config.dtype, device=settings.config.device)
    base = replace(
        settings.config,
        max_batch=settings.config.max_batch or max(settings.streams),
        cache_gb=settings.config.cache_gb or _cache_gb(settings, loaded.model),
        draft_model=None,
    )
    engines = {
        PLAIN: LLM(assemble.build(replace(base, drafters=()), progress, loaded)),
        NGRAM: LLM(assemble.build(replace(base, drafters=("ngram",)), progress, loaded)),
    }
    told = replace(base, drafters=("ngram", "prediction"), adaptive=False, max_tree_nodes=settings.oracle_nodes)
    engines[ORACLE] = LLM(assemble.build(told, progress, loaded))
    gc.collect()
    gc.freeze()  # as `specdec serve` does
    setup_seconds = time.perf_counter() - started
    single, same = _single(settings, engines, loaded.model.config.vocab_size, progress)
    many = _many(settings, engines, loaded.model.config.vocab_size, progress)
    gc.unfreeze()
    return {
        "bench": "speed of a shape",
        **conditions(engines[PLAIN].assembled.device),
        "settings": {
            "shape": settings.shape,
            "weights": "random",
            "dtype": engines[PLAIN].assembled.dtype,
            "device": engines[PLAIN].assembled.device,
            "decoding": "T = 1, stop tokens ignored",
            "one stream": f"{settings.context} random prompt tokens, {settings.tokens} new ones, seconds after the first round",
            "many streams": f"{_BATCH_PROMPT} random prompt tokens, {_BATCH_TOKENS} new ones each, from first token to last",
            "while all decode": "from the first token of the last stream to start, to the end of the first to end",
            "told its answer": f"drafts the right next {settings.oracle_nodes - 1} tokens every round",
            "repeats": settings.repeats,
            "self_test": engines[PLAIN].assembled.self_test.failure or "exact",
            "setup_seconds": round(setup_seconds, 1),
        },
        "results": {
            "one stream": single,
            "same tokens everywhere": same,
            "many streams": many,
            "cost of a round": _costs(engines[NGRAM]),
        },
    }


def _cache_gb(settings: ShapeSettings, model: Model) -> float:
    """What an engine needs for the largest of the measurements."""
    page_size = settings.config.page_size
    of_batch = max(settings.streams) * -(-(_BATCH_PROMPT + _BATCH_TOKENS + _ROUND_ROOM) // page_size)
    of_single = -(-(settings.context + settings.tokens + _ROUND_ROOM) // page_size)
    each = page_bytes(model.cache_specs, page_size, cache_dtype(model.dtype, model.device))
    return float((max(of_batch, of_single) + 4) * each) / 1e9


def rows(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table."""
    results = data["results"]
    lines = [
        [f"1 stream, context, {name}", f"{found['tokens_per_second']['median']:.1f}", f"{found['over_plain']['median']:.3f}"]
        for name, found in results["one stream"].items()
    ]
    for count, found in results["many streams"].items():
        lines += [
            [f"{count} streams, {name}", f"{of['tokens_per_second']['median']:.1f}", f"{of['over_plain']['median']:.3f}"]
            for name, of in found.items()
        ]
        lines.append([f"{count} streams, plain, while all decode", f"{found[PLAIN]['while_all_decode']['median']:.1f}", ""])
    for cost in results["cost of a round"]:
        what = f"round of {cost['rows']} rows, context {cost['context']}"
        lines.append([what, f"{cost['seconds'] * 1e3:.2f} ms", f"{cost['over_one_row']:.2f}"])
    return ["what", "tok/s", "over plain (rounds: over one row)"], lines


def _single(
    settings: ShapeSettings, engines: dict[str, LLM], vocab_size: int, progress: Progress
) -> tuple[dict[str, Any], bool]:
    """One request at a time; also whether all engines gave the same tokens."""
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    same = True
    with progress.task("One stream", len(engines) * (settings.repeats + 1)) as advance:
        for repeat in range(-1, settings.repeats):  # the first one warms up
            request = shape_request(f"single {repeat}", settings.context, settings.tokens, repeat + 1, vocab_size)
            answer: list[int] = []
            for name, llm in engines.items():
                tokens, speed = _decode(llm, replace(request, prediction_ids=tuple(answer) if name == ORACLE else ()))
                same &= answer in ([], tokens)
                answer = tokens
                if repeat >= 0:
                    speeds[name].append(speed)
                advance(1)
    return _beside_plain(speeds), same


def _decode(llm: LLM, request: Request) -> tuple[list[int], float]:
    """The tokens, and tokens per second after the round that gave the first ones."""
    arrivals = [(output.token_ids, time.perf_counter()) for output in llm.stream(request) if output.token_ids]
    tokens = [token for ids, _ in arrivals for token in ids]
    return tokens, (len(tokens) - len(arrivals[0][0])) / (arrivals[-1][1] - arrivals[0][1])


def _many(settings: ShapeSettings, engines: dict[str, LLM], vocab_size: int, progress: Progress) -> dict[str, Any]:
    found = {}
    compared = (PLAIN, NGRAM)
    with progress.task("Many streams", len(settings.streams) * len(compared) * (settings.repeats + 1)) as advance:
        for count in settings.streams:
            speeds: dict[str, list[float]] = {name: [] for name in compared}
            steady: dict[str, list[float]] = {name: [] for name in compared}
            for repeat in range(-1, settings.repeats):
                requests = [
                    shape_request(f"{count} {repeat} {i}", _BATCH_PROMPT, _BATCH_TOKENS, 1000 * repeat + i + 1000, vocab_size)
                    for i in range(count)
                ]
                for name in compared:
                    completions = engines[name].generate(requests)
                    if repeat >= 0:
                        speeds[name].append(_throughput(completions))
                        steady[name].append(_steady_throughput(completions))
                    advance(1)
            found[str(count)] = _beside_plain(speeds)
            for name, values in steady.items():
                found[str(count)][name]["while_all_decode"] = asdict(over_repeats(values))
    return found


def _throughput(completions: Sequence[Completion]) -> float:
    """Tokens per second of all, first ones left out, from the first token of any to the last of all."""
    first, last = min(done.ttft for done in completions), max(done.seconds for done in completions)
    return sum(len(done.token_ids) - 1 for done in completions) / (last - first)


def _steady_throughput(completions: Sequence[Completion]) -> float:
    """Tokens per second of all, from the first token of the last one to start to the last token of the first one to end."""
    start, end = max(done.ttft for done in completions), min(done.seconds for done in completions)
    tokens = sum(count for done in completions for seconds, count in done.arrivals if start < seconds <= end)
    return tokens / (end - start) if end > start else 0.0


def _beside_plain(speeds: dict[str, list[float]]) -> dict[str, Any]:
    return {
        name: {
            "tokens_per_second": asdict(over_repeats(values)),
            "over_plain": asdict(over_repeats([a / b for a, b in zip(values, speeds[PLAIN], strict=True)])),
        }
        for name, values in speeds.items()
    }


def _costs(llm: LLM) -> list[dict[str, Any]]:
    """What the engine measured at its start: a round of a chain, host included."""
    costs = llm.assembled.costs
    one = {cost.context: cost.seconds for cost in costs if cost.rows == 1}
    return [asdict(cost) | {"over_one_row": cost.seconds / one[cost.context]} for cost in costs]


def shape_request(name: str, prompt: int, tokens: int, seed: int, vocab_size: int) -> Request:
    """A request of random tokens, answered at T = 1."""
    ids = np.random.default_rng(seed).integers(0, vocab_size, prompt)
    sampling = SamplingParams(temperature=1.0, seed=seed, max_tokens=tokens, ignore_eos=True)
    return Request(request_id=name, prompt_ids=tuple(ids.tolist()), sampling=sampling)
