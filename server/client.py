"""The server's side of the socket to its engine, which runs in another process, or in a thread for those who have one already.

Everything here belongs to the event loop.
"""

import asyncio
import itertools
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from specdec.errors import RequestError
from specdec.request import FinishReason, Request, RequestOutput
from specdec.server.answers import Answer
from specdec.server.errors import ApiError
from specdec.server.messages import Abort, Admitted, Decoder, Delta, Metrics, Refused, Round, Submit, TellMetrics, encode
from specdec.server.record import CallRecord

_RETRY_SECONDS = "1"  # some of those that wait have ended by then
_QUIET_SECONDS = 5.0  # a silent stream is woken after one to two of these; proxies cut one off after a minute, as a rule


class Generation:
    """The answers to one call's requests as they come."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = tuple(requests)
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running = set(range(len(requests)))
        self._parts: dict[int, Answer] = {}
        self._failure: ApiError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._waits_for_all = False
        self._quiet = False  # since it was last looked at
        self._record = CallRecord(requests)

    @property
    def done(self) -> bool:
        """Whether every request has ended and all that came was taken."""
        return not self._running and not self._parts

    @property
    def running_ids(self) -> tuple[str, ...]:
        """The requests that have not ended."""
        return tuple(self.requests[index].request_id for index in self._running)

    async def parts(self) -> dict[int, Answer]:
        """What came since the last call, joined, by the request's index; {} when nothing comes for a while.

        Raises:
            ApiError: a request's round failed, or the engine has ended.
        """
        if self._running and not self._parts:
            await self._wait()
        self._raise_failure()
        parts, self._parts = self._parts, {}
        self._record.take(parts.values())
        self._quiet = False
        return parts

    async def answers(self) -> list[Answer]:
        """All answers, complete.

        Raises:
            ApiError: a request's round failed, or the engine has ended.
        """
        self._waits_for_all = True
        while self._running and self._failure is None:
            await self._wait()
        self._raise_failure()
        self._record.take(self._parts.values())
        return [self._parts.pop(index) for index in range(len(self.requests))]

    def add(self, delta: Delta) -> None:
        """Take in what a round gave a request that goes on."""
        self._part(delta[1]).add(*delta[2:])
        if not self._waits_for_all:
            self._wake()

    def end(self, index: int, output: RequestOutput) -> None:
        """Take in a request's last output."""
        self._running.discard(index)
        if output.finish_reason is FinishReason.ERROR:
            self._failure = _failure(output.error or "The request failed.")
        self._part(index).end(output)
        self._wake()

    def fail(self, error: RequestError | ApiError) -> None:
        """End all requests: none of them was queued, or the engine has ended."""
        if not self.admitted.done():
            self.admitted.set_exception(error)
        elif self._running and isinstance(error, ApiError):
            self._failure = error
        self._running.clear()
        self._wake()

    def tell(self, error: str | None) -> None:
        """The call is over: write its line of the log. error: why it failed, where that was found elsewhere."""
        self._record.take(self._parts.values())
        if self._failure is not None:
            error = self._failure.message
        self._record.tell(error)

    def look(self) -> None:
        """Wake a stream that has brought nothing since the last look."""
        if self._quiet and not self._waits_for_all:
            self._wake()
        self._quiet = True

    def _part(self, index: int) -> Answer:
        part = self._parts.get(index)
        self._record.begin()
        if part is None:
            part = self._parts[index] = Answer()
        return part

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EngineClient(asyncio.Protocol):
    """Speaks with one engine. See `specdec.server.worker` for the other end.

    Args:
        most_open: requests that it takes at once, those that run and those that wait.

    num_running, num_waiting: requests as of the engine's last round.
    on_loss: called when the engine ends without having been told to.
    """

    def __init__(self, most_open: int) -> None:
        self.num_running = self.num_waiting = 0
        self._most_open = most_open
        self._num_open = 0  # requests of open calls
        self.on_loss: Callable[[], None] = lambda: None
        self.lost = False
        self._transport: asyncio.Transport | None = None
        self._decoder = Decoder()
        self._calls = itertools.count()
        self._open: dict[int, Generation] = {}
        self._draining = False
        self._metrics = Metrics(b"", openmetrics=False)  # as last told
        self._scrapes: deque[asyncio.Future[Metrics]] = deque()  # in the order of the answers
        self._disconnected = asyncio.Event()
        self._emptied = asyncio.Event()  # no call is open any more
        self._looks: asyncio.TimerHandle | None = None

    @property
    def healthy(self) -> bool:
        """Whether the engine runs."""
        return self._transport is not None

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return self.healthy and not self._draining

    async def connect(self, sock: socket.socket) -> None:
        """Speak over `sock` from now on."""
        await asyncio.get_running_loop().create_connection(lambda: self, sock=sock)

    @asynccontextmanager
    async def generate(self, requests: Sequence[Request], with_ids: bool = False) -> AsyncIterator[Generation]:
        """Queue the requests of one call; those that still run when the block ends are aborted. with_ids: whether parts of
        answers bring their tokens.

        Raises:
            RequestError: one of them can never be served, or they are too many; none of them runs then.
            ApiError: the engine takes no requests, or too many wait already.
        """
        if self._draining:
            raise ApiError(503, "The server is shutting down.", code="shutting_down")
        if not self.healthy:
            raise ApiError(503, "The engine has stopped; restart the server.", code="engine_stopped")
        self._check_room(len(requests))
        call, generation, refusal = next(self._calls), Generation(requests), None
        self._send(Submit(call, generation.requests, with_ids))
        self._open[call] = generation
        self._num_open += len(requests)
        try:
            await generation.admitted
            yield generation
        except (RequestError, ApiError) as error:
            refusal = error.message
            raise
        finally:
            del self._open[call]
            self._num_open -= len(requests)
            self._abort(generation)
            generation.tell(refusal)
            if not self._open:
                self._emptied.set()

    def _check_room(self, count: int) -> None:
        """Raise RequestError for a call that is too large at any time, ApiError where too many are here already."""
        if count > self._most_open:
            message = f"This call asks for {count} answers, prompts times n; this server takes {self._most_open} at once."
            raise RequestError(message, param="n", code="too_many_answers")
        if self._num_open + count > self._most_open:
            message = f"The queue is full: {self._num_open} requests run or wait, of {self._most_open}; try again in a moment."
            raise ApiError(429, message, code="queue_full", headers={"Retry-After": _RETRY_SECONDS})

    async def metrics(self, openmetrics: bool) -> Metrics:
        """The engine's counters in one form or the other; as last told once it has ended."""
        if not self.healthy:
            return self._metrics
        scrape: asyncio.Future[Metrics] = asyncio.get_running_loop().create_future()
        self._scrapes.append(scrape)
        self._send(TellMetrics(openmetrics))
        return await scrape

    async def drain(self, seconds: float) -> None:
        """Take no more requests, and wait until those that run have ended, for at most so long."""
        self._draining = True
        self._emptied.clear()
        if self._open:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), seconds)

    def cut(self) -> None:
        """Take no more requests, and end those that run with an error."""
        self._draining = True
        for generation in self._open.values():
            self._abort(generation)
            generation.fail(ApiError(503, "The server shut down before the answer was complete.", code="shutting_down"))

    async def disconnect(self) -> None:
        """Tell the engine to end."""
        if self._transport is not None:
            self._draining = True
            self._transport.close()
            await self._disconnected.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._look()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        for message in self._decoder.feed(data):
            self._take(message)

    def connection_lost(self, _error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._transport = None
        if self._looks is not None:
            self._looks.cancel()
        while self._scrapes:
            self._answer_scrape()
        for generation in self._open.values():
            generation.fail(ApiError(500, "The engine has stopped.", code="engine_stopped"))
        self._disconnected.set()
        if not self._draining:
            self.lost = True
            self.on_loss()

    def _look(self) -> None:
        """One timer for all streams: one for each wait would be a fifth of what a token costs."""
        for generation in self._open.values():
            generation.look()
        self._looks = asyncio.get_running_loop().call_later(_QUIET_SECONDS, self._look)

    def _take(self, message: object) -> None:
        match message:
            case Round():
                self._take_round(message)
            case Admitted(call):
                if (generation := self._open.get(call)) and not generation.admitted.done():
                    generation.admitted.set_result(None)
            case Refused(call, error):
                if generation := self._open.get(call):
                    generation.fail(error if isinstance(error, RequestError) else _failure(str(error)))
            case Metrics():
                self._metrics = message
                self._answer_scrape()

    def _take_round(self, message: Round) -> None:
        self.num_running, self.num_waiting = message.num_running, message.num_waiting
        for delta in message.deltas:
            if generation := self._open.get(delta[0]):
                generation.add(delta)
        for call, index, output in message.endings:
            if generation := self._open.get(call):
                generation.end(index, output)

    def _answer_scrape(self) -> None:
        if self._scrapes and not (scrape := self._scrapes.popleft()).done():
            scrape.set_result(self._metrics)

    def _abort(self, generation: Generation) -> None:
        if (request_ids := generation.running_ids) and self.healthy:
            self._send(Abort(request_ids))

    def _send(self, message: object) -> None:
        assert self._transport is not None, "the engine runs"
        self._transport.write(encode(message))


def _failure(message: str) -> ApiError:
    return ApiError(500, message, code="engine_error")
