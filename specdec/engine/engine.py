"""The engine: it plans rounds, settles what they told, and streams. The device works on the next round meanwhile."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np

from specdec.arrays import BoolArray
from specdec.draft.planner import Planner, Seen
from specdec.engine.admission import Admission
from specdec.engine.metrics import EngineMetrics
from specdec.engine.output import emit, output, read_logprobs
from specdec.engine.scheduler import Scheduler
from specdec.engine.sequence import NO_SLOT, HostWork, Sequence, Sink, Turn
from specdec.engine.statistics import count_round
from specdec.errors import RequestError
from specdec.request import FinishReason, Request, RequestOutput
from specdec.round.outcome import Outcome
from specdec.round.plan import RoundPlan
from specdec.round.round import Round
from specdec.round.sample.draw import Nucleus
from specdec.round.slots import Occupant
from specdec.text.tokenizer import TextStream, Tokenizer

_log = logging.getLogger(__name__)

_NOT_FINITE = "The model gave logits that are not finite (NaN or infinite) for this request."


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
        self._tokenizer = tokenizer
        self._admission = admission
        self._depth = depth
        self._host_work = host_work
        self._underway: deque[list[tuple[Turn, int]]] = deque()  # turns with their sequences' epochs
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
        self._scheduler.check()

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
            if not turns and not self._underway:
                return False
            if turns:
                self._enqueue(turns)
            most = self._depth if turns else 0 if scheduled is not None else len(self._underway) - 1
            while len(self._underway) > most:
                self._settle(self._underway.popleft(), self._round.collect())
        except Exception as error:
            _log.exception("A round failed.")
            self._fail_round(turns, f"The round failed: {error}")
        self._num_rounds += bool(turns)
        return True

    def _enqueue(self, turns: list[Turn]) -> None:
        """Everything that the device has to know, then the round."""
        self._welcome()
        turns = self._prepared(turns)
        if not turns:
            return
        plan = self._plan(turns)
        self._round.set_pages(*self._scheduler.take_new_pages())
        if (chances := self._planner.new_chances()) is not None:
            self._round.set_chances(chances)
        self._round.enqueue(plan)
        for turn, nodes in zip(turns, plan.nodes.tolist(), strict=True):
            sequence = turn.sequence
            sequence.num_enqueued = turn.first + turn.chunk
            sequence.ahead += nodes
            sequence.trees_underway += nodes > 0
        self._underway.append([(turn, turn.sequence.epoch) for turn in turns])

    def _prepared(self, turns: list[Turn]) -> list[Turn]:
        """The turns whose host work is done; where it fails, the request fails with it and no other."""
        ready = []
        for turn in turns:
            try:
                turn.prepare()
                ready.append(turn)
            except Exception as error:
                _log.exception("The host's part in a request failed.")
                self._scheduler.settle_mark(turn, sound=False)
                self._fail(turn.sequence, f"The host's part in this request failed: {error}")
        return ready

    def _plan(self, turns: list[Turn]) -> RoundPlan:
        """How many nodes each tree gets, as far as there are pages for them: speculation never takes a page from another
        sequence, and the scheduler has seen to the roots."""
        slots = np.array([turn.sequence.slot for turn in turns], np.int64)
        most = np.array([self._most_nodes(turn) for turn in turns], np.int64)
        chunks = np.array([turn.chunk for turn in turns], np.int64)
        context = self._context = max(turn.sequence.most_tokens for turn in turns)
        budgets = self._planner.plan(slots, most, int(chunks.sum()), context)
        nodes = budgets.nodes
        for index in np.flatnonzero(nodes > 1).tolist():
            nodes[index] = self._fit(turns[index].sequence, int(nodes[index]))
        marks = np.array([turn.mark for turn in turns], np.int64)
        marked = bool((marks >= 0).any())
        return RoundPlan(
            slots=slots,
            firsts=np.array([turn.first for turn in turns], np.int64),
            chunks=chunks,
            nodes=nodes,
            pages=max(len(turn.sequence.pages) for turn in turns),
            odds=budgets.odds,
            least=budgets.least,
            drafting=budgets.drafting,
            marks=marks if marked else None,
            mark_slots=np.array([turn.mark_slot for turn in turns], np.int64) if marked else None,
        )

    def _most_nodes(self, turn: Turn) -> int:
        """Nodes that a tree may have. The round that ends a prompt brings its root alone: there are more shapes of such rounds
        than their drafts are worth recordings."""
        wish = turn.sequence.request.speculation
        if not wish.enabled or turn.chunk or not turn.most_nodes:
            return min(turn.most_nodes, 1)
        return turn.most_nodes if wish.max_nodes is None else min(turn.most_nodes, wish.max_nodes)

    def _fit(self, sequence: Sequence, nodes: int) -> int:
        """As many of the nodes as there are pages for."""
        if self._scheduler.grow(sequence, sequence.most_tokens + nodes - 1):
            return nodes
        return len(sequence.pages) * self._scheduler.page_size - sequence.most_tokens + 1

    def _welcome(self) -> None:
        """Sequences that were admitted enter their slots."""
        admitted, self._scheduler.admitted = self._scheduler.admitted, []
        for sequence, mark in admitted:
            if sequence.slot == NO_SLOT:
                continue
            occupant = Occupant(
                tokens=sequence.tokens,
                num_prompt_tokens=sequence.num_prompt_tokens,
                sampling=sequence.sampling,
                stop_ids=sequence.stop_ids,
                pages=sequence.pages,
                position=sequence.num_cached,
                mark=mark,
                prediction_ids=sequence.request.prediction_ids,
            )
            self._round.enter(sequence.slot, occupant, self._allowed(sequence))
            self._planner.enter(sequence.slot, sequence.sampling.temperature)
            if not sequence.admitted:
                sequence.admitted = True
                self.metrics.on_start(sequence)

    def _allowed(self, sequence: Sequence) -> int:
        """Bits of the drafters that the sequence may use."""
        wanted = sequence.request.speculation.drafter
        return sum(1 << bit for bit, name in enumerate(self._names) if wanted in (None, name))

    def _settle(self, entries: SequenceOf[tuple[Turn, int]], outcome: Outcome) -> None:
        """Each sequence takes its tokens; those that end leave. What came after an end is void."""
        present = [entry[0].sequence.epoch == entry[1] for entry in entries]
        self._learn(outcome, np.array(present))
        accepted, sound = outcome.accepted.tolist(), outcome.sound.tolist()
        nodes = outcome.plan.nodes.tolist()
        for index, (turn, _) in enumerate(entries):
            if not present[index]:
                continue
            sequence = turn.sequence
            if turn.chunk:
                self._scheduler.commit(sequence, turn.first + turn.chunk)
                self._scheduler.settle_mark(turn, sound[index])
            if not nodes[index]:
                continue
            sequence.ahead -= nodes[index]
            sequence.trees_underway -= 1
            if sound[index]:
                self._take(sequence, outcome, index, accepted[index])
            else:
                self._retry(sequence, outcome.shape.nucleus)

    def _learn(self, outcome: Outcome, present: BoolArray) -> None:
        """What a round took, and what became of its drafts."""
        plan, shape = outcome.plan, outcome.shape
        if outcome.seconds is not None:
            distinct = plan.num_chunk + plan.num_trees + int(outcome.drafted.sum())
            rows = max(shape.chunk + shape.trees, distinct)
            self._planner.costs.observe(rows, distinct, self._context, outcome.seconds, shape.drafting)
        if shape.drafting:
            chosen = present & outcome.sound & (plan.nodes > 0)
            self._planner.observe(
                Seen(
                    slots=plan.slots[chosen],
                    accepted=outcome.accepted[chosen],
                    drafted=outcome.drafted[chosen],
                    offers=outcome.offers[chosen],
                    offered=outcome.offered[chosen],
                    paths=outcome.paths[chosen],
                    kinds=outcome.kinds[chosen],
                    parents=outcome.parents[chosen],
                    survivals=outcome.survivals[chosen],
                )
            )

    def _take(self, sequence: Sequence, outcome: Outcome, index: int, accepted: int) -> None:
        """What a round emitted for a sequence."""
        num_cached = len(sequence.tokens) + accepted
        emission = emit(sequence, outcome.emitted[index, : accepted + 1].tolist())
        self._scheduler.commit(sequence, min(num_cached, len(sequence.tokens) - 1))
        kept = min(accepted, len(emission.token_ids))
        drafted = count_round(sequence.stats, outcome, index, kept, self._names, self._planner.sources)
        self.metrics.on_tokens(sequence, len(emission.token_ids), drafted, kept)
        self._deliver(sequence, output(sequence, emission, read_logprobs(sequence, emission.token_ids, outcome, index)))

    def _retry(self, sequence: Sequence, nucleus: Nucleus) -> None:
        """A round was void: where its nucleus was too wide for the round, the next one knows; else nothing helps."""
        slots = self._round.slots
        if nucleus is Nucleus.NARROW and slots.truncated[sequence.slot]:
            slots.wide[sequence.slot] = True
            return
        self._round.scrub(sequence.pages)
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

    def _fail_round(self, turns: Iterable[Turn], message: str) -> None:
        """Whatever was underway is lost with the round."""
        entries = [entry for round_ in self._underway for entry in round_]
        lost = [turn.sequence for turn in turns] + [turn.sequence for turn, epoch in entries if turn.sequence.epoch == epoch]
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
