"""Steady traffic through an OpenAI-compatible server, from another process than the engine's."""

import asyncio
import json
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp

from specdec.bench.load.events import EventLog
from specdec.bench.load.measures import Trace
from specdec.bench.load.run import Ask, Asks, Drive, OddLane
from specdec.bench.load.traffic import Session
from specdec.errors import RoundError
from specdec.request import SpeculationParams

_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_SHOWN = 300  # characters of a refusal
_LOOK_SECONDS = 0.05  # between looks at the clock where nothing ends


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, and what it wants to be told. url: without /v1."""

    url: str
    model: str
    api_key: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        key = {"Authorization": f"Bearer {self.api_key}"} if self.api_key is not None else {}
        return {"Content-Type": "application/json", **key}


class ServerContender:
    """A server, asked over HTTP.

    Args:
        start: gives a server's address while its context lasts.
        speculation: what requests say of it.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], AbstractContextManager[Address]],
        drafters: tuple[str, ...],
        speculation: SpeculationParams | None = None,
    ) -> None:
        self.name = name
        self.drafters = drafters
        self.speculation = speculation or SpeculationParams()
        self._start = start

    @contextmanager
    def ready(self) -> Generator[Drive, None, None]:
        with self._start() as address:
            yield lambda asks, session: asyncio.run(drive(address, asks, session))


@dataclass(frozen=True, slots=True)
class Message:
    """A request as it is sent."""

    path: str
    body: bytes
    prompt_tokens: int


def message_of(ask: Ask, model: str) -> Message:
    """A streamed request."""
    request, sampling = ask.request, ask.request.sampling
    fields: dict[str, Any] = {
        name: getattr(sampling, name)
        for name in (
            "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
            "seed", "min_tokens", "max_tokens", "ignore_eos",
        )
    }  # fmt: skip
    fields |= {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    fields |= {"logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()}, "stop": list(sampling.stop)}
    fields["speculative"] = {"enabled": request.speculation.enabled, "drafter": request.speculation.drafter}
    if ask.message is None:
        fields |= {"prompt": list(request.prompt_ids), "logprobs": sampling.logprobs}
        return Message(_COMPLETIONS, json.dumps(fields).encode(), len(request.prompt_ids))
    fields["messages"] = [{"role": "user", "content": ask.message}]
    if sampling.logprobs is not None:
        fields |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    return Message(_CHAT, json.dumps(fields).encode(), len(request.prompt_ids))


async def drive(address: Address, asks: Asks, session: Session, clock: Callable[[], float] = time.perf_counter) -> list[Trace]:
    """Send what is due until the session is over, then nothing more. See `specdec.bench.load.run.Drive`.

    Raises:
        RoundError: a request failed.
    """
    source = iter([message_of(ask, address.model) for ask in asks.ordinary])
    odd = OddLane(asks.odd)
    traces: list[Trace] = []
    ended: list[Trace] = []
    lasting = aiohttp.ClientTimeout(total=None)
    everyone = aiohttp.TCPConnector(limit=0)
    try:
        async with (
            aiohttp.ClientSession(address.url, connector=everyone, timeout=lasting, headers=address.headers) as http,
            asyncio.TaskGroup() as group,
        ):
            run = _Run(http, group, clock)
            session.begin(clock())
            while not session.over:
                traces += [run.send(next(source), due, ended) for due in session.due(clock())]
                if (ask := odd.due()) is not None:
                    run.send(message_of(ask, address.model), clock(), odd.ended)
                await run.change(session.idle(clock()))
                session.see(clock(), len(ended))
            # leaving the group waits for what is in flight: only its last event tells how many tokens an answer has
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return traces


class _Run:
    """The requests that are in flight."""

    def __init__(self, http: aiohttp.ClientSession, group: asyncio.TaskGroup, clock: Callable[[], float]) -> None:
        self._http = http
        self._group = group
        self._clock = clock
        self._changed = asyncio.Event()

    def send(self, message: Message, due: float, ended: list[Trace]) -> Trace:
        trace = Trace(due=due, prompt_tokens=message.prompt_tokens)
        self._group.create_task(self._answer(message, trace, ended))
        return trace

    async def change(self, seconds: float | None) -> None:
        """Until a request has ended, or so long."""
        try:
            async with asyncio.timeout(min(_LOOK_SECONDS, _LOOK_SECONDS if seconds is None else seconds)):
                await self._changed.wait()
        except TimeoutError:
            return
        self._changed.clear()

    async def _answer(self, message: Message, trace: Trace, ended: list[Trace]) -> None:
        events, path = EventLog(), message.path
        try:
            async with self._http.post(path, data=message.body) as response:
                if response.status != HTTPStatus.OK:
                    raise RoundError(f"{path} answered {response.status}: {(await response.text())[:_SHOWN]}")
                async for received in response.content.iter_any():
                    events.add(self._clock(), received)
            _read_usage(trace, events, num_leading=path == _CHAT)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise RoundError(f"{path} broke off: {error!r}") from error
        trace.ended = self._clock()
        ended.append(trace)
        self._changed.set()


def _read_usage(trace: Trace, events: EventLog, num_leading: int) -> None:
    """A stream does not say how many tokens an event brings; all of an answer's are taken to bring the same.

    Raises:
        ValueError: the stream ended early.
    """
    told = events.usage()
    usage, speculation = told["usage"], told["metrics"]["speculative_decoding"]
    trace.arrivals = events.arrivals(num_leading)
    num_events = sum(count for _, count in trace.arrivals)
    if num_events == 0:  # all of its text was held back to the end, or there was none
        trace.arrivals[-1], num_events = (trace.arrivals[-1][0], 1), 1
    trace.tokens_per_unit = usage["completion_tokens"] / num_events
    trace.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
    trace.steps, trace.accepted = speculation["num_spec_steps"], speculation["num_accepted_draft_tokens"]
