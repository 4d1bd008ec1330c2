"""The command line: `specdec serve`, `generate`, `chat`, `info`, `download` and `bench`."""

import os
import sys
from typing import Annotated, Any

import typer

from specdec import __version__
from specdec.cli import bench, chat, download, generate, info, serve
from specdec.cli.command import OTHER_NAMES, EngineCommand
from specdec.errors import SpecdecError

_USER_ERROR = 2


class _Commands(typer.core.TyperGroup):
    """Says what a user did wrong in one line, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SpecdecError as error:
            print(f"specdec: {error}", file=sys.stderr)
            raise typer.Exit(_USER_ERROR) from error
        except BrokenPipeError:  # whoever read the output has left, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Lossless tree speculative decoding: the model's own tokens, sooner.",
)
for _command in (serve.serve, generate.generate, chat.chat, info.info):
    app.command(cls=EngineCommand, epilog=OTHER_NAMES)(_command)
app.command(cls=EngineCommand)(download.download)
app.add_typer(bench.app, name="bench")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"specdec {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the console script."""
    app()
