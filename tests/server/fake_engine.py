"""An engine that answers from a script, and what `specdec serve` needs to run one in its other process."""

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

from specdec.assemble import Assembled
from specdec.config import EngineConfig
from specdec.engine.admission import Admission
from specdec.engine.metrics import EngineMetrics
from specdec.engine.output import emit, finish_prompt, tell_prompt_logprobs
from specdec.engine.sequence import Sequence, Sink
from specdec.engine.statistics import EngineStatus
from specdec.errors import ConfigError, DeviceError, RequestError
from specdec.progress import Progress
from specdec.request import FinishReason, Request, RequestOutput, SamplingDefaults, SpeculationStats, TokenLogprob
from specdec.text.tokenizer import TextStream, Tokenizer
from tests.conftest import TEMPLATE, tiny_tokenizer

MODEL = "tiny/model"
DRAFTERS = ("ngram", "suffix", "prediction")
MAX_MODEL_LEN, MAX_BATCH = 200, 2
ANSWER = "the winner is in the inn: 1212 wins"
STATS = SpeculationStats(
    num_steps=5,
    num_draft_tokens=10,
    num_accepted_tokens=4,
    accepted_histogram=[2, 2, 1],
    drafted_by_depth=[4, 3],
    accepted_by_depth=[3, 1],
    drafted_by_drafter={"prediction": 6, "ngram": 4},
    accepted_by_drafter={"prediction": 2, "ngram": 2},
)
NUM_CACHED = 3
_NO_DEFAULTS = SamplingDefaults()


@dataclass(frozen=True)
class Script:
    """How the fake engine answers. Counts are in tokens of the answer."""

    answers: tuple[str, ...] = (ANSWER,)  # of the first request, the second, ... and round again
    per_step: int = 3
    pause_after: int | None = None  # says no more until `resume` or an abort
    fail_after: int | None = None  # then its round fails
    crash: type[Exception] | None = None  # the engine dies of it
    sleep: float = 0.0  # seconds that its rounds take
    flood: tuple[int, int] = (0, 0)  # instead of an answer: so many characters a round, so many rounds
    spoilt: bool = False  # what it says cannot be sent


@dataclass(eq=False)
class _Running:
    sequence: Sequence
    script: Script
    answer: Iterator[int]  # without end, as a model's
    num_said: int = 0  # rounds


