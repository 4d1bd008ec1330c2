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
from specdec.assemble import LoadedModel
from specdec.bench.environment import conditions
from specdec.bench.shapes import load_shape
from specdec.bench.statistics import over_repeats
from specdec.config import EngineConfig
from specdec.errors import ConfigError
from specdec.llm import LLM, Completion, complete
from specdec.progress import Progress
from specdec.request import Request, SamplingParams

PLAIN, NGRAM, TOLD = "plain", "ngram, nothing to match", "told its answer (synthetic, always right)"
CONTENDERS = {"plain": PLAIN, "ngram": NGRAM, "told": TOLD}  # by what they are called on the command line
_BATCH_PROMPT, _BATCH_TOKENS = 64, 128
_ROUND_ROOM = 64  # positions that a round may write beyond the last token


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeSettings:
    """What to measure.

    contenders: keys of `CONTENDERS`. context: prompt tokens of the one stream; None leaves it out. streams: numbers of
    concurrent requests; () leaves them out. told_nodes: tokens of a round whose drafts are always right.
    """

    shape: str
    config: EngineConfig
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    context: int | None = 1024
    tokens: int = 256
    repeats: int = 3
    told_nodes: int = 5
    streams: tuple[int, ...] = (1, 8, 32, 64)

    @property
    def alone(self) -> tuple[str, ...]:
        """Who answers one request at a time."""
        return tuple(CONTENDERS[name] for name in self.contenders) if self.context is not None else ()

    @property
    def together(self) -> tuple[str, ...]:
        """Who answers many at once."""
        return tuple(CONTENDERS[name] for name in self.contenders if CONTENDERS[name] != TOLD) if self.streams else ()


def run(settings: ShapeSettings, progress: Progress) -> dict[str, Any]:
    """Make the model, measure, and return the JSON data of the bench.

    Raises:
        ConfigError: a bad setting or shape.
    """
    _check(settings)
    started = time.perf_counter()
    loaded = load_shape(settings.shape, dtype=settings.config.dtype, device=settings.config.device)
    engines = _engines(settings, loaded, progress)
    gc.collect()
    gc.freeze()  # as `specdec serve` does
    setup_seconds = time.perf_counter() - started
    vocab_size = loaded.model.config.vocab_size
    single, same = _single(settings, engines, vocab_size, progress)
    many = _many(settings, engines, vocab_size, progress)
    gc.unfreeze()
    assembled = next(iter(engines.values())).assembled
    return {
        "bench": "speed of a shape",
        **conditions(assembled.device),
        "settings": {
            "shape": settings.shape,
            "weights": "random",
            "dtype": assembled.dtype,
            "device": assembled.device,
            "decoding": "T = 1, stop tokens ignored",
            "one stream": f"{settings.context} random prompt tokens, {settings.tokens} new ones, seconds after the first round",
            "many streams": f"{_BATCH_PROMPT} random prompt tokens, {_BATCH_TOKENS} new ones each, from first token to last",
            "while all decode": "from the first token of the last stream to start, to the end of the first to end",
            "told its answer": f"drafts the right next {settings.told_nodes - 1} tokens every round",
            "repeats": settings.repeats,
            "self_test": assembled.self_test.failure or "exact",
            "setup_seconds": round(setup_seconds, 1),
        },
        "results": {
            "one stream": single,
            "same tokens everywhere": same,
            "many streams": many,
            "cost of a round": _costs(engines[NGRAM]) if NGRAM in engines else [],
        },
    }


def _check(settings: ShapeSettings) -> None:
    known = ", ".join(CONTENDERS)
    for name in settings.contenders:
        if name not in CONTENDERS:
            raise ConfigError(f"There is no contender {name!r}; there are {known}.")
    if settings.alone == (TOLD,):
        raise ConfigError("The contender told is told the answer of another one: name plain or ngram beside it.")
    if not settings.alone and not settings.together:
        raise ConfigError(f"Nothing is to be measured: give --context or --streams, and contenders of {known}.")


