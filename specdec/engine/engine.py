"""The engine: rounds over the sequences that run. One round proposes, verifies, accepts, commits and streams."""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from specdec.arrays import IntArray
from specdec.device_loop import ROUNDS_AHEAD, DeviceLoop
from specdec.draft.protocol import Observation
from specdec.engine.admission import Admission
from specdec.engine.layout import lay_out
from specdec.engine.metrics import EngineMetrics
from specdec.engine.output import ahead_logprobs, emit, output, read_logprobs
from specdec.engine.scheduler import Scheduler
from specdec.engine.sequence import Sequence, Sink, Turn
from specdec.errors import RequestError
from specdec.loop_edits import fits
from specdec.loop_members import LoopRound
from specdec.request import FinishReason, Request, RequestOutput
from specdec.round.accept.base import AcceptanceRule
from specdec.round.batch import RoundRows, build_rows
from specdec.round.commit import Outcome, commit_kv, read_outcomes
from specdec.round.runner import Runner, RunnerOutput
from specdec.round.sample.sampling import SamplingBatch, SamplingEntry, finite_rows
from specdec.speculation import Draft, Speculator
from specdec.text.tokenizer import TextStream, Tokenizer

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
        loop: runs rounds without the host where that is possible; None where each round needs it.
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
        loop: DeviceLoop | None = None,
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
        self._loop = loop
        self._in_loop: list[Sequence] = []
        self._kept_out: set[str] = set()  # request ids whose rounds the device could not finish alone
        self._sampled: tuple[list[Sequence], SamplingBatch] = (
            [],
            SamplingBatch.build([], runner.model.config.vocab_size, runner.device),
        )
        self._sequences: dict[str, Sequence] = {}  # touched by the stepping thread only
        self._num_rounds = 0
        self._reported: tuple[int, int, float, int] | None = None
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
            self._leave_loop()
            return False
        try:
            if not self._round_ahead(turns):
                self._round(turns)
        except Exception as error:
            _log.exception("A round failed.")
            for sequence in {*(turn.sequence for turn in turns), *self._in_loop}:
                self._fail(sequence, f"The round failed: {error}")
            self._leave_loop()
        self._num_rounds += 1
        return True

    def _round(self, turns: SequenceOf[Turn]) -> None:
        """Propose, verify, accept, commit, stream."""
        for turn in turns:
            self._start(turn.sequence)
        ready = [turn.sequence for turn in turns if turn.has_tree]
        prompt_rows = sum(turn.num_chunk for turn in turns)
        # rounds that read a prompt come in so many shapes that drafts would cost more graphs than they save rounds
        waiting = {s.request_id for s in ready if prompt_rows and self._may_loop(s)}
        drafts = self._speculator.propose(ready, prompt_rows, waiting)
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

    def _round_ahead(self, turns: SequenceOf[Turn]) -> bool:
        """One round of the device loop: enqueued before the outcome of the one before is read.

        False where these turns need a round of the host's. Where a loop has to end first, this ends it.
        """
        ready = [turn.sequence for turn in turns]
        plain = all(turn.has_tree and not turn.num_chunk for turn in turns)
        if self._in_loop and (not plain or ready != self._in_loop):
            self._land()
            return True
        if not self._in_loop and not (plain and self._enter_loop(ready)):
            return False
        assert self._loop is not None, "there is one to be in"
        underway = self._loop.num_underway
        if not all(self._ends_within(sequence, underway) for sequence in ready):
            plan = self._speculator.loop_plan(ready, self._loop.width_limit(len(ready)))
            if not self._make_room_ahead(ready, plan.width):
                plan = plan._replace(width=1)
                if not self._make_room_ahead(ready, plan.width):
                    self._land()
                    return underway > 0
            self._loop.enqueue(plan)
            if underway < ROUNDS_AHEAD:
                return True
        self._settle_ahead(self._loop.collect())
        return True

    def _enter_loop(self, ready: list[Sequence]) -> bool:
        loop = self._loop
        if loop is None or len(ready) > loop.max_sequences:
            return False
        if not all(map(self._may_loop, ready)):
            return False
        for sequence in ready:
            self._start(sequence)
        loop.start([self._speculator.member(sequence) for sequence in ready], max(len(s.pages) for s in ready))
        self._in_loop = ready
        return True

    def _may_loop(self, sequence: Sequence) -> bool:
        """Whether the device alone can decode a sequence."""
        if self._loop is None or sequence.request_id in self._kept_out:
            return False
        return fits(sequence.sampling, sequence.stop_ids) and self._speculator.can_loop(sequence)

    def _ends_within(self, sequence: Sequence, rounds: int) -> bool:
        """Whether its last token is underway for certain."""
        return sequence.num_output_tokens + rounds >= sequence.sampling.max_tokens

    def _make_room_ahead(self, ready: SequenceOf[Sequence], width: int) -> bool:
        """Pages for all that the rounds underway and one more may write."""
        assert self._loop is not None, "there is one to be in"
        ahead = self._loop.rows_underway + width
        for sequence in ready:
            positions = len(sequence.tokens) - 1 + ahead
            if positions > self.max_model_len or not self._scheduler.grow(sequence, positions):
                return False
        return self._loop.set_pages([sequence.pages for sequence in ready])

    def _land(self) -> None:
        """Take in what is underway and end the loop."""
        assert self._loop is not None, "there is one to be in"
        while self._loop.num_underway:
            self._settle_ahead(self._loop.collect())
        self._leave_loop()

    def _leave_loop(self) -> None:
        if self._loop is not None:
            self._loop.discard()
        self._in_loop = []

    def _settle_ahead(self, outcome: LoopRound) -> None:
        """Each sequence that is still there takes its tokens; those that end leave."""
        self._speculator.observe_loop(self._in_loop, outcome)
        accepted = outcome.accepted
        for index, sequence in enumerate(self._in_loop):
            # one that ended, or gave its pages back, has no use for what came after
            if sequence.request_id not in self._sequences or sequence.num_missing or not sequence.pages:
                continue
            if not outcome.sound[index]:
                self._kept_out.add(sequence.request_id)
                continue
            num_cached = len(sequence.tokens) + accepted[index]
            emission = emit(sequence, outcome.emitted[index])
            self._scheduler.commit(sequence, min(num_cached, len(sequence.tokens) - 1))
            drafted, origin = outcome.drafted[index], outcome.origins[index]
            self._speculator.observe_looked_up(sequence, drafted, accepted[index], origin, emission.token_ids)
            self.metrics.on_tokens(sequence, len(emission.token_ids), drafted, accepted[index])
            logprobs = ahead_logprobs(sequence, emission, outcome.scores, index)
            self._deliver(sequence, output(sequence, emission, logprobs))
        if not all(outcome.sound):
            self._leave_loop()

    def _sampling(self, ready: list[Sequence]) -> SamplingBatch:
        """Made before the forward pass, which on a GPU the host runs ahead of; kept while the same sequences decode."""
        if ready != self._sampled[0]:
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
            self._sampled = ready, SamplingBatch.build(entries, vocab_size, self._runner.device)
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
            self.metrics.on_tokens(sequence, len(emission.token_ids), len(draft.tree) - 1, len(outcome.path) - 1)
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
        self._kept_out.discard(sequence.request_id)
        if self._loop is not None and self._speculator.copies_responses and reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._loop.learn(sequence.tokens[sequence.num_prompt_tokens :])
        with self._wakeup:
            self._known_ids.discard(sequence.request_id)
        self.metrics.on_finish(sequence, reason)

    def _fail(self, sequence: Sequence, message: str) -> None:
        if sequence.request_id in self._sequences:
            result = RequestOutput(request_id=sequence.request_id, finish_reason=FinishReason.ERROR, error=message)
            self._deliver(sequence, result)

    def _report(self) -> None:
        self.metrics.on_round()
        now = self.status()
        state = (now.num_running, now.num_waiting, now.pages_used / now.pages_total, now.num_preemptions)
        if state != self._reported:
            self._reported = state
            self.metrics.on_schedule(*state)

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
                text, reason = running.stream.flush(), FinishReason.ABORT
                result = RequestOutput(request_id=request_id, text=text, finish_reason=reason, stats=running.stats)
                self._deliver(running, result)
