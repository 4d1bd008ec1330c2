"""`specdec serve` as its users meet it: a command, the official client, Ctrl-C."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sysconfig
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from aiohttp.test_utils import TestClient
from openai import AsyncOpenAI, OpenAI
from prometheus_client.parser import text_string_to_metric_families

from specdec import assemble
from specdec.config import EngineConfig
from specdec.server.app import create_app

TinyCheckpoint = Callable[..., Path]
pytestmark = pytest.mark.timeout(300)
SECONDS = 120  # to start, to answer, to end; only a hang takes as long
KEY = "sesame"
MAX_MODEL_LEN = 256
WORDS = ("the winner", "he is in the inn", "1212 and 12", "a winter there", "whether", "the answer", "in her", "at a well")
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.7, "seed": 11},
    {"temperature": 1, "seed": 12, "top_p": 0.9, "frequency_penalty": 0.5},
    {"temperature": 1, "seed": 13, "n": 2, "logit_bias": {"40": 2}, "stop": ["xy"]},
)


@dataclass(frozen=True)
class Server:
    """A running server. `log` is what it wrote to both of its streams."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def client(self, **options: Any) -> OpenAI:
        defaults: dict[str, Any] = {"base_url": f"{self.url}/v1", "api_key": KEY, "max_retries": 0, "timeout": SECONDS}
        return OpenAI(**defaults | options)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=SECONDS) as response:
            text: str = response.read().decode()
        return text

    def interrupt(self) -> int:
        """Ctrl-C, which a terminal sends to both of its processes; the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(SECONDS)


def command(*arguments: str) -> list[str]:
    script = shutil.which("specdec", path=sysconfig.get_path("scripts"))
    assert script is not None, "the package is installed where the tests run"
    return [script, *arguments]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
    return port


@contextmanager
def serving(folder: Path, model: str, *options: str) -> Iterator[Server]:
    """A server until the block ends; its log is shown where it does not come up."""
    port, log = free_port(), folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command("serve", model, "--port", str(port), *options),
            stdout=out, stderr=out, env=os.environ | {"HF_HUB_OFFLINE": "1"}, start_new_session=True,
        )  # fmt: skip
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        deadline = time.monotonic() + SECONDS
        while f"{server.url}/v1" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield server
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of a tiny random model that speculates whenever it can."""
    options = ["--served-model-name", "tiny", "--api-key", KEY, "--no-adaptive", "--threads", "1", "--cache-gb", "0.05"]
    options += ["--max-model-len", str(MAX_MODEL_LEN), "--page-size", "16", "--max-tree-nodes", "16"]
    with serving(tmp_path_factory.mktemp("server"), str(tiny_checkpoint("llama")), *options) as found:
        yield found


def bodies() -> list[dict[str, Any]]:
    """32 chats: prompts that share beginnings, all ways of sampling, with logprobs to compare."""
    return [
        {
            "model": "tiny",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": word}],
            "max_tokens": 16 + len(word),
            "logprobs": True,
            "top_logprobs": 2,
            **sampling,
        }
        for word in WORDS
        for sampling in SAMPLINGS
    ]


def choices_of(found: Any) -> list[Any]:
    """The text, the tokens, their logprobs and how it ended."""
    return [choice.model_dump() for choice in found.choices]


def speculation_of(found: Any) -> dict[str, Any]:
    metrics: dict[str, Any] = found.model_extra["metrics"]["speculative_decoding"]
    return metrics