class FakeEngine:
    """The engine's interface and its rules for admission, ends and text, with scripts in the model's place.

    scripts: by a word of the prompt; the first that fits is taken, without one the default script.
    requests: those submitted. to_be_aborted: the ids that `abort` was told. aborted: of those, what has ended by it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.max_model_len = MAX_MODEL_LEN
        self.metrics = EngineMetrics(MODEL)
        self.scripts: dict[str, Script] = {}
        self.requests: list[Request] = []
        self.to_be_aborted: list[str] = []
        self.aborted: list[str] = []
        self._tokenizer = tokenizer
        self._admission = Admission(tokenizer.vocab_size, MAX_MODEL_LEN, DRAFTERS)
        self._wakeup = threading.Condition()
        self._submitted: list[_Running] = []
        self._to_abort: list[str] = []
        self._running: dict[str, _Running] = {}
        self._num_answers: dict[Script, int] = {}
        self._resumed = False
        self._num_rounds = 0

    def submit(self, request: Request, sink: Sink) -> None:
        self._admission.check(request)
        prompt = self._tokenizer.decode(request.prompt_ids)
        script = next((script for word, script in self.scripts.items() if word in prompt), Script())
        sampling = request.sampling
        eos = frozenset() if sampling.ignore_eos else self._tokenizer.eos_token_ids
        sequence = Sequence(
            request=request,
            sink=sink,
            stop_ids=eos | frozenset(sampling.stop_token_ids),
            stream=TextStream(self._tokenizer, sampling.stop, sampling.min_tokens),
            tokens=list(request.prompt_ids),
            arrival=time.monotonic(),
            num_prefix_hits=NUM_CACHED,
            stats=STATS,
        )
        with self._wakeup:
            if any(request.request_id == known.request_id for known in self.requests):
                raise RequestError("The request id is in use.", param="request_id")
            self.requests.append(request)
            turn = self._num_answers.get(script, 0)
            self._num_answers[script] = turn + 1
            answer = self._tokenizer.encode(script.answers[turn % len(script.answers)])
            self._submitted.append(_Running(sequence, script, itertools.cycle([*answer, *self._tokenizer.eos_token_ids])))
            self._wakeup.notify_all()

    def abort(self, request_id: str) -> None:
        with self._wakeup:
            self.to_be_aborted.append(request_id)
            self._to_abort.append(request_id)
            self._wakeup.notify_all()

    def resume(self) -> None:
        """Let paused scripts go on."""
        with self._wakeup:
            self._resumed = True
            self._wakeup.notify_all()

    def wait(self, timeout: float) -> None:
        with self._wakeup:
            if not self.has_work:
                self._wakeup.wait(min(timeout, 0.01))  # a test's server stops at once

    @property
    def has_work(self) -> bool:
        return bool(self._submitted or self._to_abort or any(self._room(running) for running in self._running.values()))

    def status(self) -> EngineStatus:
        return EngineStatus(
            num_running=len(self._running),
            num_waiting=len(self._submitted),
            pages_used=len(self._running),
            pages_total=100,
            num_rounds=self._num_rounds,
            num_preemptions=0,
        )

    def step(self) -> bool:
        with self._wakeup:
            started, to_abort = list(self._submitted), list(self._to_abort)
            self._submitted.clear()
            self._to_abort.clear()
        for running in started:
            self._running[running.sequence.request_id] = running
            self.metrics.on_start(running.sequence)
        for request_id in to_abort:
            if found := self._running.get(request_id):
                self.aborted.append(request_id)
                self._finish(found, RequestOutput(request_id=request_id, finish_reason=FinishReason.ABORT, stats=STATS))
        turns = [running for running in self._running.values() if self._room(running)]
        status = self.status()
        self.metrics.on_schedule(status.num_running, status.num_waiting, status.pages_used / status.pages_total, 0)
        for running in turns:
            self._say(running)
        self._num_rounds += bool(turns)
        return bool(turns)

    def _room(self, running: _Running) -> int:
        """How many tokens a script may say in the next round."""
        script = running.script
        if self._resumed or script.pause_after is None:
            return script.per_step
        return max(0, min(script.per_step, script.pause_after - running.sequence.num_output_tokens))

    def _say(self, running: _Running) -> None:
        script, sequence = running.script, running.sequence
        if script.crash is not None:
            raise script.crash("the script says so")
        time.sleep(script.sleep)
        running.num_said += 1
        if script.flood[0]:
            self._finish(running, self._flood(running))
            return
        if script.fail_after is not None and sequence.num_output_tokens >= script.fail_after:
            reason = FinishReason.ERROR
            self._finish(running, RequestOutput(request_id=sequence.request_id, finish_reason=reason, error="out of luck"))
            return
        said = list(itertools.islice(running.answer, self._room(running)))
        if (asked := sequence.sampling.prompt_logprobs) is not None and not sequence.prompt_told:
            sequence.prompt_logprobs = [logprob(token, asked, 1) for token in sequence.request.prompt_ids[1:]]
        said_now = emit(sequence, said) if sequence.wants_tokens else finish_prompt(sequence)
        tell_prompt_logprobs(sequence, said_now)
        wanted = sequence.sampling.logprobs
        if wanted is not None:
            said_now.logprobs = tuple(logprob(token, wanted) for token in said_now.token_ids)
        self.metrics.on_tokens(sequence, len(said_now.token_ids))
        self.metrics.on_drafts(len(said), min(max(0, len(said) - 1), len(said_now.token_ids)))
        self.metrics.on_round()
        if script.spoilt:
            said_now.text = cast(str, threading.Lock())
        self._finish(running, said_now)

    def _flood(self, running: _Running) -> RequestOutput:
        size, rounds = running.script.flood
        text = str(running.num_said % 10) * size
        reason = FinishReason.STOP if running.num_said == rounds else None
        return RequestOutput(
            request_id=running.sequence.request_id, token_ids=(40,), text=text, finish_reason=reason, stats=STATS
        )

    def _finish(self, running: _Running, result: RequestOutput) -> None:
        if result.finish_reason is not None:
            del self._running[running.sequence.request_id]
            self.metrics.on_finish(running.sequence, result.finish_reason)
        running.sequence.send(result)


def flood_of(script: Script) -> str:
    """What a script that floods says, all in all."""
    size, rounds = script.flood
    return "".join(str(number % 10) * size for number in range(1, rounds + 1))


def logprob(token: int, wanted: int, rank: int | None = None) -> TokenLogprob:
    """What the fake engine says of each token: likely, and three others less so."""
    top = [(token, -0.25), *((other, -2.0 - other) for other in (10, 11, 12) if other != token)]
    return TokenLogprob(token, -0.25, tuple(top[:wanted]), rank)


def assembled_with(engine: FakeEngine, tokenizer: Tokenizer, defaults: SamplingDefaults = _NO_DEFAULTS) -> Assembled:
    """What the server is given of an engine."""
    config = EngineConfig(model=MODEL, max_model_len=MAX_MODEL_LEN)
    parts = SimpleNamespace(
        engine=engine,
        tokenizer=tokenizer,
        model_name=MODEL,
        config=config,
        max_batch=MAX_BATCH,
        drafters=DRAFTERS,
        dtype="float32",
        device="cpu",
        sampling_defaults=defaults,
    )
    return cast(Assembled, parts)


def banner(assembled: Assembled) -> str:
    return f"A script in place of {assembled.model_name}"


SCRIPTS = {
    "stall": Script(pause_after=6),
    "crash": Script(crash=RuntimeError),
    "dead": Script(crash=DeviceError),
    "sleep": Script(sleep=60.0),
    "slow": Script(sleep=0.2),
    "flood": Script(flood=(1 << 23, 3)),
    "spoilt": Script(spoilt=True),
}


def build(config: EngineConfig, progress: Progress) -> Assembled:
    """In place of `specdec.server.process.build_engine`, in a process where no test can reach the scripts."""
    with progress.task("Making a tokenizer", 2) as advance:
        tokenizer = Tokenizer(tiny_tokenizer(), eos_token_ids=[2], chat_template=TEMPLATE)
        advance(2)
    engine = FakeEngine(tokenizer)
    engine.scripts = dict(SCRIPTS)
    return assembled_with(engine, tokenizer)


def never_build(config: EngineConfig, progress: Progress) -> Assembled:
    with progress.task("Beginning", None):
        pass
    with progress.task("Waiting", None):
        time.sleep(600.0)
    raise AssertionError


def refuse_to_build(config: EngineConfig, progress: Progress) -> Assembled:
    with progress.task("Looking", None):
        raise ConfigError("There is no such model; name another one.")


def crash_while_building(config: EngineConfig, progress: Progress) -> Assembled:
    with progress.task("Looking", None):
        raise RuntimeError("out of luck")
