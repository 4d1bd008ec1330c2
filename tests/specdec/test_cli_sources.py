"""Where options come from: flags of ours and of other servers, the environment, a config file; and in which order."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from specdec import foreign
from specdec.cli.app import app
from specdec.cli.command import EngineCommand
from specdec.cli.options import ALIASES, ENGINE_OPTIONS, takes_engine
from specdec.config import EngineConfig

ROOT = Path(__file__).parent.parent.parent
Given = tuple[EngineConfig, dict[str, Any]]


def run(arguments: list[str], environment: dict[str, str] | None = None) -> tuple[Result, list[Given]]:
    """A command with an engine's options and some of its own, and what it was called with."""
    got: list[Given] = []
    small = typer.Typer(pretty_exceptions_enable=False)

    @small.command(cls=EngineCommand)
    @takes_engine()
    def command(
        config: EngineConfig,
        port: int = 8000,
        served_model_name: str | None = None,
        stop: list[str] | None = None,
        prompt: str | None = typer.Option(None, "--prompt", "-p"),
        key: str | None = typer.Option(None, envvar="SPECDEC_KEY"),
    ) -> None:
        got.append((config, {"port": port, "name": served_model_name, "stop": stop, "prompt": prompt, "key": key}))

    return CliRunner().invoke(small, arguments, env=environment or {}), got


def given(*arguments: str, **environment: str) -> Given:
    result, got = run(list(arguments), environment)
    assert result.exit_code == 0, (result.output, result.exception)
    return got[0]


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "specdec.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (["--model", "m", "--max-num-seqs", "8"], {"model": "m", "max_batch": 8}),
        (["--model-path", "m", "--context-length", "4096"], {"model": "m", "max_model_len": 4096}),
        (["--max_num_seqs=8", "--max_model_len=512"], {"max_batch": 8, "max_model_len": 512}),
        (["-m", "f.gguf", "-c", "2048", "-np", "4"], {"model": "f.gguf", "max_model_len": 2048, "max_batch": 4}),
        (["-hf", "owner/name", "-c", "0", "-np", "-1", "-t", "2"], {"model": "owner/name", "num_threads": 2}),
        (["--max-model-len", "auto", "--max-num-batched-tokens", "1K"], {"chunk_tokens": 1024}),
        (["--max-model-len", "8k"], {"max_model_len": 8000}),
        (["-md", "d", "--spec-draft-n-max", "5"], {"draft_model": "d", "max_tree_depth": 5}),
        (["--enable-prefix-caching"], {"prefix_cache": True}),
        (["--no-enable-prefix-caching"], {"prefix_cache": False}),
        (["--disable-radix-cache"], {"prefix_cache": False}),
        (["--mem-fraction-static", "0.8"], {"gpu_memory_utilization": 0.8}),
        (["--gpu-memory-utilization", "0.9", "--dtype", "half"], {"gpu_memory_utilization": 0.9, "dtype": "float16"}),
        (["--speculative-num-draft-tokens", "16", "--block-size", "32"], {"max_tree_nodes": 16, "page_size": 32}),
        (["--speculative-algorithm", "NGRAM"], {"drafters": ("ngram",)}),
        (
            ["--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", "d"],
            {"drafters": ("draft-model",), "draft_model": "d"},
        ),
        (["-sc", '{"method": "ngram", "num_speculative_tokens": 4}'], {"drafters": ("ngram",), "max_tree_depth": 4}),
        (['--speculative-config={"model": "d"}'], {"drafters": ("draft-model",), "draft_model": "d"}),
        (["--tensor-parallel-size", "1", "-tp=1", "--quantization", "none", "--kv-cache-dtype", "auto"], {}),
        (["--trust-remote-code", "--seed", "0", "-ngl", "99", "--jinja"], {}),
        (["-fa", "-c", "64", "--flash-attn", "on", "--prefix-cache=false"], {"max_model_len": 64, "prefix_cache": False}),
        (["--no-adaptive", "--prefix-cache"], {"adaptive": False}),
    ],
)
def test_flags_of_other_servers_are_ours(arguments: list[str], fields: dict[str, Any]) -> None:
    draft = {"drafters": (*EngineConfig().drafters, "draft-model")} if fields.get("draft_model") else {}
    assert given(*arguments)[0] == EngineConfig(**draft | fields)


