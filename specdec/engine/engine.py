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
from specdec.engine.output import emit, finish_prompt, keep_prompt_logprobs, read_logprobs, tell_prompt_logprobs
from specdec.engine.scheduler import Scheduler
from specdec.engine.sequence import NO_SLOT, HostWork, Sequence, Sink, Turn
from specdec.engine.statistics import EngineStatus, count_drafts, count_step
from specdec.engine.turns import marks_of, occupant_of
from specdec.errors import RequestError
from specdec.request import FinishReason, Request, RequestOutput
from specdec.round.outcome import Outcome
from specdec.round.plan import RoundPlan
from specdec.round.round import Round
from specdec.round.sample.draw import Nucleus
from specdec.text.tokenizer import TextStream, Tokenizer

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
        self._kind_names = [self._names[source] for source in round_.drafting.names.sources_X.tolist()]
        self._tokenizer = tokenizer
        self._admission = admission
        self._depth = depth
        self._host_work = host_work
        self._underway: deque[list[Turn]] = deque()
        self._sequences: dict[str, Sequence] = {}  # touched by the stepping thread only
        self._num_rounds = 0
        self._context = 1  # tokens of the longest sequence of the last round
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
            host_work=tuple(work for work in self._host_work if work.concerns(request)),
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
            if request_id in self._known_ids:
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

        A round that fails takes its own requests with it, and those whose rounds are underway.
        """
        self._take_commands()
        turns: list[Turn] = []
        try:
            scheduled = self._scheduler.schedule(underway=bool(self._underway))
            self._report()
            turns = scheduled or []
            finished = self._finish_known()
            if not turns and not self._underway:
                return finished
            if turns:
                self._enqueue(turns)
            most = self._depth if turns else 0 if scheduled is not None else len(self._underway) - 1
            while len(self._underway) > most:
                self._settle(self._underway[0], self._round.collect())
                self._underway.popleft()
        except Exception as error:
            _log.exception("A round failed.")
            self._fail_round(turns, f"The round failed: {error}")
        self._num_rounds += bool(turns)
        return True

    def _enqueue(self, turns: list[Turn]) -> None:
        """Everything that the device has to know, then the round."""
        self._welcome()
        if self._host_work:
            turns = self._prepared(turns)
        if not turns:
            return
        plan = self._plan(turns)
        self._tell_pages()
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
        self._underway.append(turns)

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

    def _plan(self, turns: list[Turn]) -> RoundPlan:
        """How many nodes each tree gets, as far as there are pages for them: speculation never takes a page from another
        sequence, and the scheduler has seen to the roots."""
        slots = np.array([turn.sequence.slot for turn in turns], np.int64)
        most = np.array([turn.most_nodes for turn in turns], np.int64)
        chunks = np.array([turn.chunk for turn in turns], np.int64)
        context = self._context = max([len(turn.sequence.tokens) + turn.sequence.ahead for turn in turns])
        budgets = self._planner.plan(slots, most, int(chunks.sum()), context)
        nodes = budgets.nodes
        for index in np.flatnonzero(nodes > 1).tolist():
            nodes[index] = self._fit(turns[index].sequence, int(nodes[index]))
        marks, mark_slots = marks_of(turns)
        return RoundPlan(
            slots=slots,
            firsts=np.array([turn.first for turn in turns], np.int64),
            chunks=chunks,
            nodes=nodes,
            pages=max([len(turn.sequence.pages) for turn in turns]),
            odds=budgets.odds,
            least=budgets.least,
            drafting=budgets.drafting,
            marks=marks,
            mark_slots=mark_slots,
        )

    def _fit(self, sequence: Sequence, nodes: int) -> int:
        """As many of the nodes as there are pages for."""
        if self._scheduler.grow(sequence, sequence.most_tokens + nodes - 1):
            return nodes
        return len(sequence.pages) * self._scheduler.page_size - sequence.most_tokens + 1

    def _welcome(self) -> None:
        """Sequences that were admitted enter their slots."""
        for sequence, mark in self._scheduler.admitted:
            if sequence.slot == NO_SLOT:
                continue
            occupant, salt = occupant_of(sequence, mark), sequence.request.cache_salt
            self._round.enter(sequence.slot, occupant, self._allowed(sequence), salt)
            self._planner.enter(sequence.slot, sequence.sampling.temperature)
            if not sequence.admitted:
                sequence.admitted = True
                self.metrics.on_start(sequence)
        self._scheduler.admitted.clear()

    def _allowed(self, sequence: Sequence) -> int:
        """Bits of the drafters that the sequence may use."""
        wanted = sequence.request.speculation.drafter
        return sum(1 << bit for bit, name in enumerate(self._names) if wanted in (None, name))

    def _tell_pages(self) -> None:
        """Pages that were given since the last round."""
        slots, indices, pages = self._scheduler.take_new_pages()
        if pages:
            self._round.set_pages(slots, indices, pages)

    def _settle(self, turns: list[Turn], outcome: Outcome) -> None:
        """Each sequence takes its tokens; those that end leave. What came after an end is void."""
        present = [turn.sequence.epoch == turn.epoch for turn in turns]
        learn(self._planner, outcome, np.array(present), self._context)
        columns = (outcome.plan.nodes, outcome.sound, outcome.accepted, outcome.drafted, outcome.emitted)
        told = zip(*(column.tolist() for column in columns), strict=True)
        for index, (turn, (nodes, sound, accepted, drafted, emitted)) in enumerate(zip(turns, told, strict=True)):
            if not present[index]:
                self._scheduler.settle_marks(turn, kept=False)
                continue
            sequence = turn.sequence
            if turn.chunk:
                self._scheduler.commit(sequence, turn.first + turn.chunk)
            self._scheduler.settle_marks(turn, kept=sound)
            if turn.chunk and not self._read_prompt(sequence, outcome, index, turn):
                continue
            if not nodes:
                continue
            sequence.ahead -= nodes
            sequence.trees_underway -= 1
            if sound:
                self._take(sequence, outcome, index, emitted[: accepted + 1], drafted)
            else:
                self._retry(sequence, outcome.shape.nucleus)

    def _read_prompt(self, sequence: Sequence, outcome: Outcome, index: int, turn: Turn) -> bool:
        """More of a prompt is read; False where that ends its request."""
        if not keep_prompt_logprobs(sequence, outcome, index, turn.first, turn.chunk):
            self._scheduler.spoil(sequence.pages)
            self._fail(sequence, _NOT_FINITE)
            return False
        if sequence.wants_tokens or not sequence.prompt_known:
            return True
        self._finish_prompt(sequence)
        return False

    def _finish_known(self) -> bool:
        """Requests for no tokens whose prompts have nothing left to read when they are admitted."""
        known = [sequence for sequence, _ in self._scheduler.admitted if not sequence.wants_tokens and sequence.prompt_known]
        for sequence in known:
            self.metrics.on_start(sequence)
            self._finish_prompt(sequence)
        return bool(known)

    def _finish_prompt(self, sequence: Sequence) -> None:
        """A request for no tokens has all that it asked for."""
        result = finish_prompt(sequence)
        tell_prompt_logprobs(sequence, result)
        self._deliver(sequence, result)

    def _take(self, sequence: Sequence, outcome: Outcome, index: int, emitted: list[int], drafted: int) -> None:
        """What a round emitted for a sequence. This runs for every member of every round."""
        result = emit(sequence, emitted)
        num_tokens = len(result.token_ids)
        self._scheduler.commit(sequence, len(sequence.tokens) - 1)
        if drafted:
            kept = min(len(emitted) - 1, num_tokens)
            count_drafts(sequence.stats, outcome, index, kept, self._kind_names)
            self.metrics.on_drafts(drafted, kept)
        count_step(sequence.stats, min(len(emitted) - 1, num_tokens))
        self.metrics.on_tokens(sequence, num_tokens)
        if sequence.reads_whole_prompt:
            tell_prompt_logprobs(sequence, result)
        if outcome.scores is not None:
            result.logprobs = read_logprobs(sequence, result.token_ids, outcome, index)
        if result.finish_reason is not None:
            self._end(sequence, result.finish_reason)
        sequence.sink(result)

    def _retry(self, sequence: Sequence, nucleus: Nucleus) -> None:
        """A round was void: where its nucleus was too wide for the round, the next one knows; else nothing helps."""
        if nucleus is Nucleus.NARROW and self._round.widen(sequence.slot):
            return
        self._scheduler.spoil(sequence.pages)
        self._fail(sequence, _NOT_FINITE)

    def _deliver(self, sequence: Sequence, result: RequestOutput) -> None:
        if result.finish_reason is not None:
            self._end(sequence, result.finish_reason)
        sequence.send(result)

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

    def _fail_round(self, turns: SequenceOf[Turn], message: str) -> None:
        """Whatever was underway is lost with the round, and who was admitted but may not have entered a slot."""
        rounds = [*turns, *(turn for round_ in self._underway for turn in round_)]
        for turn in rounds:
            self._scheduler.settle_marks(turn, kept=False)
        lost = [turn.sequence for turn in rounds if turn.sequence.epoch == turn.epoch]
        lost += [sequence for sequence, _ in self._scheduler.admitted if sequence.slot != NO_SLOT]
        self._scheduler.admitted.clear()
        self._underway.clear()
        self._round.discard()
        for sequence in lost:
            self._fail(sequence, message)

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
