"""`specdec bench load`: engines and servers under steady traffic, one after the other in turns."""

import secrets
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

from specdec import assemble
from specdec.bench import suite
from specdec.bench.cases import TextTools
from specdec.bench.environment import conditions
from specdec.bench.load import odd
from specdec.bench.load.client import ServerContender
from specdec.bench.load.engine import EngineContender
from specdec.bench.load.measures import Measures
from specdec.bench.load.process import find, started
from specdec.bench.load.prompts import Question, Questions, RandomQuestions, SuiteQuestions
from specdec.bench.load.results import DRAFTED, PLAIN, SERVER, Row, summarise
from specdec.bench.load.run import Contender, Plan, perform
from specdec.bench.load.traffic import Closed, Limits, Traffic
from specdec.bench.shapes import load_shape
from specdec.config import EngineConfig
from specdec.engine.engine import Engine
from specdec.errors import ConfigError
from specdec.models.base import Model
from specdec.models.info import model_info
from specdec.models.source import resolve
from specdec.progress import NoProgress, Progress
from specdec.request import SamplingParams, SpeculationParams
from specdec.text.tokenizer import Tokenizer

_RANDOM_TOKENS = 64  # of a random prompt, if not told
_ROUND_ROOM = 64  # positions that a round may write beyond the last token
_FEWEST_REQUESTS = 16  # that are measured, if not told
_OPEN_WARM_UP = 16
_TIMED_REQUESTS = 2048  # that are prepared where seconds end the measured stretch
_ODD_QUESTIONS = 64  # prompts of odd requests, which take turns


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadSettings:
    """What to measure.

    warm_up, requests: see `Limits`; None leaves them to the traffic. prompt_tokens: of random prompts; None takes the suite's.
    temperature: None is 0 for a suite's prompts, 1 for random ones. odd: names of `ODD`; one of a closed loop's requests is
    then such a one. serve: the command that serves a config; None measures no server. url: a server that runs; it is measured
    alone.
    """

    config: EngineConfig
    traffic: Sequence[Traffic]
    warm_up: int | None = None
    requests: int | None = None
    seconds: float | None = None
    repeats: int = 3
    suite: Path | None = None
    content: tuple[str, ...] = ()
    shape: str | None = None
    prompt_tokens: int | None = None
    max_tokens: int = 128
    temperature: float | None = None
    seen: bool = False
    odd: tuple[str, ...] = ()
    serve: Callable[[EngineConfig], Sequence[str]] | None = None
    url: str | None = None
    api_key: str | None = None
    seed: int = 0

    @property
    def random(self) -> bool:
        """Whether prompts are random tokens."""
        return self.prompt_tokens is not None or self.shape is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is measured, with which prompts; config: with the sizes that the traffic asks for."""

    contenders: Sequence[Contender]
    questions: Questions
    config: EngineConfig
    device: str
    dtype: str


def run(settings: LoadSettings, progress: Progress) -> dict[str, Any]:
    """Load, measure, and return the JSON data of the bench.

    Raises:
        ConfigError: a bad setting, model, suite or server.
        RoundError: a request failed.
    """
    settings = replace(settings, traffic=_ordinary(settings))
    if settings.shape is not None and (settings.serve or settings.url):
        raise ConfigError("Random weights have no server: leave --shape out, or --server and --url.")
    subject = _running(settings, progress) if settings.url is not None else _own(settings, progress)
    found = conditions(subject.device)
    rows = measure_all(settings, subject.contenders, subject.questions, progress)
    return {"bench": "load", **found, "settings": _told(settings, subject), "results": summarise(rows)}


def _ordinary(settings: LoadSettings) -> Sequence[Traffic]:
    """The traffic without the odd request, which takes the place of one.

    Raises:
        ConfigError: there is no odd request of a name, or no place for it.
    """
    if not settings.odd:
        return settings.traffic
    odd.check(settings.odd)
    found = [Closed(traffic.concurrency - 1) for traffic in settings.traffic if isinstance(traffic, Closed)]
    if len(found) < len(settings.traffic) or min(traffic.concurrency for traffic in found) < 1:
        raise ConfigError("An odd request runs beside ordinary ones: with --odd, --concurrency must be 2 or more.")
    return found


def measure_all(settings: LoadSettings, contenders: Sequence[Contender], questions: Questions, progress: Progress) -> list[Row]:
    """Every traffic in turn; in each repeat every contender, alone and then beside each odd request that it can have."""

    @lru_cache(maxsize=1)
    def prepared(run: int, number: int) -> list[Question]:
        return [questions.question(run, i) for i in range(number)]

    turns = list(product(settings.traffic, range(settings.repeats), (None, *settings.odd), contenders))
    measured: dict[tuple[str, str, str | None], list[Measures]] = {}
    with progress.task("Measuring", len(turns)) as advance:
        for index, (traffic, _, kind, contender) in enumerate(turns):
            # contenders get the same prompts, which are new to each; those of one server are new to it each time
            run = index if settings.url is not None else index // len(contenders)
            company = odd.ODD[kind](contender.drafters) if kind is not None else None
            if kind is None or company is not None:
                plan = _plan(settings, traffic, company, partial(prepared, run))
                measured.setdefault((traffic.name, contender.name, kind), []).append(perform(contender, plan))
            advance(1)
    return [Row(name, contender, repeats, kind) for (name, contender, kind), repeats in measured.items()]


def _plan(settings: LoadSettings, traffic: Traffic, company: odd.Odd | None, prepared: Callable[[int], list[Question]]) -> Plan:
    limits, number = limits_for(settings, traffic)
    questions = prepared(number + (_ODD_QUESTIONS if settings.odd else 0))
    return Plan(
        traffic=traffic,
        limits=limits,
        questions=questions[:number],
        sampling=_sampling(settings),
        seen=settings.seen,
        odd=company,
        odd_questions=questions[number:],
    )


def limits_for(settings: LoadSettings, traffic: Traffic) -> tuple[Limits, int]:
    """When measuring begins and ends, and how many requests that takes at most.

    In a closed loop the warm-up has at least the requests that begin together. As many as are in flight may end in the round
    that begins the measured stretch and in the one that ends it, and the next are sent by then.
    """
    closed = isinstance(traffic, Closed)
    requests = settings.requests or (_TIMED_REQUESTS if settings.seconds else max(_FEWEST_REQUESTS, 2 * traffic.lanes))
    if closed:
        warm_up = max(traffic.lanes, settings.warm_up or 0)
        return Limits(warm_up, requests, settings.seconds), warm_up + requests + 3 * traffic.lanes
    warm_up = _OPEN_WARM_UP if settings.warm_up is None else settings.warm_up
    return Limits(warm_up, requests, settings.seconds), 2 * (warm_up + requests)


def _sampling(settings: LoadSettings) -> SamplingParams:
    """Every answer has all its tokens: in text stop tokens are forbidden, in random tokens they mean nothing."""
    tokens, random = settings.max_tokens, settings.random
    temperature = float(random) if settings.temperature is None else settings.temperature
    return SamplingParams(temperature=temperature, max_tokens=tokens, min_tokens=0 if random else tokens, ignore_eos=random)


def _own(settings: LoadSettings, progress: Progress) -> Subject:
    """Engines in this process, and servers that are started for their turns."""
    config = settings.config
    if settings.shape is not None:
        loaded = load_shape(settings.shape, dtype=config.dtype, device=config.device)
    else:
        loaded = assemble.load(config, progress)
    model = loaded.model
    context = config.max_model_len or model.config.max_position_embeddings
    questions = _questions(settings, loaded.tokenizer, model.config.vocab_size, context)
    config = _sized(settings, questions, model)
    plain = replace(config, drafters=(), draft_model=None)
    configs = {PLAIN: plain, DRAFTED: config} if config.drafters else {PLAIN: plain}
    contenders: list[Contender] = [
        EngineContender(name, partial(_engine, each, loaded), each.drafters) for name, each in configs.items()
    ]
    if (serve := settings.serve) is not None:
        contenders += [
            ServerContender(SERVER + name, partial(started, serve(each), settings.api_key), each.drafters)
            for name, each in configs.items()
        ]
    return Subject(
        contenders=contenders,
        questions=questions,
        config=config,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
    )


def _running(settings: LoadSettings, progress: Progress) -> Subject:
    """A server that runs already, plain and drafted by what its requests say. The model's own files tell what prompts are."""
    assert settings.url is not None, "the caller has looked"
    address, context = find(settings.url, settings.api_key)
    source = resolve(settings.config.model, progress, weights=False)
    questions = _questions(settings, Tokenizer.load(source), model_info(source).config.vocab_size, context, _nonce())
    kinds = {PLAIN: (), DRAFTED: settings.config.drafters} if settings.config.drafters else {PLAIN: ()}
    contenders = [
        ServerContender(SERVER + name, lambda: nullcontext(address), drafters, SpeculationParams(enabled=bool(drafters)))
        for name, drafters in kinds.items()
    ]
    theirs = "the server's"
    return Subject(contenders=contenders, questions=questions, config=settings.config, device=theirs, dtype=theirs)