def text_of_stream(chunks: Any) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def test_32_at_once_get_what_each_gets_alone_without_speculation(server: Server) -> None:
    """Sync alone, async together, streamed together: every choice equal to the bit, whatever was drafted."""

    async def together() -> tuple[list[Any], list[str]]:
        options: dict[str, Any] = {"base_url": f"{server.url}/v1", "api_key": KEY, "max_retries": 0, "timeout": SECONDS}

        async def stream(body: dict[str, Any]) -> str:
            chunks = await client.chat.completions.create(**body, stream=True)
            return text_of_stream([chunk async for chunk in chunks])

        async with AsyncOpenAI(**options) as client:
            whole = await asyncio.gather(*(client.chat.completions.create(**body) for body in bodies()))
            streamed = await asyncio.gather(*(stream(body) for body in bodies() if "n" not in body))
        return whole, streamed

    with server.client() as client:
        off = {"speculative": {"enabled": False}}
        alone = [client.chat.completions.create(**body, extra_body=off) for body in bodies()]
    whole, streamed = asyncio.run(together())
    expected = [choices_of(found) for found in alone]
    assert [choices_of(found) for found in whole] == expected
    single = [found for found, body in zip(alone, bodies(), strict=True) if "n" not in body]
    assert streamed == [found.choices[0].message.content for found in single]
    assert len(set(streamed)) > len(streamed) // 2, "the requests differ"
    assert all(speculation_of(found)["num_draft_tokens"] == 0 for found in single)
    accepted = sum(speculation_of(found)["num_accepted_draft_tokens"] for found in whole if len(found.choices) == 1)
    assert accepted > 0, "something was drafted, and some of it was right"


def test_a_prediction_is_followed_and_counted(server: Server) -> None:
    asked: dict[str, Any] = bodies()[0] | {"max_tokens": 40}
    narrow = {"speculative": {"drafter": "prediction"}}
    with server.client() as client:
        plain = client.completions.create(model="tiny", prompt=[40, 41, 42], max_tokens=40, temperature=0)
        right = client.completions.create(
            model="tiny", prompt=[40, 41, 42], max_tokens=40, temperature=0,
            extra_body={"prediction": {"type": "content", "content": plain.choices[0].text}, **narrow},
        )  # fmt: skip
        wrong = client.chat.completions.create(**asked, prediction={"type": "content", "content": "12" * 30}, extra_body=narrow)
    assert right.choices == plain.choices
    for found in (right, wrong):
        assert found.usage is not None
        details = found.usage.completion_tokens_details
        assert details is not None
        said = speculation_of(found)
        accepted, rejected = details.accepted_prediction_tokens, details.rejected_prediction_tokens
        assert (accepted, (accepted or 0) + (rejected or 0)) == (said["num_accepted_draft_tokens"], said["num_draft_tokens"])
        assert accepted is not None
        assert accepted <= found.usage.completion_tokens


def test_streams_end_with_usage_when_asked_for(server: Server) -> None:
    body = bodies()[1]
    with server.client() as client:
        whole = client.chat.completions.create(**body)
        *chunks, last = client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True})
        pieces = client.completions.create(model="tiny", prompt="the inn", max_tokens=9, temperature=0, stream=True)
        text = "".join(choice.text for chunk in pieces for choice in chunk.choices)
        assert text == client.completions.create(model="tiny", prompt="the inn", max_tokens=9, temperature=0).choices[0].text
    assert text_of_stream(chunks) == whole.choices[0].message.content
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert speculation_of(last)["num_spec_steps"] > 0


def test_health_and_metrics_need_no_key(server: Server) -> None:
    with server.client() as client:
        client.chat.completions.create(**bodies()[0])
    assert '"ok"' in server.get("/health")
    families = text_string_to_metric_families(server.get("/metrics"))
    found = {sample.name: sample.value for family in families for sample in family.samples}
    for name in ("drafts", "draft_tokens", "accepted_tokens", "accepted_tokens_per_pos"):
        assert f"specdec:spec_decode_num_{name}_total" in found
    assert found["specdec:generation_tokens_total"] > 0
    assert found["specdec:num_requests_running"] == found["specdec:kv_cache_usage_perc"] == 0
    with pytest.raises(urllib.error.HTTPError, match="401"):
        server.get("/v1/models")
    with server.client(api_key="guess") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with server.client() as client:
        assert [model.id for model in client.models.list()] == ["tiny"]


