"""An answer on its way to the client: whole once it is there, or as events as it comes."""

from aiohttp import web

from specdec.llm import Completion
from specdec.request import FinishReason
from specdec.server.bridge import Generation
from specdec.server.errors import ApiError
from specdec.server.events import EventStream
from specdec.server.responses import Reply, metrics, usage
from specdec.server.schema import GenerationBody

_KEEP_ALIVE_SECONDS = 10.0  # of silence, after which a stream gets a comment


async def answer(request: web.Request, reply: Reply, body: GenerationBody) -> web.StreamResponse:
    """Submit a call and answer it. However this is left, what still runs is aborted."""
    with reply.service.bridge.submit(reply.call.requests) as generation:
        if body.stream:
            return await stream(EventStream(request), reply, generation, body.include_usage)
        return web.json_response(reply.whole(await collect(generation)))


async def collect(generation: Generation) -> list[Completion]:
    """All answers, complete.

    Raises:
        ApiError: a round failed (500), or the server shuts down before they are complete (503).
    """
    answers = _blank(generation)
    while not generation.done:
        for index, output in await generation.take():
            if output.finish_reason is FinishReason.ABORT:
                raise ApiError(503, "The server shut down before the answer was complete.", code="shutting_down")
            answers[index].add(output, 0.0)
    return answers


async def stream(events: EventStream, reply: Reply, generation: Generation, include_usage: bool) -> web.StreamResponse:
    """Send the choices as they come. The response begins with the first output, so that an early failure has its own status."""
    answers = _blank(generation)
    begun: set[int] = set()
    while not generation.done:
        outputs = await generation.take(_KEEP_ALIVE_SECONDS)
        chunks = []
        for index, output in outputs:
            answers[index].add(output, 0.0)
            delta = Completion(request_id=output.request_id)
            delta.add(output, 0.0)
            chunks += _chunks(reply, index, answers[index], delta, begun)
        if generation.done and not include_usage:
            chunks[-1] |= metrics(answers)
        if chunks:
            await events.send([chunk | {"usage": None} for chunk in chunks] if include_usage else chunks)
        elif not outputs:
            await events.keep_alive()
    if include_usage:
        await events.send([reply.chunk(None) | {"usage": usage(answers, reply.call.n)} | metrics(answers)])
    return await events.done()


def _chunks(reply: Reply, index: int, answer: Completion, delta: Completion, begun: set[int]) -> list[dict[str, object]]:
    """The events that one output makes; none where it brought nothing to show."""
    choices = []
    if index not in begun:
        begun.add(index)
        choices.append(reply.choices.first(index))
    if delta.token_ids or delta.text:
        piece = reply.choices.piece(index, delta)
        choices.append(piece if delta.text or delta.logprobs else None)
    if answer.finish_reason is not None:
        choices.append(reply.choices.last(index, answer))
    return [reply.chunk(choice) for choice in choices if choice is not None]


def _blank(generation: Generation) -> list[Completion]:
    return [Completion(request_id=request.request_id) for request in generation.requests]