def _engines(settings: ShapeSettings, loaded: LoadedModel, progress: Progress) -> dict[str, LLM]:
    """Of the contenders that answer anything."""
    base = replace(
        settings.config, max_batch=settings.config.max_batch or max(settings.streams, default=1), draft_model=None, drafters=()
    )
    if base.cache_gb is None:
        base = replace(base, cache_gb=assemble.cache_gb_for(base, loaded.model, _pages(settings)))
    configs = {
        PLAIN: base,
        NGRAM: replace(base, drafters=("ngram",)),
        TOLD: replace(base, drafters=("ngram", "prediction"), adaptive=False, max_tree_nodes=settings.told_nodes),
    }
    wanted = {*settings.alone, *settings.together}
    return {name: LLM(assemble.build(config, progress, loaded)) for name, config in configs.items() if name in wanted}


def _pages(settings: ShapeSettings) -> int:
    """What the largest of the measurements needs, and a few more."""
    page_size = settings.config.page_size
    of_batch = max(settings.streams, default=0) * -(-(_BATCH_PROMPT + _BATCH_TOKENS + _ROUND_ROOM) // page_size)
    of_single = -(-((settings.context or 0) + settings.tokens + _ROUND_ROOM) // page_size)
    return max(of_batch, of_single) + 4


def rows(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of speeds."""
    results = data["results"]
    groups = [("1 stream, context", results["one stream"])]
    groups += [(f"{count} streams", found) for count, found in results["many streams"].items()]
    lines = [
        [f"{what}, {name}", *(_median(of, column) for column in ("tokens_per_second", "over_plain", "while_all_decode"))]
        for what, found in groups
        for name, of in found.items()
    ]
    return ["what", "tok/s", "over plain", "tok/s while all decode"], lines


def cost_rows(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of costs: one row's, and how many times as much more rows cost."""
    costs = data["results"]["cost of a round"]
    counts = sorted({cost["rows"] for cost in costs})
    found = {(cost["context"], cost["rows"]): cost for cost in costs}
    lines = [
        [f"{context}", f"{found[context, 1]['seconds'] * 1e3:.2f} ms"]
        + [f"{found[context, count]['over_one_row']:.2f}" for count in counts[1:]]
        for context in sorted({cost["context"] for cost in costs})
    ]
    return ["round, context", "1 row", *(f"{count}" for count in counts[1:])], lines


def _median(of: dict[str, Any], column: str) -> str:
    if column not in of:
        return ""
    return f"{of[column]['median']:.3f}" if column == "over_plain" else f"{of[column]['median']:.1f}"


def _single(
    settings: ShapeSettings, engines: dict[str, LLM], vocab_size: int, progress: Progress
) -> tuple[dict[str, Any], bool]:
    """One request at a time; also whether all engines gave the same tokens."""
    speeds: dict[str, list[float]] = {name: [] for name in settings.alone}
    same = True
    with progress.task("One stream", len(speeds) * (settings.repeats + 1)) as advance:
        for repeat in range(-1, settings.repeats if speeds else -1):  # the first one warms up
            request = shape_request(f"single {repeat}", settings.context or 1, settings.tokens, repeat + 1, vocab_size)
            answer: list[int] = []
            for name in speeds:
                told = replace(request, prediction_ids=tuple(answer) if name == TOLD else ())
                tokens, speed = _decode(engines[name], told)
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
    compared = settings.together
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
                    completions = complete(engines[name].generate(requests))
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
    found: dict[str, Any] = {}
    for name, values in speeds.items():
        found[name] = {"tokens_per_second": asdict(over_repeats(values))}
        if PLAIN in speeds:
            found[name]["over_plain"] = asdict(over_repeats([a / b for a, b in zip(values, speeds[PLAIN], strict=True)]))
    return found


def _costs(llm: LLM) -> list[dict[str, Any]]:
    """What the engine measured at its start: a round of a chain."""
    costs = llm.assembled.costs
    one = {cost.context: cost.seconds for cost in costs if cost.rows == 1}
    return [asdict(cost) | {"over_one_row": cost.seconds / one[cost.context]} for cost in costs]


def shape_request(name: str, prompt: int, tokens: int, seed: int, vocab_size: int) -> Request:
    """A request of random tokens, answered at T = 1."""
    ids = np.random.default_rng(seed).integers(0, vocab_size, prompt)
    sampling = SamplingParams(temperature=1.0, seed=seed, max_tokens=tokens, ignore_eos=True)
    return Request(request_id=name, prompt_ids=tuple(ids.tolist()), sampling=sampling)