def test_a_commands_own_parameters_have_aliases_too() -> None:
    assert given("--alias", "n", "--port", "1")[1]["name"] == "n"


def test_values_are_left_as_they_are() -> None:
    own = given("-p", "--model", "--stop", "auto", "--stop", "-m", "x")
    assert own[0].model == "x"
    assert (own[1]["prompt"], own[1]["stop"]) == ("--model", ["auto", "-m"])
    assert given("-p", "-1")[1]["prompt"] == "-1"
    assert given("--prompt=a=b")[1]["prompt"] == "a=b"
    assert given("8k")[0].model == "8k"
    assert given("--", "-m")[0].model == "-m"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tensor-parallel-size", "2"], "one device"),
        (["-tp=4"], "one device"),
        (["--quantization", "awq"], "--dtype"),
        (["--enable-lora"], "merge the adapter"),
        (["--tool-call-parser", "hermes"], "in the client"),
        (["--download-dir", "d"], "HF_HOME"),
        (["-sc", '{"method": "eagle3", "model": "d"}'], "'eagle3'"),
        (["-sc", "ngram"], "is not JSON"),
        (["-sc", "[]"], "JSON object"),
        (["--speculative-algorithm", "EAGLE3"], "EAGLE3"),
        (["--spec-type", "mtp"], "mtp"),
    ],
)
def test_what_cannot_be_honoured_says_why(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert words in line


def test_what_has_no_effect_says_so() -> None:
    result, _ = run(["--trust-remote-code", "--seed", "3"])
    assert "--trust-remote-code has no effect: specdec runs no code of a checkpoint." in result.stderr
    assert "--seed has no effect" in result.stderr


def test_every_option_can_stand_in_the_environment() -> None:
    """The README's rule: SPECDEC_ and the flag in capitals."""
    values: dict[str, Any] = {
        "model": "m", "revision": "r", "tokenizer": "t", "chat_template": "{{ x }}", "dtype": "bfloat16", "device": "cpu",
        "threads": 3, "measure_anew": True, "max_model_len": 77, "max_batch": 5, "gpu_memory_utilization": 0.5,
        "cache_gb": 1.5, "page_size": 32, "chunk_tokens": 9, "prefix_cache": False, "depth": 1, "draft_model": "d",
        "drafter": "ngram,draft-model", "acceptance": "rejection", "max_tree_nodes": 7, "max_tree_depth": 6, "adaptive": False,
        "generation_config": "none", "parse_special": True,
    }  # fmt: skip
    known = {(option.flag or "--model").removeprefix("--").replace("-", "_") for option in ENGINE_OPTIONS}
    assert known <= values.keys()
    values = {name: value for name, value in values.items() if name in known}
    config, own = given(**{f"SPECDEC_{name.upper()}": str(value) for name, value in values.items()}, SPECDEC_PORT="81")
    expected: dict[str, Any] = {**values, "drafters": ("ngram", "draft-model"), "num_threads": 3}
    del expected["drafter"], expected["threads"]
    assert (config, own["port"]) == (EngineConfig(**expected), 81)


def test_the_environment_of_a_container_platform_is_no_fault() -> None:
    service = {"SPECDEC_PORT": "tcp://10.0.0.1:8000", "SPECDEC_SERVICE_HOST": "10.0.0.1", "SPECDEC_SERVICE_PORT": "8000"}
    config, own = given(**service, SPECDEC_MAX_BATCH="", SPECDEC_TP="9", SPECDEC_CACHE="/tmp")
    assert (config, own["port"]) == (EngineConfig(), 8000)


def test_lists_and_keys_of_the_environment() -> None:
    _, own = given(SPECDEC_STOP="a b", SPECDEC_KEY="k", SPECDEC_SERVED_MODEL_NAME="n")
    assert (own["stop"], own["key"], own["name"]) == (["a b"], "k", "n")


def test_a_config_file_has_options_by_any_of_their_names(file: Callable[[str], str]) -> None:
    path = file(
        "model: m\nmax-num-seqs: 8\nmax_model_len: 512\nprefix-cache: false\ndrafter: [ngram, suffix]\nport: 81\n"
        "stop: [a, b]\nthreads:\ntrust-remote-code: true\ntensor-parallel-size: 1\n"
    )
    config, own = given("--config", path)
    expected = EngineConfig(model="m", max_batch=8, max_model_len=512, prefix_cache=False, drafters=("ngram", "suffix"))
    assert (config, own["port"], own["stop"]) == (expected, 81, ["a", "b"])
    assert given(SPECDEC_CONFIG=path)[0] == config
    mapping = file("speculative-config:\n  method: ngram\n  num_speculative_tokens: 3\n")
    assert given(f"--config={mapping}")[0] == EngineConfig(drafters=("ngram",), max_tree_depth=3)
    assert given("--config", file(""))[0] == EngineConfig()


def test_words_go_before_the_environment_and_that_before_the_file(file: Callable[[str], str]) -> None:
    path = file("max-batch: 1\nmax-model-len: 100\nport: 1\nmodel: file")
    config, own = given("--config", path, "--max-num-seqs", "3", SPECDEC_MAX_BATCH="2", SPECDEC_MAX_MODEL_LEN="200")
    assert (config.max_batch, config.max_model_len, config.model, own["port"]) == (3, 200, "file", 1)
    assert given("--config", path, "word", SPECDEC_MODEL="variable")[0].model == "word"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max-bath: 8", "there is no option 'max-bath'"),
        ("[1, 2]", "must map options to values"),
        ("a: [", "is not YAML"),
        ("tensor-parallel-size: 2", "one device"),
        ("max-batch: 0", "max_batch must be 1 or more"),
    ],
)
def test_a_wrong_config_file_is_one_line(file: Callable[[str], str], text: str, words: str) -> None:
    result = CliRunner().invoke(app, ["serve", "--config", file(text)])
    (line,) = result.stderr.splitlines()
    assert (result.exit_code, words in line) == (2, True), line


