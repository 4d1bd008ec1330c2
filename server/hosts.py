"""Where an engine runs: in a thread of this process, for those who have one already. See `process.py` for the other way."""

import socket
import threading
from typing import TYPE_CHECKING, Protocol

from specdec.server.messages import EngineInfo
from specdec.server.worker import serve_engine

if TYPE_CHECKING:
    from specdec.assemble import Assembled


class EngineHost(Protocol):
    """An engine that can be reached through a socket."""

    @property
    def info(self) -> EngineInfo:
        """What the server needs to know of it."""
        ...

    def connect(self) -> socket.socket:
        """The server's end of the socket. The engine ends when it is closed."""
        ...

    def join(self) -> str:
        """Wait until the engine has ended, and say how it did."""
        ...


class EngineThread:
    """See `EngineHost`: the engine of `assembled`, which nobody else may step meanwhile."""

    def __init__(self, assembled: "Assembled") -> None:
        self._info = EngineInfo.of(assembled)
        self._engine = assembled.engine
        self._thread: threading.Thread | None = None

    @property
    def info(self) -> EngineInfo:
        return self._info

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        # an exception that ends the thread is printed by `threading.excepthook`
        self._thread = threading.Thread(target=serve_engine, args=(self._engine, theirs), name="specdec-engine", daemon=True)
        self._thread.start()
        return ours

    def join(self) -> str:
        if self._thread is not None:
            self._thread.join()
        return "The engine's thread has ended."
