"""The command line: what it refuses, and how; no model is loaded."""

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from typer.testing import CliRunner

from specdec import __version__
from specdec.cache.attention import AttentionCache
from specdec.cli.app import app
from specdec.cli.generate import ctrl_c_noted, summary
from specdec.cli.serve import _greeting, check_port
from specdec.config import named_drafters
from specdec.errors import ConfigError
from specdec.request import RequestOutput, SpeculationStats

CONFIG = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": True, "hidden_act": "silu", "eos_token_id": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "no-such-model", "--port", "0"], "--port"),
        (["serve", "--drafter", "crystal-ball"], "crystal-ball"),
        (["serve", "--drafter", "adversarial"], "adversarial"),
        (["serve", "--drafter", "draft-model"], "--draft-model"),
        (["serve", "--dtype", "int3"], "dtype must be one of"),
        (["serve", "--cache-gb", "0"], "cache_gb must be above 0"),
        (["serve", "--log-level", "loud"], "log_level"),
        (["serve", "--log-level", "INFO", "--log-format", "xml"], "log_format"),
        (["generate", "no-such-model", "-p", "Hi"], "no-such-model"),
        (["generate", "no-such-model", "-p", "Hi", "--temperature", "-1"], "temperature"),
        (["generate", "no-such-model", "-p", " "], "The prompt is empty"),
        (["info", "no-such-model"], "no-such-model"),
        (["bench", "speed", "--against", "abacus"], "against must be"),
        (["bench", "speed", "--content", "poetry"], "poetry"),
        (["bench", "speed", "--shape", "tiny", "--drafter", "suffix"], "leave --drafter out"),
        (["bench", "speed", "--shape", "tiny", "--streams", "1,x"], "streams must be numbers"),
        (["bench", "speed", "--shape", "tiny", "--streams", "", "--context", "0"], "Nothing is to be measured"),
        (["bench", "speed", "--shape", "tiny", "--contenders", "fast"], "plain, ngram, told"),
        (["bench", "tune", "--shape", "tiny"], "PyTorch finds none here"),
        (["bench", "acceptance", "--drafter", "none"], "without a drafter"),
        (["bench", "acceptance", "--suite", "no-such-folder"], "no-such-folder"),
        (["bench", "lossless", "no-such-model"], "no-such-model"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_port_in_use_is_found_before_loading() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} of 127.0.0.1 is in use"):
            check_port("127.0.0.1", port)
        result = CliRunner().invoke(app, ["serve", "no-such-model", "--port", str(port)])
    assert (result.exit_code, "--port" in result.stderr) == (2, True)
    check_port("127.0.0.1", port)


def test_a_host_that_is_not_this_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Cannot listen on 192\.0\.2\.1"):
        check_port("192.0.2.1", 8000)


def test_info_describes_a_model_from_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    result = CliRunner().invoke(app, ["info", str(tmp_path)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "llama" in result.stdout
    assert "256 bytes on a CPU, 128 on a GPU" in result.stdout  # 2 (K and V) * 2 layers * 2 heads * 8 * 4 bytes
    assert "16,384 bytes on a CPU, 8,192 on a GPU" in result.stdout
    assert "state of a sequence" not in result.stdout, "none of its layers keeps one"
    assert "drafter ngram" in result.stdout


def test_info_tells_what_is_kept_beside_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setattr(AttentionCache, "slot_bytes", staticmethod(lambda *_: 1000))
    result = CliRunner().invoke(app, ["info", str(tmp_path)], env={"COLUMNS": "200"})
    assert "2,000 bytes, whatever its length" in result.stdout


def test_info_says_why_a_draft_model_does_not_fit(tmp_path: Path) -> None:
    for name, tokens in (("target", "ab"), ("draft", "ac")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(CONFIG))
        backend = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, []))
        backend.decoder = tokenizers.decoders.ByteLevel()
        backend.save(str(tmp_path / name / "tokenizer.json"))
    arguments = ["info", str(tmp_path / "target"), "--draft-model", str(tmp_path / "draft")]
    said = CliRunner().invoke(app, arguments, env={"COLUMNS": "400"}).stdout
    assert "does not fit: The draft model has another tokenizer: token 1 is 'c' there and 'b' in the target" in said


def test_drafters_from_a_comma_list() -> None:
    assert named_drafters("none", None) == ()
    assert named_drafters("ngram, suffix,", None) == ("ngram", "suffix")
    assert named_drafters("ngram", "small") == ("ngram", "draft-model")


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"specdec {__version__}\n"


def test_greeting_gives_a_command_that_works_as_it_is() -> None:
    text = _greeting("0.0.0.0", 9000, "tiny", with_key=True)
    assert "curl http://127.0.0.1:9000/v1/chat/completions" in text
    assert '-H "Authorization: Bearer $SPECDEC_API_KEY"' in text
    body = text.partition("-d '")[2].rpartition("'")[0]
    assert json.loads(body)["model"] == "tiny"


@pytest.mark.parametrize(
    ("host", "shown"),
    [("::", "[::1]"), ("::1", "[::1]"), ("fe80::1", "[fe80::1]"), ("127.0.0.1", "127.0.0.1"), ("example.org", "example.org")],
)
def test_greeting_writes_addresses_as_urls_have_them(host: str, shown: str) -> None:
    assert _greeting(host, 8000, "tiny", with_key=False).startswith(f"Serving tiny at http://{shown}:8000/v1 ")


def test_summary_names_the_drafters_that_were_right() -> None:
    stats = SpeculationStats(num_steps=5, num_accepted_tokens=5, accepted_by_drafter={"ngram": 4, "suffix": 1, "prediction": 0})
    text = summary(10, 2.0, RequestOutput(request_id="r", stats=stats))
    assert text == (
        "[10 tokens in 2.00 s: 5.0 tok/s, acceptance length 2.00, tokens from drafters: ngram 4 (40%), suffix 1 (10%)]"
    )
    assert "tokens from drafters: none" in summary(0, 1.0, RequestOutput(request_id="r", stats=SpeculationStats()))
    assert summary(3, 2.0, RequestOutput(request_id="r")) == "[3 tokens in 2.00 s: 1.5 tok/s]"


@pytest.fixture
def obeys_ctrl_c() -> Iterator[None]:
    """As where a person started the process; a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_noted_once_and_then_obeyed(obeys_ctrl_c: None) -> None:
    with ctrl_c_noted() as noted:
        signal.raise_signal(signal.SIGINT)
        assert noted == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
