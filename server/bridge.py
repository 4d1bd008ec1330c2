"""Between HTTP's event loop and the engine's thread: neither ever waits for the other."""

import asyncio
import threading
from collections.abc import Sequence
from types import TracebackType

from specdec.engine.engine import Engine
from specdec.engine.sequence import Sink
from specdec.request import FinishReason, Request, RequestOutput
from specdec.server.errors import ApiError

_IDLE_SECONDS = 0.1  # the engine's thread looks up this often whether it should stop


class Generation:
    """The outputs of one call's requests as they come, in the event loop. Leaving its `with` block aborts what still runs."""

    def __init__(self, bridge: "Bridge", requests: Sequence[Request]) -> None:
        self.requests = tuple(requests)
        self._bridge = bridge
        self._running = set(range(len(requests)))
        self._outputs: list[tuple[int, RequestOutput]] = []
        self._arrived = asyncio.Event()

    def __enter__(self) -> "Generation":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.abort()
        self._bridge.forget(self)

    @property
    def done(self) -> bool:
        """Whether every request has ended and its outputs were taken."""
        return not self._running and not self._outputs

    async def take(self, timeout: float | None = None) -> list[tuple[int, RequestOutput]]:
        """All outputs that came since the last call, each with its request's index; [] when `timeout` seconds brought none.

        Raises:
            ApiError: a request's round failed, or the engine has stopped.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._arrived.wait()
        except TimeoutError:
            return []
        self._arrived.clear()
        outputs, self._outputs = self._outputs, []
        for _, output in outputs:
            if output.finish_reason is FinishReason.ERROR:
                raise ApiError(500, output.error or "The request failed.", code="engine_error")
        return outputs

    def abort(self) -> None:
        """End the requests that still run; each still gets its last output."""
        for index in self._running:
            self._bridge.abort(self.requests[index].request_id)

    def put(self, index: int, output: RequestOutput) -> None:
        """Take in an output; event loop only."""
        if output.finish_reason is not None:
            self._running.discard(index)
        self._outputs.append((index, output))
        self._arrived.set()

    def fail(self, message: str) -> None:
        """End the requests that still run as failed; event loop only."""
        for index in tuple(self._running):
            request_id = self.requests[index].request_id
            self.put(index, RequestOutput(request_id=request_id, finish_reason=FinishReason.ERROR, error=message))


class Bridge:
    """Runs an engine in a thread of its own. All methods belong to the event loop.

    Args:
        engine: nobody else steps it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._open: set[Generation] = set()
        self._running = False
        self._draining = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def healthy(self) -> bool:
        """Whether the engine runs."""
        return self._running

    def start(self) -> None:
        """Start the engine's thread."""
        self._loop = asyncio.get_running_loop()
        self._running = True
        self._thread = threading.Thread(target=self._run, name="specdec-engine", daemon=True)
        self._thread.start()

    def drain(self) -> None:
        """Take no more requests and end those that run, each with what it has."""
        self._draining = True
        for generation in self._open:
            generation.abort()

    async def stop(self) -> None:
        """End the engine's thread after its round."""
        self._stopping.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def submit(self, requests: Sequence[Request]) -> Generation:
        """Queue the requests of one call.

        Raises:
            RequestError: one of them can never be served; none of them runs then.
            ApiError: the engine takes no requests.
        """
        if self._draining:
            raise ApiError(503, "The server is shutting down.", code="shutting_down")
        if not self.healthy:
            raise ApiError(503, "The engine has stopped; restart the server.", code="engine_stopped")
        generation = Generation(self, requests)
        self._open.add(generation)
        submitted = False
        try:
            for index, request in enumerate(requests):
                self._engine.submit(request, self._sink(generation, index))
            submitted = True
        finally:
            if not submitted:
                generation.__exit__(None, None, None)
        return generation

    def abort(self, request_id: str) -> None:
        """End a request; ids the engine does not know are ignored."""
        self._engine.abort(request_id)

    def forget(self, generation: Generation) -> None:
        """Nobody waits for this generation any more."""
        self._open.discard(generation)

    def _sink(self, generation: Generation, index: int) -> Sink:
        loop = self._loop
        assert loop is not None, "the bridge has not started"

        def sink(output: RequestOutput) -> None:
            loop.call_soon_threadsafe(generation.put, index, output)

        return sink

    def _run(self) -> None:
        """The engine's thread. An exception that leaves it is printed by `threading.excepthook`."""
        assert self._loop is not None
        try:
            while not self._stopping.is_set():
                if not self._engine.step():
                    self._engine.wait(_IDLE_SECONDS)
        finally:
            self._loop.call_soon_threadsafe(self._ended)

    def _ended(self) -> None:
        self._running = False
        for generation in self._open:
            generation.fail("The engine has stopped.")
