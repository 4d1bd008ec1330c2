"""`specdec bench`: one file per command. Tables on standard output, its last line one JSON object."""

import typer

from specdec.cli.bench.acceptance import acceptance
from specdec.cli.bench.load import load
from specdec.cli.bench.lossless import lossless
from specdec.cli.bench.speed import speed
from specdec.cli.bench.tune import tune
from specdec.cli.command import OTHER_NAMES, EngineCommand

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Measure speed, steady traffic, acceptance and losslessness."
)
for _command in (speed, load, acceptance, lossless, tune):
    app.command(cls=EngineCommand, epilog=OTHER_NAMES)(_command)
