"""The ways of HTTP: paths, methods, encodings, ids, pages of other sites, probes, tokenizing, the page."""

import asyncio
import gzip
import json
import zlib
from typing import Any

import pytest

from specdec.server import app as app_module
from specdec.text.tokenizer import Tokenizer
from tests.server.conftest import Client, Poll, Start
from tests.server.fake_engine import ANSWER, MAX_MODEL_LEN, MODEL, FakeEngine, Script
from tests.server.test_bad_input import error_of

pytestmark = pytest.mark.timeout(60)
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HELLO: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
RAW = json.dumps(HELLO).encode()
PAGE = "http://localhost:3000"  # another origin than the server's


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "/v1//models", "//v1/models", "//v1///models//"])
async def test_slashes_too_many_find_the_endpoint(client: Client, path: str) -> None:
    reader = client.server
    assert reader is not None
    status, body = await raw_get(reader.host, reader.port, path)
    assert status == 200
    assert json.loads(body)["data"][0]["id"] == MODEL


async def raw_get(host: str, port: int | None, path: str) -> tuple[int, bytes]:
    """As it is written: clients of Python tidy paths up."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


async def test_names_with_slashes_are_names(client: Client) -> None:
    assert (await (await client.get(f"/v1/models/{MODEL}/")).json())["id"] == MODEL
    await error_of(await client.post("/v1/chat/completions/x", json=HELLO), 404)


@pytest.mark.parametrize(
    ("path", "methods"), [("/v1/models", "GET, HEAD, OPTIONS"), (CHAT, "OPTIONS, POST"), ("/", "GET, HEAD, OPTIONS")]
)
async def test_options_tells_the_methods(client: Client, path: str, methods: str) -> None:
    response = await client.options(path)
    assert (response.status, response.headers["Allow"]) == (204, methods)


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/ping", "/v1/models", "/metrics", "/version", "/tokenizer_info"])
async def test_head_is_get_without_a_body(client: Client, path: str) -> None:
    response = await client.head(path)
    assert (response.status, await response.read()) == (200, b"")


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", gzip.compress(RAW), 200),
        ("deflate", zlib.compress(RAW), 200),
        ("identity", RAW, 200),
        ("gzip", RAW, 400),
        ("gzip", gzip.compress(RAW)[:-12], 400),
        ("deflate", b"\x00\x01", 400),
        ("br", RAW, 415),
        ("zstd", RAW, 415),
        ("gzip, br", RAW, 415),
        ("gzip", gzip.compress(b" " * (33 << 20)), 413),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_encodings(client: Client, encoding: str, body: bytes, status: int) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    response = await client.post(CHAT, data=body, headers=headers)
    if status == 200:
        assert (await response.json())["choices"][0]["message"]["content"] == ANSWER
    else:
        assert (await error_of(response, status))["code"]


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("application/vnd.api+json", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data", 415),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
async def test_types_that_pages_may_send_unasked_are_refused(client: Client, path: str, kind: str, status: int) -> None:
    response = await client.post(path, data=RAW, headers={"Content-Type": kind})
    if status == 200:
        assert response.status == 200
    else:
        assert "application/json" in (await error_of(response, status))["message"]


async def test_every_response_has_an_id(client: Client) -> None:
    for given, kept in (("my-id-7", True), ("x" * 200, False), ("a b", False)):
        for response in (
            await client.get("/health", headers={"X-Request-Id": given}),
            await client.post(CHAT, json={}, headers={"X-Request-Id": given}),
            await client.get("/nothing", headers={"X-Request-Id": given}),
            await client.post(CHAT, json=HELLO | {"stream": True}, headers={"X-Request-Id": given}),
        ):
            assert (response.headers["X-Request-Id"] == given) == kept
    first, second = [(await client.get("/health")).headers["X-Request-Id"] for _ in range(2)]
    assert first != second


async def test_pages_of_other_sites_are_refused(client: Client, engine: FakeEngine) -> None:
    for origin in (PAGE, "null", "https://evil.example"):
        for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("OPTIONS", CHAT)):
            response = await client.request(method, path, json=HELLO, headers={"Origin": origin})
            error = await error_of(response, 403)
            assert "--allowed-origins" in error["message"]
            assert "Access-Control-Allow-Origin" not in response.headers
    assert not engine.requests
    own = str(client.make_url("/")).rstrip("/")
    assert (await client.post(CHAT, json=HELLO, headers={"Origin": own})).status == 200


@pytest.mark.parametrize("allowed", [("*",), (PAGE, "https://app.example.org")])
async def test_pages_that_are_allowed(start: Start, allowed: tuple[str, ...]) -> None:
    client = await start(allowed_origins=allowed, api_keys=["sesame"])
    asked = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-custom",
    }
    preflight = await client.options(CHAT, headers=asked)
    assert preflight.status == 204, "without a key"
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    assert preflight.headers["Access-Control-Allow-Headers"] == "authorization,x-custom"
    page = {"Origin": PAGE, "Authorization": "Bearer sesame"}
    answers = [
        preflight,
        await client.get("/v1/models", headers=page),
        await client.post(CHAT, json=HELLO, headers=page),
        await client.post(CHAT, json=HELLO | {"stream": True}, headers=page),
        await client.post(CHAT, json={"messages": []}, headers=page),
        await client.get("/v1/models", headers={"Origin": PAGE}),
        await client.get("/nothing", headers=page),
    ]
    assert [answer.status for answer in answers] == [204, 200, 200, 200, 400, 401, 404]
    for answer in answers:
        assert answer.headers["Access-Control-Allow-Origin"] == ("*" if allowed == ("*",) else PAGE)
        assert "x-specdec-ignored" in answer.headers["Access-Control-Expose-Headers"]
    other = await client.get("/v1/models", headers=page | {"Origin": "https://evil.example"})
    assert other.status == (200 if allowed == ("*",) else 403)


async def test_probes(client: Client, engine: FakeEngine, poll: Poll) -> None:
    """While it drains, the server lives and is not ready."""
    engine.scripts["hello"] = Script(pause_after=3)
    for path in ("/health", "/ready", "/ping"):
        assert (await client.get(path)).status == 200
    assert (await client.post("/ping")).status == 200
    await client.app.shutdown()
    assert (await client.get("/health")).status == 200
    ready = await client.get("/ready")
    assert (ready.status, (await ready.json())["status"]) == (503, "shutting down")


async def test_probes_and_the_page_need_no_key(start: Start) -> None:
    client = await start(api_keys=["sesame"])
    for path in ("/", "/health", "/health/", "/ready", "/ping", "/metrics"):
        assert (await client.get(path)).status == 200
    for path in ("/tokenizer_info", "/v1/models", "/v1//models"):
        assert (await client.get(path)).status == 401
    assert (await client.post("/tokenize", json={"prompt": "x"})).status == 401


async def test_the_page_says_what_is_served_and_how_to_call_it(start: Start) -> None:
    client = await start(served_model_name="<b>house</b>")
    response = await client.get("/")
    assert (response.status, response.content_type) == (200, "text/html")
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    text = await response.text()
    assert "<b>" not in text
    assert text.count("&lt;b&gt;house&lt;/b&gt;") >= 3
    assert f"{client.make_url('/v1')}" in text
    metrics = await (await client.get("/metrics")).text()
    for name in ("spec_decode_num_drafts", "spec_decode_num_accepted_tokens", "generation_tokens"):
        assert f'"{name}"' in text
        assert f"specdec:{name}_total" in metrics


async def test_tokenize_and_back(client: Client, tokenizer: Tokenizer) -> None:
    for text in ("the winner", "", "ünïcode 🙂"):
        found = await (await client.post("/tokenize", json={"model": MODEL, "prompt": text})).json()
        ids = tokenizer.encode(text)
        assert (found["tokens"], found["count"], found["max_model_len"]) == (ids, len(ids), MAX_MODEL_LEN)
        assert (await (await client.post("/detokenize", json={"tokens": ids})).json())["prompt"] == text
    found = await (await client.post("/tokenize", json={"prompt": "the", "return_token_strs": True})).json()
    assert found["token_strs"] == ["the"]
    chat = await (await client.post("/tokenize", json=HELLO | {"add_generation_prompt": False})).json()
    assert tokenizer.chat(HELLO["messages"])[: chat["count"]] == chat["tokens"]
    assert chat["count"] < len(tokenizer.chat(HELLO["messages"]))


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/detokenize", {"tokens": [99999]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
    ],
)
async def test_tokenizing_what_cannot_be(client: Client, path: str, body: dict[str, Any], param: str) -> None:
    assert (await error_of(await client.post(path, json=body), 400))["param"] == param
    assert (await client.post(path, json=body | {"model": "gpt-9"})).status in (400, 404)


async def test_what_lm_eval_reads_of_the_tokenizer(client: Client, tokenizer: Tokenizer) -> None:
    """It makes token ids of the special tokens by asking for them, and renders chats by itself."""
    found = await (await client.get("/tokenizer_info")).json()
    assert (found["bos_token"], found["eos_token"], found["unk_token"]) == ("<|im_start|>", "<|im_end|>", None)
    assert found["chat_template"] == tokenizer.chat_template
    body = {"prompt": found["eos_token"], "add_special_tokens": False}
    assert (await (await client.post("/tokenize", json=body)).json())["tokens"] == [2]


async def test_a_connection_that_never_ends_its_header_is_closed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "_SILENT_SECONDS", 0.3)
    client = await start()
    assert client.server is not None
    reader, writer = await asyncio.open_connection(client.server.host, client.server.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n")
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()
    assert (await client.get("/health")).status == 200
