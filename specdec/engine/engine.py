"""The engine: it plans rounds, settles what they told, and streams. The device works on the next round meanwhile."""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence as SequenceOf

import numpy as np

from specdec.draft.planner import Planner
from specdec.engine.admission import Admission
from specdec.engine.learning import learn
from specdec.engine.metrics import EngineMetrics
from specdec.engine.output import (
    aborted_output,
    emit,
    finish_prompt,
    keep_prompt_logprobs,
    read_logprobs,
    tell_prompt_logprobs,
)
from specdec.engine.planning import allowed_of, occupant_of, plan_round
from specdec.engine.scheduler import Scheduler
from specdec.engine.sequence import NO_SLOT, HostWork, Sequence, Sink, Turn
from specdec.engine.statistics import EngineStatus, MemberDrafts, count_drafts, count_step, drafts_of
from specdec.errors import DeviceError, RequestError
from specdec.request import FinishReason, Request, RequestOutput
from specdec.round.faults import is_out_of_memory
from specdec.round.outcome import Outcome
from specdec.round.round import Round
from specdec.round.sample.draw import Nucleus
from specdec.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

_NOT_FINITE = "The model gave logits that are not finite (NaN or infinite) for this request."


class Engine:
    """Serves requests over one target. `submit` and `abort` may be called from any thread, `step` from one.

    Args:
        round_: the device's side.
        scheduler: the queues, the slots and the pages.
        planner: how much is drafted and verified.
        tokenizer: for text and stop strings.
        admission: limits that requests are checked against.
        metrics: counters.
        depth: rounds enqueued beyond the one whose outcome was read.
        host_work: what some requests need the host for before each of their trees.
    """

    def __init__(
        self,
        *,
        round_: Round,
        scheduler: Scheduler,
        planner: Planner,
        tokenizer: Tokenizer,
        admission: Admission,
        metrics: EngineMetrics,
        depth: int,
        host_work: SequenceOf[HostWork] = (),
    ) -> None:
        self.metrics = metrics
        self.max_model_len = admission.max_model_len
        self._round = round_
        self._scheduler = scheduler
        self._planner = planner
        self._names = round_.drafting.names.names
        self._sources_X = round_.drafting.names.sources_X
        self._tokenizer = tokenizer
        self._admission = admission
        self._depth = depth
        self._host_work = host_work
        self._underway: deque[tuple[list[Turn], float]] = deque()  # and the seconds that the host took to enqueue them
        self._sequences: dict[str, Sequence] = {}  # touched by the stepping thread only
        self._num_rounds = 0
        self._context = 1  # tokens of the longest sequence of the last round
        self._failure: DeviceError | None = None
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
        sequence = Sequence.of(request, sink, self._tokenizer, self._host_work)
        with self._wakeup:
            if request.request_id in self._known_ids:
                raise RequestError(f"The request id {request.request_id!r} is in use.", param="request_id")
            self._known_ids.add(request.request_id)
            self._submitted.append(sequence)
            self._wakeup.notify_all()

    def abort(self, request_id: str) -> None:
        """End a request before its next round; unknown ids are ignored, since it may just have ended."""
        with self._wakeup:
            if request_id in self._known_ids:
                self._aborted.append(request_id)
                self._wakeup.notify_all()

    def forget(self) -> None:
        """Drafters know nothing of earlier answers any more. For the stepping thread, while nothing runs."""
        assert not self.has_work
        self._round.forget()

    def wait(self, timeout: float) -> None:
        """Block until there may be work, for at most `timeout` seconds."""
        with self._wakeup:
            if not self.has_work:
                self._wakeup.wait(timeout)

    @property
    def has_work(self) -> bool:
        """Whether `step` would find something to do."""
        queued = self._submitted or self._aborted or self._scheduler.running or self._scheduler.waiting
        return bool(queued or self._underway)

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
        self._scheduler.check(underway=bool(self._underway))

    def step(self) -> bool:
        """Enqueue a round and settle the one before, or as many as may not stay underway; False when there was nothing to do.

        A round that fails is made up for, see `_recover`.

        Raises:
            DeviceError: the engine serves nobody any more.
        """
        if self._failure is not None:
            raise self._failure
        self._take_commands()
        began = time.perf_counter()
        scheduled = self._scheduler.schedule(underway=bool(self._underway))
        self._report()
        turns = scheduled or []
        finished = self._finish_known()
        if not turns and not self._underway:
            return finished
        try:
            if turns:
                self._enqueue(turns, began)
            most = self._depth if turns else 0 if scheduled is not None else len(self._underway) - 1
            while len(self._underway) > most:
                outcome, began = self._round.collect(), time.perf_counter()
                settled, taken = self._underway.popleft()
                self._settle(settled, outcome)
                if self._round.beside_host:
                    taken += time.perf_counter() - began
                    self._planner.costs.observe_host(len(outcome.plan), outcome.shape.drafting, taken)
        except Exception as error:
            self._recover(turns, error)
        self._num_rounds += bool(turns)
        return True

    def _enqueue(self, turns: list[Turn], began: float) -> None:
        """Everything that the device has to know, then the round. The host began with it then; who comes costs what it costs,
        whatever the round."""
        began -= time.perf_counter()
        if not self._welcome():
            turns = self._present(turns)
        began += time.perf_counter()
        if self._host_work:
            turns = self._prepared(turns)
        if not turns:
            return
        self._context = max([turn.sequence.most_tokens for turn in turns])
        plan = plan_round(turns, self._planner, self._scheduler, self._context)
        slots, indices, pages = self._scheduler.take_new_pages()
        if pages:
            self._round.set_pages(slots, indices, pages)
        if (chances := self._planner.new_chances()) is not None:
            self._round.set_chances(chances)
        self._round.enqueue(plan)
        for turn, nodes in zip(turns, plan.nodes.tolist(), strict=True):
            sequence = turn.sequence
            if turn.chunk:
                sequence.num_enqueued = turn.first + turn.chunk
            if nodes:
                sequence.ahead += nodes
                sequence.trees_underway += 1
        self._underway.append((turns, time.perf_counter() - began))

    def _prepared(self, turns: list[Turn]) -> list[Turn]:
        """The turns whose host work is done; where it fails, the request fails with it and no other."""
        ready = []
        for turn in turns:
            try:
                turn.prepare()
                ready.append(turn)
            except Exception as error:
                _log.exception("The host's part in a request failed.")
                self._scheduler.settle_marks(turn, kept=False)
                self._fail(turn.sequence, f"The host's part in this request failed: {error}")
        return ready

    def _present(self, turns: list[Turn]) -> list[Turn]:
        """The turns of those that have not left since they were scheduled."""
        for turn in turns:
            if turn.sequence.epoch != turn.epoch:
                self._scheduler.settle_marks(turn, kept=False)
        return [turn for turn in turns if turn.sequence.epoch == turn.epoch]

    def _welcome(self) -> bool:
        """Sequences that were admitted enter their slots; False where one could not, which has failed."""
        admitted, self._scheduler.admitted, all_well = self._scheduler.admitted, [], True
        for sequence, mark in admitted:
            if sequence.slot == NO_SLOT:
                continue
            try:
                self._enter(sequence, mark)
            except Exception as error:
                _log.exception("A request cannot take a slot.")
                self._fail(sequence, f"This request cannot be prepared: {error}")
                all_well = False
        return all_well

    def _enter(self, sequence: Sequence, mark: int | None) -> None:
        """A sequence takes its slot on the device."""
        occupant, salt = occupant_of(sequence, mark), sequence.request.cache_salt
        self._round.enter(sequence.slot, occupant, allowed_of(sequence, self._names), salt)
        self._planner.enter(sequence.slot, 0.0 if sequence.sampling.greedy else sequence.sampling.temperature)
        if not sequence.admitted:
            sequence.admitted = True
            self.metrics.on_start(sequence)

    def _settle(self, turns: list[Turn], outcome: Outcome) -> None:
        """Each sequence takes its tokens; those that end leave. What came after an end is void."""
        present = [turn.sequence.epoch == turn.epoch for turn in turns]
        try:
            learn(self._planner, outcome, np.array(present), self._context)
        except Exception:
            _log.exception("The planner cannot learn from a round.")
        columns = (outcome.plan.nodes, outcome.sound, outcome.accepted, outcome.emitted)
        counted = drafts_of(outcome, self._sources_X) if outcome.drafted.any() else [None] * len(turns)
        told = zip(*(column.tolist() for column in columns), counted, strict=True)
        for index, (turn, (nodes, sound, accepted, emitted, drafts)) in enumerate(zip(turns, told, strict=True)):
            if not present[index]:
                self._scheduler.settle_marks(turn, kept=False)
                continue
            sequence = turn.sequence
            if turn.chunk:
                sequence.spoilt |= outcome.chunks_sound is not None and not outcome.chunks_sound[index]
                self._scheduler.commit(sequence, turn.first + turn.chunk)
            self._scheduler.settle_marks(turn, kept=sound and not sequence.spoilt)
            if turn.chunk and not self._read_prompt(sequence, outcome, index, turn):
                continue
            if not nodes:
                continue
            sequence.ahead -= nodes
            sequence.trees_underway -= 1
            if not sound:
                self._retry(sequence, outcome.shape.nucleus)
                continue
            try:
                self._take(sequence, outcome, index, emitted[: accepted + 1], drafts)
            except Exception as error:
                _log.exception("What a round gave a request cannot be taken.")
                self._fail(sequence, f"What a round gave this request cannot be taken: {error}")

    def _read_prompt(self, sequence: Sequence, outcome: Outcome, index: int, turn: Turn) -> bool:
        """More of a prompt is read; False where that ends its request."""
        if not keep_prompt_logprobs(sequence, outcome, index, turn.first, turn.chunk):
            self._fail(sequence, _NOT_FINITE)
            return False
        if sequence.wants_tokens or not sequence.prompt_known:
            return True
        self._deliver(sequence, finish_prompt(sequence))
        return False

    def _finish_known(self) -> bool:
        """Requests for no tokens whose prompts have nothing left to read when they are admitted."""
        admitted = [sequence for sequence, _ in self._scheduler.admitted if sequence.slot != NO_SLOT]
        known = [sequence for sequence in admitted if not sequence.wants_tokens and sequence.prompt_known]
        for sequence in known:
            self.metrics.on_start(sequence)
            self._deliver(sequence, finish_prompt(sequence))
        return bool(known)

    def _take(self, sequence: Sequence, outcome: Outcome, index: int, emitted: list[int], drafts: MemberDrafts | None) -> None:
        """What a round emitted for a sequence. This runs for every member of every round."""
        result = emit(sequence, emitted)
        num_tokens = len(result.token_ids)
        self._scheduler.commit(sequence, len(sequence.tokens) - 1)
        kept = min(len(emitted) - 1, num_tokens)
        if drafts is not None and drafts.parents:
            count_drafts(sequence.stats, drafts, kept, self._names)
            self.metrics.on_drafts(len(drafts.parents), kept)
        count_step(sequence.stats, kept)
        self.metrics.on_tokens(sequence, num_tokens)
        if sequence.reads_whole_prompt:
            tell_prompt_logprobs(sequence, result)
        if outcome.scores is not None:
            result.logprobs = read_logprobs(sequence, result.token_ids, outcome, index)
        if sequence.suspect:
            self._scheduler.acquit(sequence)
        if result.finish_reason is not None:
            self._end(sequence, result.finish_reason)
        sequence.sink(result)

    def _retry(self, sequence: Sequence, nucleus: Nucleus) -> None:
        """A round was void: where its nucleus was too wide for the round, the next one knows; else nothing helps."""
        if nucleus is Nucleus.NARROW and self._round.widen(sequence.slot):
            return
        self._fail(sequence, _NOT_FINITE)

    def _deliver(self, sequence: Sequence, result: RequestOutput) -> None:
        """The last output of a request, if whoever asked can be told."""
        assert result.finish_reason is not None, "it is the last one"
        self._end(sequence, result.finish_reason)
        try:
            sequence.send(result)
        except Exception:
            _log.exception("Who asked for %s cannot be told how it ended.", sequence.request_id)

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        """Give back all that a sequence holds."""
        slot = sequence.slot
        self._scheduler.remove(sequence)
        if slot != NO_SLOT:
            finished = reason in (FinishReason.STOP, FinishReason.LENGTH)
            self._round.leave(slot, sequence.tokens[sequence.num_prompt_tokens :] if finished else ())
        del self._sequences[sequence.request_id]
        with self._wakeup:
            self._known_ids.discard(sequence.request_id)
        self.metrics.on_finish(sequence, reason)

    def _fail(self, sequence: Sequence, message: str) -> None:
        if sequence.request_id in self._sequences:
            result = RequestOutput(request_id=sequence.request_id, finish_reason=FinishReason.ERROR, error=message)
            self._deliver(sequence, result)

    def _recover(self, turns: SequenceOf[Turn], error: Exception) -> None:
        """A round has failed, at whatever step, and all that is underway is lost with it.

        Its members give their slots and pages back and compute them again, to the same bits: nothing on the device has to be as
        it was. Where memory ran out, prompts are read in smaller chunks from then on. Else each of them has rounds by itself,
        without drafts, until it has given a token. Who fails there fails alone.

        Raises:
            DeviceError: the device has failed for good.
        """
        rounds = dict.fromkeys([*turns, *(turn for round_, _ in self._underway for turn in round_)])
        for turn in rounds:
            self._scheduler.settle_marks(turn, kept=False)
        lost = list(dict.fromkeys(turn.sequence for turn in rounds if turn.sequence.epoch == turn.epoch))
        self._underway.clear()
        try:
            self._round.discard()
        except DeviceError as failure:
            self._failure = failure
            raise
        rows = sum(turn.chunk for turn in rounds)
        if is_out_of_memory(error) and rows and (smaller := self._scheduler.shrink_chunks(rows)):
            _log.warning("Memory ran out: prompts are read in chunks of %d tokens from now on.", smaller)
            self._scheduler.set_back(lost, suspect=False)
        elif len(lost) == 1 and lost[0].suspect:
            _log.error("A round of one request failed again.", exc_info=error)
            self._fail(lost[0], f"The round failed: {error}")
        else:
            _log.error("A round failed; its requests are tried one by one.", exc_info=error)
            self._scheduler.set_back(lost, suspect=True)

    def _report(self) -> None:
        self.metrics.on_round()
        now = self.status()
        self.metrics.on_schedule(now.num_running, now.num_waiting, now.pages_used / now.pages_total, now.num_preemptions)

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
                self._deliver(running, aborted_output(running))
