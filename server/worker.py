"""The engine's side of the socket: round after round, and between two of them what the server asks for.

The server never waits for a round, and a round never for the server: what the socket does not take at once is kept until
it does, which is at most what the running requests have left to say.
"""

import logging
import select
import socket
from typing import TYPE_CHECKING

from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_text

from specdec.engine.sequence import Sink
from specdec.errors import RequestError, RoundError
from specdec.request import RequestOutput
from specdec.server.messages import (
    Abort,
    Admitted,
    Decoder,
    Delta,
    Ending,
    Metrics,
    Refused,
    Round,
    Submit,
    TellMetrics,
    encode,
)
from specdec.server.throughput import ThroughputLines

if TYPE_CHECKING:
    from specdec.engine.engine import Engine

_IDLE_SECONDS = 0.1  # an engine without work is stepped this often, as it was when a thread of its own waited for work
_RECEIVED_BYTES = 1 << 18  # at once; more is read before the next round

_log = logging.getLogger(__name__)


def serve_engine(engine: "Engine", sock: socket.socket) -> None:
    """Run `engine` for the server at the other end of `sock` until that closes it. `sock` is closed when this returns.

    An exception that leaves `engine.step` ends this; the server sees the socket close.
    """
    with sock:
        worker = _Worker(engine, _Channel(sock))
        try:
            worker.run()
        finally:
            worker.tell_metrics(openmetrics=False)  # for those who scrape a server whose engine has failed


class _Channel:
    """Messages over a socket, without ever waiting for the other end to read."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._decoder = Decoder()
        self._unsent = bytearray()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self.closed = False

    def receive(self, seconds: float) -> list[object]:
        """The messages that have arrived; waits up to `seconds` for the first, or until more can be sent."""
        self._poll.modify(self._sock, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        messages: list[object] = []
        for _, events in self._poll.poll(seconds * 1000):
            if events & select.POLLOUT:
                self._flush()
            if events & ~select.POLLOUT:
                messages += self._read()
        return messages

    def send(self, message: object) -> None:
        """Send a message, now or by and by; nothing once the other end is closed."""
        if not self.closed:
            self._unsent += encode(message)
            self._flush()

    def _read(self) -> list[object]:
        try:
            data = self._sock.recv(_RECEIVED_BYTES)
        except ConnectionError:
            data = b""
        self.closed = self.closed or not data
        return self._decoder.feed(data)

    def _flush(self) -> None:
        try:
            del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            pass
        except ConnectionError:
            self.closed = True


class _Worker:
    """Steps an engine, and knows what its requests have said since the last message."""

    def __init__(self, engine: "Engine", channel: _Channel) -> None:
        self._engine = engine
        self._channel = channel
        self._lines = ThroughputLines(engine)
        self._deltas: list[Delta] = []
        self._endings: list[Ending] = []
        self._told = (0, 0)  # requests that run and wait, as the server knows them

    def run(self) -> None:
        """Until the other end is closed."""
        idle = True
        while True:
            for message in self._channel.receive(_IDLE_SECONDS if idle else 0.0):
                self._obey(message)
            if self._channel.closed:
                return
            idle = not self._engine.step()
            self._tell()
            self._lines.look()

    def tell_metrics(self, openmetrics: bool) -> None:
        """Send the engine's counters, in one form or the other."""
        registry = self._engine.metrics.registry
        # colons are legal in names of either form, but this library keeps them in one of them by this word alone
        text = generate_latest(registry)
        if openmetrics:
            text = openmetrics_text(registry, escaping=ALLOWUTF8)  # type: ignore[no-untyped-call]
        self._channel.send(Metrics(text, openmetrics))

    def _obey(self, message: object) -> None:
        match message:
            case Submit():
                self._submit(message)
            case Abort(request_ids):
                for request_id in request_ids:
                    self._engine.abort(request_id)
            case TellMetrics(openmetrics):
                self.tell_metrics(openmetrics)

    def _submit(self, message: Submit) -> None:
        queued: list[str] = []
        try:
            for index, request in enumerate(message.requests):
                self._engine.submit(request, self._sink(message.call, index, message.with_ids))
                queued.append(request.request_id)
        except Exception as error:
            for request_id in queued:
                self._engine.abort(request_id)
            self._channel.send(Refused(message.call, _refusal(error)))
        else:
            self._channel.send(Admitted(message.call))

    def _sink(self, call: int, index: int, with_ids: bool) -> Sink:
        def sink(output: RequestOutput) -> None:
            if output.finish_reason is None:
                ids = output.token_ids
                told = ids if with_ids else ()
                self._deltas.append((call, index, len(ids), output.text, output.logprobs, told, output.prompt_logprobs))
            else:
                self._endings.append((call, index, output))

        return sink

    def _tell(self) -> None:
        """One message for all that the round gave."""
        status = self._engine.status()
        counts = (status.num_running, status.num_waiting)
        if self._deltas or self._endings or counts != self._told:
            self._channel.send(Round(self._deltas, self._endings, *counts))
            self._deltas, self._endings, self._told = [], [], counts


def _refusal(error: Exception) -> RequestError | RoundError:
    if isinstance(error, RequestError):
        return error
    _log.error("A request could not be queued.", exc_info=error)
    return RoundError(f"The engine failed on this request: {error}")
