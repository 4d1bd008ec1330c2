"""What a bench shows, and how it ends."""

from typing import Any

import typer
from rich.console import Console

_FAILED = 1
_Table = tuple[list[str], list[list[str]]]  # header and rows


def show(title: str, table: _Table, data: dict[str, Any], *more: _Table) -> None:
    """The tables, then `data` as the last line of standard output."""
    from specdec.bench import report  # brings torch, which --help should not wait for

    report.show(report.console(), title, *table, data, more)


def end(failures: list[str]) -> None:
    """Exit with 1 where something failed, and say what on the error stream: the JSON stays the last line."""
    console = Console(stderr=True)
    for line in failures:
        console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)
    if failures:
        raise typer.Exit(_FAILED)
