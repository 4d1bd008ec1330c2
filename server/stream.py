"""An answer on its way to the client: whole once it is there, or as events as it comes."""

import json
import secrets
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from specdec.request import FinishReason
from specdec.server.answers import Answer
from specdec.server.client import Generation
from specdec.server.errors import ApiError
from specdec.server.events import EventStream, event
from specdec.server.responses import Reply, metrics
from specdec.server.schema import GenerationBody

_TEXT = secrets.token_hex(16)  # stands for a text in an event that is made once; nothing else in it can be the same


async def answer(request: web.Request, reply: Reply, body: GenerationBody) -> web.StreamResponse:
    """Submit a call and answer it. However this is left, what still runs is aborted."""
    async with reply.service.engine.generate(reply.call.requests, body.return_token_ids) as generation:
        if body.stream:
            return await stream(EventStream(request), reply, generation, body)
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


async def stream(events: EventStream, reply: Reply, generation: Generation, body: GenerationBody) -> web.StreamResponse:
    """Send the choices as they come: what came since the last write is one event for each choice, and all are one write.

    The response begins with the first output, so that an early failure has its own status.
    """
    answers = [Answer() for _ in generation.requests]
    chunks, include_usage = _Chunks(reply, body, answers), body.include_usage
    while not generation.done:
        parts = await generation.parts()
        written = []
        for index, part in parts.items():
            answers[index].count(part)
            written += [chunks.first(index, part), chunks.delta(index, part)]
            if part.last is not None:
                written.append(chunks.last(index, part, {} if include_usage else metrics(answers)))
        if text := "".join(written):
            await events.send(text)
        elif not parts:
            await events.keep_alive()
    if include_usage:
        await events.send(event(reply.chunk(None) | {"usage": reply.usage(answers)} | metrics(answers)))
    return await events.done()


class _Chunks:
    """The events of one call. What is the same in all events of a choice is made once: one comes with every token."""

    def __init__(self, reply: Reply, body: GenerationBody, answers: Sequence[Answer]) -> None:
        self._reply = reply
        self._answers = answers
        self._with_ids = body.return_token_ids
        self._counts = body.stream_options.continuous_usage_stats  # in each event
        self._extra: dict[str, Any] = {"usage": None} if body.include_usage else {}
        self._frames: dict[int, tuple[str, str]] = {}  # of each choice that has begun, what is before and after a text

    def first(self, index: int, part: Answer) -> str:
        """What opens a choice, the first time that a part of it comes."""
        if index in self._frames:
            return ""
        before, after = self._event(self._reply.choices.piece(index, Answer(texts=[_TEXT]))).split(json.dumps(_TEXT))
        self._frames[index] = before, after
        opening = self._reply.choices.first(index, part)
        head = self._reply.choices.head(None) if len(self._frames) == 1 else {}
        return "" if opening is None else self._event(opening, head)

    def delta(self, index: int, part: Answer) -> str:
        """What `part` adds to a choice; nothing where it has nothing to show."""
        if part.logprobs or (self._with_ids and part.num_tokens) or (self._counts and part.texts):
            return self._event(self._reply.choices.piece(index, part))
        if not part.texts:
            return ""
        before, after = self._frames[index]
        return f"{before}{json.dumps(part.text)}{after}"

    def last(self, index: int, part: Answer, extra: dict[str, Any]) -> str:
        """How a choice ends."""
        return self._event(self._reply.choices.last(index, part), extra)

    def _event(self, choice: dict[str, Any], extra: dict[str, Any] | None = None) -> str:
        extra = (extra or {}) | ({"usage": self._reply.usage(self._answers)} if self._counts else self._extra)
        return event(self._reply.chunk(choice) | extra)