def test_a_config_file_may_be_that_of_another_command(file: Callable[[str], str], tmp_path: Path) -> None:
    path = file(f"model: {tmp_path}/none\nport: 81\nserved-model-name: n\nmax-num-seqs: 3\nalias: n")
    for command in ("info", "download"):
        result = CliRunner().invoke(app, [command], env={"SPECDEC_CONFIG": path, "COLUMNS": "400"})
        assert (result.exit_code, "There is no model" in result.stderr) == (2, True), result.stderr


def test_a_config_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        (line,) = CliRunner().invoke(app, ["serve", "--config", str(path)]).stderr.splitlines()
        assert "cannot be read" in line


def test_every_foreign_name_means_one_thing() -> None:
    tables = [ALIASES, foreign.VOID, foreign.IMPOSSIBLE, foreign.CONVERTED, foreign.FIXED]
    names = [name for table in tables for name in table]
    assert len(names) == len(set(names))
    own = {option.flag for option in ENGINE_OPTIONS}
    assert not own & set(names)


def test_the_document_lists_all_flags() -> None:
    """docs/command-line.md has a row for each option, with its aliases, and one for each flag that is void or impossible."""
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    rows = [re.findall(r"`([^`]+)`", line) for line in text.splitlines() if line.startswith("| `")]
    listed = {row[0]: set(row[1:]) for row in rows}
    for option in ENGINE_OPTIONS:
        assert set(option.aliases) <= listed[option.flag or "MODEL"], option.field
    everything = set().union(*(set(row) for row in rows))
    assert everything >= {*foreign.VOID, *foreign.IMPOSSIBLE, *foreign.CONVERTED, *foreign.FIXED, *ALIASES}


def test_speculative_config_reads_what_vllm_reads() -> None:
    read = foreign.CONVERTED["--speculative-config"]
    assert read({"method": "suffix", "num_speculative_tokens": 8}) == {"drafters": "suffix", "max_tree_depth": 8}
    assert read(json.dumps({"prompt_lookup_max": 4})) == {"drafters": "ngram"}
