"""`specdec download`: a model's files on this machine, for a later start without the hub."""

from typing import Annotated

import typer

from specdec.cli.progress import on_stderr
from specdec.config import DEFAULT_MODEL


def download(
    model: Annotated[str, typer.Argument(help="Alias or hub id.")] = DEFAULT_MODEL,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the hub.")] = None,
) -> None:
    """Fetch a model into the cache and print where it lies; the printed path can be served."""
    from specdec.models.source import resolve  # brings the hub's client, which --help should not wait for

    source = resolve(model, on_stderr(), revision=revision)
    print(source.path)
