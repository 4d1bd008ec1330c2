"""Progress bars on the terminal's error stream, so that results on standard output stay clean."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from specdec.progress import Advance


class RichProgress:
    """See `specdec.progress.Progress`. Bars vanish when done; where nobody watches, each task is one line when it is over."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Advance]:
        if not self._console.is_terminal:
            yield lambda _units: None
            self._console.print(f"{description}: done", highlight=False, markup=False, soft_wrap=True)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self._console, transient=True) as bars:
            shown = bars.add_task(description, total=total)
            yield lambda units: bars.advance(shown, units)


def on_stderr() -> RichProgress:
    """Bars beside what a command prints as its result."""
    return RichProgress(Console(stderr=True))
