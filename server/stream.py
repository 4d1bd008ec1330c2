"""An answer on its way to the client: whole once it is there, or as events as it comes."""

import json
import secrets
from typing import Any

from aiohttp import web

from specdec.request import FinishReason
from specdec.server.answers import Answer
from specdec.server.client import Generation
from specdec.server.errors import ApiError
from specdec.server.events import EventStream, event
from specdec.server.responses import Reply, metrics, usage
from specdec.server.schema import GenerationBody

_TEXT = secrets.token_hex(16)  # stands for a text in an event that is made once; nothing else in it can be the same


async def answer(request: web.Request, reply: Reply, body: GenerationBody) -> web.StreamResponse:
    """Submit a call and answer it. However this is left, what still runs is aborted."""
    async with reply.service.engine.generate(reply.call.requests) as generation:
        if body.stream:
            return await stream(EventStream(request), reply, generation, body.include_usage)
        return web.json_response(reply.whole(await whole(generation)))


async def whole(generation: Generation) -> list[Answer]:
    """All answers, complete.

    Raises:
        ApiError: a round failed (500), or the server shuts down before they are complete (503).
    """
    answers = await generation.answers()
    if any(found.finish_reason is FinishReason.ABORT for found in answers):
        raise ApiError(503, "The server shut down before the answer was complete.", code="shutting_down")
    return answers


async def stream(events: EventStream, reply: Reply, generation: Generation, include_usage: bool) -> web.StreamResponse:
    """Send the choices as they come: what came since the last write is one event for each choice, and all are one write.

    The response begins with the first output, so that an early failure has its own status.
    """
    chunks = _Chunks(reply, include_usage)
    answers = [Answer() for _ in generation.requests]
    while not generation.done:
        parts = await generation.parts()
        written = []
        for index, part in parts.items():
            answers[index].count(part)
            written += [chunks.first(index), chunks.delta(index, part)]
            if part.last is not None:
                written.append(chunks.last(index, part, {} if include_usage else metrics(answers)))
        if text := "".join(written):
            await events.send(text)
        elif not parts:
            await events.keep_alive()
    if include_usage:
        await events.send(event(reply.chunk(None) | {"usage": usage(answers, reply.call.n)} | metrics(answers)))
    return await events.done()


class _Chunks:
    """The events of one call. What is the same in all events of a choice is made once: one comes with every token."""

    def __init__(self, reply: Reply, include_usage: bool) -> None:
        self._reply = reply
        self._extra: dict[str, Any] = {"usage": None} if include_usage else {}
        self._frames: dict[int, tuple[str, str]] = {}  # of each choice that has begun, what is before and after a text

    def first(self, index: int) -> str:
        """What opens a choice, the first time."""
        if index in self._frames:
            return ""
        before, after = self._event(self._reply.choices.piece(index, Answer(texts=[_TEXT]))).split(json.dumps(_TEXT))
        self._frames[index] = before, after
        opening = self._reply.choices.first(index)
        return "" if opening is None else self._event(opening)

    def delta(self, index: int, part: Answer) -> str:
        """What `part` adds to a choice; nothing where it has nothing to show."""
        if part.logprobs:
            return self._event(self._reply.choices.piece(index, part))
        if not part.texts:
            return ""
        before, after = self._frames[index]
        return f"{before}{json.dumps(part.text)}{after}"

    def last(self, index: int, part: Answer, extra: dict[str, Any]) -> str:
        """How a choice ends."""
        return self._event(self._reply.choices.last(index, part), extra)

    def _event(self, choice: dict[str, Any], extra: dict[str, Any] | None = None) -> str:
        return event(self._reply.chunk(choice) | (extra or {}) | self._extra)
