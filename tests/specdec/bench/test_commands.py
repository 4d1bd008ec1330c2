"""The commands of `make gpu-bench` are understood by the benches that they name; nothing is measured."""

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from specdec.cli.app import app

pytest.importorskip("triton")

MAKEFILE = (Path(__file__).parents[3] / "Makefile").read_text().replace("\\\n", " ")
COMMANDS = [shlex.split(line) for line in re.findall(r"\$\(GPU_PYTHON\) -m (specdec[^|\n]*)", MAKEFILE)]


class Understood(Exception):
    """Raised in place of the measurement."""


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_is_understood(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module, *options = command
    if module == "specdec":
        understand(options)
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, *arguments: Any) -> argparse.Namespace:
        parse(parser, *arguments)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "argv", [module, *options])
    with pytest.raises(Understood):
        importlib.import_module(module).main()


def understand(words: list[str]) -> None:
    """Parse a command of the command line."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    command.make_context(command.name, words)


def test_there_is_a_command_for_every_bench_of_a_gpu() -> None:
    found = {command[0] for command in COMMANDS} | {command[2] for command in COMMANDS if command[0] == "specdec"}
    assert found >= {f"specdec.bench.{name}" for name in ("kernels", "timeline", "prefill", "loading")}
    assert found >= {"speed", "load", "lossless"}


def test_a_wrong_option_would_be_noticed() -> None:
    with pytest.raises(Exception, match="no-such-option"):
        understand(["bench", "speed", "--no-such-option"])
