"""An engine in a process of its own, so that HTTP and decoding never wait for each other's turn of the interpreter.

The process ends when its end of the socket closes, and, whatever it is doing, when the process that started it is gone. It
leaves Ctrl-C to that one: a terminal sends it to both.
"""

import gc
import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from specdec.config import EngineConfig
from specdec.errors import ConfigError, DeviceError, SpecdecError
from specdec.progress import Advance, Progress
from specdec.server.messages import Advanced, Decoder, EngineInfo, LoadingFailed, Ready, TaskBegun, TaskEnded, encode
from specdec.server.worker import serve_engine

if TYPE_CHECKING:
    from specdec.assemble import Assembled

_log = logging.getLogger(__name__)

_END_SECONDS = 10.0  # for the process to end by itself; rounds are shorter
_RECEIVED_BYTES = 1 << 18

Build = Callable[[Progress], "Assembled"]
Describe = Callable[["Assembled"], str]


class EngineEndedError(RuntimeError):
    """The engine has ended without having been told to."""


def build_engine(config: EngineConfig, progress: Progress) -> "Assembled":
    """See `specdec.assemble.build`, which brings torch along. Raises ConfigError."""
    from specdec.assemble import build

    return build(config, progress)


class EngineProcess:
    """See `specdec.server.hosts.EngineHost`. A context manager: no process is left when its block ends.

    Args:
        build: makes the engine, in the new process.
        describe: makes the banner, in the new process.
        prepare: called first in the new process, to set up its logs.
    All three are pickled: functions of a module, or `functools.partial` of such.
    """

    def __init__(self, build: Build, describe: Describe, prepare: Callable[[], None] | None = None) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._info: EngineInfo | None = None
        self._process = multiprocessing.get_context("spawn").Process(
            target=_run, args=(self._theirs, build, describe, prepare), name="specdec-engine", daemon=True
        )

    def __enter__(self) -> "EngineProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._info is None and self._process.pid is not None:
            self._process.terminate()
        self._ours.close()
        self._theirs.close()
        if self._process.pid is not None:
            self.join()

    @property
    def info(self) -> EngineInfo:
        assert self._info is not None, "the engine is loaded"
        return self._info

    def load(self, progress: Progress) -> str:
        """Start the process and wait until its engine is ready; returns the banner.

        Raises:
            ConfigError: the engine cannot be built.
            EngineEndedError: the process has ended meanwhile.
        """
        with _no_interrupts():
            self._process.start()
        self._theirs.close()
        message = _show(self._messages(), progress)
        if isinstance(message, LoadingFailed):
            raise ConfigError(message.message)
        if not isinstance(message, Ready):
            raise EngineEndedError(self.join())
        self._info = message.info
        return message.banner

    def connect(self) -> socket.socket:
        return self._ours

    def join(self) -> str:
        self._process.join(_END_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        return f"The engine's process {_how_it_ended(self._process.exitcode)}."

    def _messages(self) -> Iterator[object]:
        decoder = Decoder()
        while data := self._ours.recv(_RECEIVED_BYTES):
            yield from decoder.feed(data)


def _how_it_ended(code: int | None) -> str:
    """In words, by an exit code as multiprocessing gives it."""
    if code is not None and code < 0:
        return f"was ended by signal {-code} ({signal.strsignal(-code)})"
    return f"ended with exit code {code}"


class _TaskFailedError(Exception):
    """An exception left the task in the other process."""


def _show(messages: Iterator[object], progress: Progress) -> object:
    """Show the progress that is told; the first message that is about something else, None where there is none."""
    for message in messages:
        if not isinstance(message, TaskBegun):
            return message
        with suppress(_TaskFailedError), progress.task(message.description, message.total) as advance:
            _advance(messages, advance)
    return None


def _advance(messages: Iterator[object], advance: Advance) -> None:
    for message in messages:
        if isinstance(message, Advanced):
            advance(message.units)
        elif isinstance(message, TaskEnded) and not message.failed:
            return
        else:
            break
    raise _TaskFailedError


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """SIGINT waits, and a process that is started meanwhile never gets one before it says so."""
    resource_tracker.ensure_running()  # multiprocessing starts it before the first process, and lets signals through then
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(sock: socket.socket, build: Build, describe: Describe, prepare: Callable[[], None] | None) -> None:
    """The new process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, name="specdec-parent", daemon=True).start()
    if prepare is not None:
        prepare()
    try:
        assembled = _build(build, _ToldProgress(sock))
    except SpecdecError as error:
        _send(sock, LoadingFailed(str(error)))
        return
    gc.collect()
    gc.freeze()  # what is there stays; to look through it again and again would hold up all streams for a tenth of a second
    try:
        _send(sock, Ready(EngineInfo.of(assembled), describe(assembled)))
        serve_engine(assembled.engine, sock)
    except DeviceError as error:  # a supervisor may start another
        _log.critical("%s", error)
        raise SystemExit(1) from None
    finally:
        gc.unfreeze()  # some libraries complain of what is not freed at the end


def _build(build: Build, progress: Progress) -> "Assembled":
    signal.signal(signal.SIGTERM, _leave)  # loading may be left anywhere, and what it has started with it
    try:
        return build(progress)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from now on the server's word ends this process


def _send(sock: socket.socket, message: object) -> None:
    """Send a message and wait until it is gone; where nobody reads any more, leave."""
    try:
        sock.sendall(encode(message))
    except ConnectionError:
        raise SystemExit(1) from None


def _leave(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _end_with_parent() -> None:
    """Ends this process, whatever it is doing, once the one that started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this process was started by another"
    parent.join()
    os._exit(1)


class _ToldProgress:
    """See `specdec.progress.Progress`: shown by the process that started this one."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Advance]:
        _send(self._sock, TaskBegun(description, total))
        try:
            yield lambda units: _send(self._sock, Advanced(units))
        except Exception:
            _send(self._sock, TaskEnded(failed=True))
            raise
        _send(self._sock, TaskEnded(failed=False))