def test_the_process_that_speaks_http_does_without_torch(server: Server) -> None:
    """Which would take hundreds of megabytes, and on a GPU a context; the engine is in the other process."""
    (engine,) = [child for child in psutil.Process(server.process.pid).children() if "spawn_main" in str(child.cmdline())]
    assert "libtorch" in Path(f"/proc/{engine.pid}/maps").read_text()
    assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temperature": "hot"}, "temperature", r"temperature: .*number"),
        ({"tempreature": 1}, "tempreature", "not a field"),
        ({"speculative": {"drafter": "eagle"}}, "speculative.drafter", "ngram, suffix, prediction"),
        (
            {"messages": [{"role": "user", "content": "12" * 400}]},
            "messages",
            rf"holds {MAX_MODEL_LEN} tokens.*prompt has \d{{3}}",
        ),
    ],
)
def test_what_is_wrong_is_named(server: Server, fields: dict[str, Any], param: str, words: str) -> None:
    with server.client() as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**bodies()[0], extra_body=fields)
    assert caught.value.param == param
    assert isinstance(caught.value.body, dict)
    assert caught.value.body.keys() == {"message", "type", "param", "code"}
    assert caught.value.body["type"] == "invalid_request_error"
    assert re.search(words, caught.value.body["message"])


def test_a_port_in_use_is_one_clear_line(server: Server) -> None:
    port = server.url.rpartition(":")[2]
    done = subprocess.run(command("serve", "--port", port), capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"specdec: Port {port} of 127.0.0.1 is in use by another program; choose another one with --port.\n"


def test_ctrl_c_ends_streams_cleanly(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    model = str(tiny_checkpoint("llama", max_position_embeddings=8192))
    with serving(
        tmp_path, model, "--drafter", "none", "--threads", "1", "--cache-gb", "0.05", "--shutdown-timeout", "0.3"
    ) as server:
        assert ended_by_ctrl_c(server, model) == 0
        log = server.log.read_text()
    assert "Shutting down" in log
    assert "Traceback" not in log


def ended_by_ctrl_c(server: Server, model: str) -> int:
    """Interrupt the server while it streams longer than it may, see the stream end with an error; the server's exit code."""
    codes: list[int] = []
    with server.client() as client:
        chunks = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "the winner"}], stream=True, extra_body={"ignore_eos": True}
        )
        next(chunk for chunk in chunks if chunk.choices[0].delta.content)
        stopper = threading.Thread(target=lambda: codes.append(server.interrupt()))
        stopper.start()
        with pytest.raises(openai.APIError, match="shut down before the answer was complete"):
            list(chunks)
        stopper.join(SECONDS)
    return codes[0]


@pytest.mark.weights
def test_the_small_real_model_is_served(smollm2: str, tmp_path: Path) -> None:
    """Speculation on and off give the same text; the server ends on Ctrl-C."""
    prompt = "Repeat this line: red, green, blue, red, green, blue, red, green, blue"
    body: dict[str, Any] = {"model": smollm2, "messages": [{"role": "user", "content": prompt}], "max_tokens": 24, "seed": 5}
    options = ["--max-model-len", "512", "--cache-gb", "0.1", "--no-adaptive", "--threads", "1", "--shutdown-timeout", "0.3"]
    with serving(tmp_path, smollm2, *options) as server:
        with server.client() as client:
            off = client.chat.completions.create(**body, extra_body={"speculative": {"enabled": False}})
            on = client.chat.completions.create(**body)
            streamed = text_of_stream(client.chat.completions.create(**body, stream=True))
        assert choices_of(on) == choices_of(off)
        assert streamed == on.choices[0].message.content
        assert streamed
        assert speculation_of(off)["num_draft_tokens"] == 0
        assert ended_by_ctrl_c(server, smollm2) == 0
        assert "leaked" not in server.log.read_text(), "what was kept from the garbage collector is given back at the end"


