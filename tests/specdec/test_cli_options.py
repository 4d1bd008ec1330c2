"""The engine's options: declared once, offered everywhere alike, turned into an EngineConfig."""

import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from specdec.cli.app import app
from specdec.cli.options import ALL, ENGINE_OPTIONS, EngineOption, takes_engine
from specdec.config import EngineConfig

LEFT_OUT = {  # by command, the fields that make no sense there
    "info": ALL - {"model", "revision", "draft_model"},
    "lossless": {"max_batch", "chunk_tokens", "prefix_cache"},
    "tune": ALL - {"model", "dtype"},
}
EVERY_COMMAND_HELPS = """
import sys
from typer.testing import CliRunner
from specdec.cli.app import app
benches = [["bench", name] for name in ("speed", "load", "acceptance", "lossless", "tune")]
for command in (["serve"], ["generate"], ["chat"], ["info"], ["download"], *benches):
    assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0
print(*({"torch", "numpy", "aiohttp"} & set(sys.modules)))
"""


def commands() -> dict[str, Any]:
    """All commands by name, those of bench too."""
    root: Any = typer.main.get_command(app)
    found: dict[str, Any] = dict(root.commands)
    benches: dict[str, Any] = found.pop("bench").commands
    del found["download"]  # which needs no engine
    return found | benches


def test_every_field_of_the_config_is_declared_once() -> None:
    assert [option.field for option in ENGINE_OPTIONS] == list(dict.fromkeys(option.field for option in ENGINE_OPTIONS))
    assert {option.field for option in ENGINE_OPTIONS} == {field.name for field in fields(EngineConfig)}


def test_every_command_offers_them_alike() -> None:
    of_serve = {parameter.name: parameter for parameter in commands()["serve"].params}
    for name, command in commands().items():
        found = {parameter.name: parameter for parameter in command.params}
        assert found.keys() & ALL == ALL - LEFT_OUT.get(name, set()), name
        for field in found.keys() & ALL:
            alike = [(p.opts, p.secondary_opts, getattr(p, "help", None)) for p in (found[field], of_serve[field])]
            assert alike[0] == alike[1], (name, field)


def given(*arguments: str, **defaults: object) -> EngineConfig:
    """What a command gets."""
    configs: list[EngineConfig] = []
    small = typer.Typer()

    @small.command()
    @takes_engine(**defaults)
    def command(config: EngineConfig, port: int = 1) -> None:
        configs.append(config)

    result = CliRunner().invoke(small, arguments)
    assert result.exit_code == 0, result.output
    return configs[0]


def test_what_is_not_given_is_the_configs_own() -> None:
    assert given("--port", "2") == EngineConfig()
    assert given(max_batch=3, drafters=(), prefix_cache=False) == EngineConfig(max_batch=3, drafters=(), prefix_cache=False)


def test_what_is_given_reaches_the_config() -> None:
    flags = ["--drafter", "ngram, suffix", "--no-adaptive", "--threads", "2", "--cache-gb", "0.5"]
    expected = EngineConfig(model="tiny", drafters=("ngram", "suffix"), adaptive=False, num_threads=2, cache_gb=0.5)
    assert given("tiny", *flags) == expected
    assert given("--prefix-cache", prefix_cache=False).prefix_cache, "a command's own default can be changed back"
    with_draft = given("--draft-model", "small", "--drafter", "none")
    assert (with_draft.drafters, with_draft.draft_model) == (("draft-model",), "small")


@pytest.mark.parametrize(
    ("option", "flag"),
    [
        (EngineOption("max_batch", None, ""), "--max-batch"),
        (EngineOption("num_threads", None, "", "threads"), "--threads"),
        (EngineOption("model", None, "", ""), ""),
    ],
)
def test_flags_are_the_fields_names_unless_told_otherwise(option: EngineOption, flag: str) -> None:
    assert option.flag == flag


def test_help_waits_for_no_library() -> None:
    done = subprocess.run([sys.executable, "-c", EVERY_COMMAND_HELPS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_a_shape_is_measured_with_one_drafter() -> None:
    result = CliRunner().invoke(app, ["bench", "speed", "--shape", "smollm2-135m", "--drafter", "suffix"])
    assert (result.exit_code, "leave --drafter out" in result.stderr) == (2, True)
