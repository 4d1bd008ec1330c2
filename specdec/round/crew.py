"""The drafters of an engine as rounds call them. What a drafter raises costs speed, and never a request."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from specdec.draft.protocol import Drafter, Drafts, DraftView, ObserveView, Starter

_log = logging.getLogger(__name__)

_OFF = -1  # as the shape of a drafter that is asked no more


class Crew:
    """Drafters in order of precedence. One that fails inside a round, which may be anybody's fault, is asked no more; one that
    fails when a sequence enters does not draft for that one.

    Args:
        drafters: all of them.
    """

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        self.drafters = tuple(drafters)
        self._working = dict(enumerate(self.drafters))

    @property
    def shapes(self) -> tuple[int, ...]:
        """What recordings depend on, see `Drafter.shape`."""
        working = self._working
        return tuple(drafter.shape if number in working else _OFF for number, drafter in enumerate(self.drafters))

    def enter(self, slot: int, starter: Starter) -> int:
        """A sequence takes a slot; returns the bits of the names that cannot draft for it."""
        failed, first = 0, 0
        for number, drafter in enumerate(self.drafters):
            own = ((1 << len(drafter.names)) - 1) << first
            first += len(drafter.names)
            if number not in self._working:
                continue
            try:
                drafter.enter(slot, starter)
            except Exception:
                _log.exception("The drafter %s fails on a request and does not draft for it.", _name(drafter))
                failed |= own
        return failed

    def leave(self, slot: int, output: Sequence[int]) -> None:
        """A sequence is over, see `Drafter.leave`."""
        for drafter in self._working.values():
            try:
                drafter.leave(slot, output)
            except Exception:
                _log.exception("The drafter %s cannot learn from an answer.", _name(drafter))

    def forget(self) -> None:
        """What drafters know of earlier sequences is gone."""
        for drafter in self.drafters:
            if getattr(drafter, "shared_names", ()):
                drafter.forget()  # type: ignore[attr-defined]

    def catch_up(self) -> None:
        """The next round asks them."""
        for number, drafter in list(self._working.items()):
            try:
                if catch_up := getattr(drafter, "catch_up", None):
                    catch_up()
            except torch.OutOfMemoryError:
                raise
            except Exception:
                self._dismiss(number)

    def draft(self, view: DraftView) -> Iterator[tuple[int, Drafts]]:
        """The place of each drafter that works, and what it offers."""
        for number, drafter in list(self._working.items()):
            try:
                yield number, drafter.draft(view)
            except torch.OutOfMemoryError:
                raise
            except Exception:
                self._dismiss(number)

    def observe(self, view: ObserveView) -> None:
        """See `Drafter.observe`. view: with all hidden states that any of them reads."""
        for number, drafter in list(self._working.items()):
            hidden = {name: view.hidden[name] for name in drafter.reads}
            try:
                drafter.observe(replace(view, hidden=hidden))
            except torch.OutOfMemoryError:
                raise
            except Exception:
                self._dismiss(number)

    def _dismiss(self, number: int) -> None:
        _log.exception("The drafter %s has failed and is asked no more.", _name(self._working.pop(number)))


def _name(drafter: Drafter) -> str:
    return "/".join(drafter.names)