@pytest.fixture(scope="module")
def assembled(tiny_checkpoint: TinyCheckpoint) -> assemble.Assembled:
    """An engine in this process, for tests that look inside it."""
    model = str(tiny_checkpoint("llama", max_position_embeddings=8192))
    return assemble.build(EngineConfig(model=model, cache_gb=0.05, page_size=16, drafters=("ngram",), adaptive=False))


def slowly(enqueue: Callable[..., Any]) -> Callable[..., Any]:
    """Rounds of a tenth of a second, which are long against what HTTP takes."""

    def run(*arguments: Any) -> Any:
        time.sleep(0.1)
        return enqueue(*arguments)

    return run


async def test_a_client_that_leaves_frees_its_pages_within_a_round(
    assembled: assemble.Assembled,
    aiohttp_client: Callable[..., Awaitable[TestClient[Any, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = assembled.engine
    aborted_at: list[int] = []
    abort = engine.abort

    def noted_abort(request_id: str) -> None:
        aborted_at.append(engine.status().num_rounds)
        abort(request_id)

    monkeypatch.setattr(engine, "abort", noted_abort)
    monkeypatch.setattr(engine._round, "enqueue", slowly(engine._round.enqueue))
    client = await aiohttp_client(create_app(assembled))
    body = {"model": assembled.model_name, "prompt": "the winner", "max_tokens": 500, "ignore_eos": True}
    for streamed in (True, False):
        aborted_at.clear()
        leaving = asyncio.create_task(client.post("/v1/completions", json=body | {"stream": streamed}))
        while engine.status().pages_used == 0:
            await asyncio.sleep(0.01)
        if streamed:
            response = await leaving
            await response.content.readany()
            response.close()
        else:
            leaving.cancel()
        while engine.status().pages_used:
            await asyncio.sleep(0.005)
        assert len(aborted_at) == 1, "the server saw the client leave"
        assert engine.status().num_rounds - aborted_at[0] <= 1, "the round that ran then was the last"
        assert engine.status().num_running == 0
    engine.check()


async def test_a_crash_inside_a_round_costs_time_and_one_in_every_round_is_a_500(
    assembled: assemble.Assembled,
    aiohttp_client: Callable[..., Awaitable[TestClient[Any, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, enqueue = assembled.engine, assembled.engine._round.enqueue
    crashes: list[int] = []
    client = await aiohttp_client(create_app(assembled))
    body = {"model": assembled.model_name, "prompt": "the winner", "max_tokens": 200, "temperature": 0, "ignore_eos": True}

    async def post(**fields: Any) -> tuple[int, dict[str, Any]]:
        response = await client.post("/v1/completions", json=body | fields)
        return response.status, await response.json()

    def crash_once(*arguments: Any) -> Any:
        if engine.status().num_running == 2 and not crashes:
            crashes.append(engine.status().num_rounds)
            raise RuntimeError("out of luck")
        return enqueue(*arguments)

    with monkeypatch.context() as broken:
        broken.setattr(engine._round, "enqueue", crash_once)
        found = await asyncio.gather(post(), post(prompt="another"))
        assert crashes
    again = await post(), await post(prompt="another")
    for (status, answer), (_, alone) in zip(found, again, strict=True):
        assert (status, answer["usage"]["completion_tokens"]) == (200, 200)
        assert answer["choices"][0]["text"] == alone["choices"][0]["text"]
    with monkeypatch.context() as broken:
        broken.setattr(engine._round, "enqueue", lambda _: 1 / 0)
        status, answer = await post()
        assert (status, answer["error"]["type"]) == (500, "server_error")
        assert "division by zero" in answer["error"]["message"]
    assert engine.status().pages_used == 0
    engine.check()
    assert (await post())[0] == 200
    assert (await client.get("/health")).status == 200