def _nonce() -> str:
    """So that no prompt is the same as one of an earlier bench."""
    return f"{secrets.randbelow(10_000)}."


def _questions(settings: LoadSettings, tokenizer: TextTools, vocab_size: int, context: int, nonce: str = "") -> Questions:
    if settings.random:
        return RandomQuestions(settings.prompt_tokens or _RANDOM_TOKENS, vocab_size, settings.seed)
    prompts = suite.select(suite.load(settings.suite), settings.content, None)
    return SuiteQuestions(prompts, tokenizer, context - settings.max_tokens, nonce)


def _engine(config: EngineConfig, loaded: assemble.LoadedModel) -> Engine:
    return assemble.build(config, NoProgress(), loaded).engine


def _sized(settings: LoadSettings, questions: Questions, model: Model) -> EngineConfig:
    """A batch and a cache that hold what is in flight, where they are not given."""
    config, own = settings.config, int(bool(settings.odd))
    if all(isinstance(traffic, Closed) for traffic in settings.traffic):
        running = max(traffic.lanes for traffic in settings.traffic) + own
        config = replace(config, max_batch=config.max_batch or running)
    else:
        running = config.max_batch or (256 if model.device.type == "cuda" else 32)
    if config.cache_gb is not None:
        return config
    longest = questions.longest * -(-running // len(questions.longest))
    sizes = sorted(longest, reverse=True)[:running]
    pages = sum(-(-(size + settings.max_tokens + _ROUND_ROOM) // config.page_size) for size in sizes) + 1
    return replace(config, cache_gb=assemble.cache_gb_for(config, model, pages))


def _told(settings: LoadSettings, subject: Subject) -> dict[str, Any]:
    sampling = _sampling(settings)
    limits = {traffic.name: limits_for(settings, traffic)[0] for traffic in settings.traffic}
    return {
        "model": settings.config.model if settings.shape is None else f"random weights of the shape {settings.shape}",
        "dtype": subject.dtype,
        "device": subject.device,
        "drafters": list(settings.config.drafters),
        "traffic": list(limits),
        "steady_state": (
            "measured from the end of the warm-up's requests to the end of so many more, traffic going on beyond both; "
            "in a closed loop the first answers are cut to rising lengths, so that answers end one after another"
        ),
        "warm_up_requests": {name: limit.warm_up for name, limit in limits.items()},
        "measured_requests": {name: limit.requests for name, limit in limits.items()},
        "measured_seconds_at_most": settings.seconds,
        "prompts": subject.questions.note,
        "prompts_seen_before": "each was answered once, unmeasured, with another seed" if settings.seen else "never",
        "decoding": (
            f"T = {sampling.temperature:g}, {settings.max_tokens} tokens each, "
            f"stop tokens {'ignored' if sampling.ignore_eos else 'forbidden'}"
        ),
        "odd_requests": list(settings.odd),
        "server": settings.url or ("started for each run" if settings.serve is not None else None),
        "repeats": settings.repeats,
        "engine": asdict(subject.config) if settings.url is None else None,
    }
