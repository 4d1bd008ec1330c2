"""How long work tells a person how far it is, without knowing who shows it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Shows tasks. The command line implements it; `NoProgress` is the default everywhere."""

    def task(self, description: str, total: int | None) -> AbstractContextManager[Advance]:
        """A task of `total` units (None: unknown), over when the context ends; call what it yields with units done."""
        ...


class NoProgress:
    """Shows nothing."""

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Advance]:
        del description, total
        yield lambda _units: None
