"""A server over a socket, in front of an engine that answers from a script."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from openai import AsyncOpenAI

from specdec.assemble import Assembled
from specdec.models.source import Source
from specdec.server.app import create_app, make_runner
from specdec.text.tokenizer import Tokenizer
from tests.server.fake_engine import MODEL, FakeEngine, assembled_with

Client = TestClient[Any, Any]
Start = Callable[..., Awaitable[Client]]


@dataclass(frozen=True)
class Poll:
    """Waits for what another thread does."""

    seconds: float = field(default=5.0)

    async def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + self.seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            await asyncio.sleep(0.005)


@pytest.fixture
def poll() -> Poll:
    return Poll()


@pytest.fixture(scope="session")
def tokenizer(tiny_checkpoint: Callable[..., Path]) -> Tokenizer:
    folder = tiny_checkpoint("llama")
    return Tokenizer.load(Source(name=MODEL, path=folder))


@pytest.fixture
def engine(tokenizer: Tokenizer) -> FakeEngine:
    return FakeEngine(tokenizer)


@pytest.fixture
def assembled(engine: FakeEngine, tokenizer: Tokenizer) -> Assembled:
    return assembled_with(engine, tokenizer)


class OwnServer(TestServer):
    """Runs an application as `specdec serve` does."""

    async def _make_runner(self, **_kwargs: Any) -> web.AppRunner:
        return make_runner(self.app)


@pytest.fixture
def start(assembled: Assembled, aiohttp_client: Callable[..., Awaitable[Client]]) -> Start:
    """`await start(api_keys=..., served_model_name=...)` gives a client of a server with these options."""

    async def go(**options: Any) -> Client:
        return await aiohttp_client(OwnServer(create_app(assembled, **options)))

    return go


@pytest.fixture
async def client(start: Start) -> Client:
    """Plain HTTP to a server with default options."""
    return await start()


@pytest.fixture
async def openai(client: Client) -> AsyncIterator[AsyncOpenAI]:
    """The official client of the same server."""
    async with AsyncOpenAI(base_url=str(client.make_url("/v1")), api_key="any", max_retries=0, timeout=20) as found:
        yield found


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Every test takes its server's engine thread down again."""
    before = set(threading.enumerate())
    yield
    left = [t for t in threading.enumerate() if t not in before and not t.name.startswith(("asyncio", "ThreadPool"))]
    assert not left
