"""POST /v1/completions"""

import asyncio

from aiohttp import web

from specdec.server.choices import TextChoices
from specdec.server.requests import Call, completion_call
from specdec.server.responses import Reply
from specdec.server.schema import CompletionBody, parse
from specdec.server.service import SERVICE, Service
from specdec.server.stream import answer


async def _create(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    body, call = await asyncio.to_thread(_read, service, await request.read())  # long prompts take long to tokenize
    choices = TextChoices(service.info.tokenizer, body.logprobs is not None, call.echoes)
    return await answer(request, Reply(service, call, choices), body)


def _read(service: Service, raw: bytes) -> tuple[CompletionBody, Call]:
    body = parse(CompletionBody, raw)
    service.check_model(body.model)
    return body, completion_call(body, service.info.tokenizer, service.info.max_model_len)


routes = [web.post("/v1/completions", _create)]
