"""The engine: rounds over the sequences that run. One round proposes, verifies, accepts, commits and streams."""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from specdec.acceptance.base import AcceptanceRule
from specdec.admission import Admission
from specdec.batch import RoundRows, build_rows
from specdec.commit import Outcome, commit_kv, read_outcomes
from specdec.drafting import Observation
from specdec.errors import RequestError
from specdec.layout import lay_out
from specdec.metrics import EngineMetrics
from specdec.output import emit, output, read_logprobs
from specdec.request import FinishReason, Request, RequestOutput
from specdec.runner import Runner, RunnerOutput
from specdec.sampling import SamplingBatch, SamplingEntry, finite_rows
from specdec.scheduler import Scheduler
from specdec.sequence import Sequence, Sink, Turn
from specdec.speculation import Draft, Speculator
from specdec.tokenizer import TextStream, Tokenizer
from specdec.tree import IntArray

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStatus:
    """A glance at the engine."""

    num_running: int
    num_waiting: int
    pages_used: int
    pages_total: int
    num_rounds: int
    num_preemptions: int


class Engine:
    """Serves requests over one target. `submit` and `abort` may be called from any thread, `step` from one.

    Args:
        runner: the target and its K/V pool.
        scheduler: the queues and the pages.
        speculator: the drafters and the planner.
        rule: the acceptance rule.
        tokenizer: for text and stop strings.
        admission: limits that requests are checked against.
        scratch: KV slots for tree nodes off their spine.
        metrics: counters.
    """

    def __init__(
        self,
        *,
        runner: Runner,
        scheduler: Scheduler,
        speculator: Speculator,
        rule: AcceptanceRule,
        tokenizer: Tokenizer,
        admission: Admission,
        scratch: IntArray,
        metrics: EngineMetrics,
    ) -> None:
        self.metrics = metrics
        self.max_model_len = admission.max_model_len
        self._runner = runner
        self._scheduler = scheduler
        self._speculator = speculator
        self._rule = rule
        self._tokenizer = tokenizer
        self._admission = admission
        self._scratch = scratch
        self._sampled: tuple[tuple[str, ...], SamplingBatch] = (
            (),
            SamplingBatch.build([], runner.model.config.vocab_size, runner.device),
        )
        self._sequences: dict[str, Sequence] = {}  # touched by the stepping thread only
        self._num_rounds = 0
        self._wakeup = threading.Condition()
        self._submitted: deque[Sequence] = deque()
        self._aborted: deque[str] = deque()
        self._known_ids: set[str] = set()

    def submit(self, request: Request, sink: Sink) -> None:
        """Queue a request; `sink` is called with its outputs from the stepping thread.

        Raises:
            RequestError: it can never be served.
        """
        self._admission.check(request)
        sampling = request.sampling
        eos = frozenset() if sampling.ignore_eos else self._tokenizer.eos_token_ids
        sequence = Sequence(
            request=request,
            sink=sink,
            stop_ids=eos | frozenset(sampling.stop_token_ids),
            stream=TextStream(self._tokenizer, sampling.stop, sampling.min_tokens),
            tokens=list(request.prompt_ids),
            arrival=time.monotonic(),
        )
        with self._wakeup:
            if request.request_id in self._known_ids:
                raise RequestError(f"The request id {request.request_id!r} is in use.", param="request_id")
            self._known_ids.add(request.request_id)
            self._submitted.append(sequence)
            self._wakeup.notify_all()

    def abort(self, request_id: str) -> None:
        """End a request before its next round; unknown ids are ignored, since it may just have ended."""
        with self._wakeup:
            self._aborted.append(request_id)
            self._wakeup.notify_all()

    def wait(self, timeout: float) -> None:
        """Block until there may be work, for at most `timeout` seconds."""
        with self._wakeup:
            if not self.has_work:
                self._wakeup.wait(timeout)

    @property
    def has_work(self) -> bool:
        """Whether `step` would find something to do."""
        return bool(self._submitted or self._aborted or self._scheduler.running or self._scheduler.waiting)

    def status(self) -> EngineStatus:
        """Counts as of now; safe to read from any thread."""
        pages = self._scheduler.pages
        return EngineStatus(
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting) + len(self._submitted),
            pages_used=pages.num_held,
            pages_total=pages.num_pages,
            num_rounds=self._num_rounds,
            num_preemptions=self._scheduler.num_preemptions,
        )

    def check(self) -> None:
        """Raise AssertionError where the page books do not add up."""
        self._scheduler.check()

    def step(self) -> bool:
        """Run one round; False when there was nothing to do. A round that fails takes its own requests with it, no more."""
        self._take_commands()
        turns = self._scheduler.schedule()
        self._report()
        if not turns:
            return False
        try:
            self._round(turns)
        except Exception as error:
            _log.exception("A round failed.")
            for turn in turns:
                self._fail(turn.sequence, f"The round failed: {error}")
        self._num_rounds += 1
        return True

    def _round(self, turns: SequenceOf[Turn]) -> None:
        """Propose, verify, accept, commit, stream."""
        for turn in turns:
            self._start(turn.sequence)
        ready = [turn.sequence for turn in turns if turn.has_tree]
        drafts = self._speculator.propose(ready, other_rows=sum(turn.num_chunk for turn in turns))
        specs, drafts = lay_out(turns, drafts, self._scheduler, self._scratch)
        rows = build_rows(specs, self._scheduler.page_size, self._runner.device)
        sampling = self._sampling(ready)
        started = time.perf_counter()
        result = self._runner.forward(rows)
        outcomes, broken = self._accept(drafts, rows, result, sampling)
        commit_kv(self._runner.pool, [spec for spec in specs if spec.tree is not None], outcomes)
        self._speculator.observe_cost(rows, time.perf_counter() - started)
        self._commit_prompts(turns, rows, result)
        self._settle(ready, drafts, outcomes, broken, rows, result)

    def _sampling(self, ready: SequenceOf[Sequence]) -> SamplingBatch:
        """Made before the forward pass, which on a GPU the host runs ahead of; kept while the same sequences decode."""
        names = tuple(sequence.request_id for sequence in ready)
        if names != self._sampled[0]:
            entries = [
                SamplingEntry(
                    sampling=sequence.sampling,
                    seed=sequence.sampling.seed,
                    tokens=sequence.tokens,
                    num_prompt_tokens=sequence.num_prompt_tokens,
                    stop_ids=sequence.stop_ids,
                )
                for sequence in ready
            ]
            vocab_size = self._runner.model.config.vocab_size
            self._sampled = names, SamplingBatch.build(entries, vocab_size, self._runner.device)
        return self._sampled[1]

    def _accept(
        self, drafts: SequenceOf[Draft], rows: RoundRows, result: RunnerOutput, sampling: SamplingBatch
    ) -> tuple[list[Outcome], set[int]]:
        if rows.tree is None or result.logits_TV is None:
            return [], set()
        accepted = self._rule.accept(rows.tree, result.logits_TV, sampling, [draft.q for draft in drafts])
        return read_outcomes(accepted, rows.tree, finite_rows(result.logits_TV))

    def _commit_prompts(self, turns: SequenceOf[Turn], rows: RoundRows, result: RunnerOutput) -> None:
        """The chunks' keys and values are there for good; drafters that read hidden states get theirs."""
        for turn, segment in zip(turns, rows.segments, strict=True):
            sequence = turn.sequence
            self._scheduler.commit(sequence, sequence.num_cached + turn.num_chunk)
            if result.hidden_RC is not None and turn.num_chunk:
                hidden = result.hidden_RC[segment.row_start : segment.row_start + turn.num_chunk]
                self._speculator.tell(Observation(request_id=sequence.request_id, emitted=(), hidden=hidden))

    def _settle(
        self,
        ready: SequenceOf[Sequence],
        drafts: SequenceOf[Draft],
        outcomes: SequenceOf[Outcome],
        broken: set[int],
        rows: RoundRows,
        result: RunnerOutput,
    ) -> None:
        """Each sequence takes its tokens; those that end leave."""
        if rows.tree is None or result.logits_TV is None:
            return
        logprobs = read_logprobs(ready, outcomes, result.logits_TV)
        for index, (sequence, draft, outcome) in enumerate(zip(ready, drafts, outcomes, strict=True)):
            if index in broken:
                self._runner.pool.scrub(sequence.pages)
                self._scheduler.spoil(sequence.pages)
                self._fail(sequence, "The model gave logits that are not finite (NaN or infinite) for this request.")
                continue
            num_cached = len(sequence.tokens) + len(outcome.path) - 1
            emission = emit(sequence, outcome.emitted)
            self._scheduler.commit(sequence, min(num_cached, len(sequence.tokens) - 1))
            hidden = result.hidden_RC[rows.tree.rows_T[outcome.rows]] if result.hidden_RC is not None else None
            observation = Observation(request_id=sequence.request_id, emitted=emission.token_ids, hidden=hidden)
            self._speculator.observe(sequence, draft, outcome.path, observation)
            self.metrics.on_tokens(sequence, len(emission.token_ids), draft.tree, len(outcome.path) - 1)
            self._deliver(sequence, output(sequence, emission, logprobs[index]))

    def _deliver(self, sequence: Sequence, result: RequestOutput) -> None:
        if result.finish_reason is not None:
            self._end(sequence, result.finish_reason)
        sequence.send(result)

    def _start(self, sequence: Sequence) -> None:
        if not sequence.admitted:
            sequence.admitted = True
            self._speculator.start(sequence)
            self.metrics.on_start(sequence)

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        """Give back all that a sequence holds."""
        self._scheduler.remove(sequence)
        if sequence.admitted:
            self._speculator.release(sequence, finished=reason in (FinishReason.STOP, FinishReason.LENGTH))
        del self._sequences[sequence.request_id]
        with self._wakeup:
            self._known_ids.discard(sequence.request_id)
        self.metrics.on_finish(sequence, reason)

    def _fail(self, sequence: Sequence, message: str) -> None:
        reason = FinishReason.ERROR
        if sequence.request_id in self._sequences:
            self._deliver(sequence, RequestOutput(request_id=sequence.request_id, finish_reason=reason, error=message))

    def _report(self) -> None:
        status = self.status()
        self.metrics.on_schedule(
            status.num_running, status.num_waiting, status.pages_used / status.pages_total, status.num_preemptions
        )

    def _take_commands(self) -> None:
        with self._wakeup:
            submitted, aborted = list(self._submitted), list(self._aborted)
            self._submitted.clear()
            self._aborted.clear()
        for sequence in submitted:
            self._sequences[sequence.request_id] = sequence
            self._scheduler.add(sequence)
        for request_id in aborted:
            running = self._sequences.get(request_id)
            if running is not None:
                text = running.stream.flush()
                reason = FinishReason.ABORT
                self._deliver(
                    running, RequestOutput(request_id=request_id, text=text, finish_reason=reason, stats=running.stats)
                )
