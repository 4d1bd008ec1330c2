"""POST /v1/completions"""

import asyncio

from aiohttp import web

from specdec.server.auth import salted
from specdec.server.bodies import read_body
from specdec.server.choices import TextChoices
from specdec.server.headers import tell_ignored
from specdec.server.requests import Call, completion_call
from specdec.server.responses import Reply
from specdec.server.routes import post
from specdec.server.schema import CompletionBody, parse
from specdec.server.service import SERVICE
from specdec.server.stream import answer


async def _create(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    body, call = await asyncio.to_thread(_read, request, await read_body(request))  # long prompts take long to tokenize
    tell_ignored(request, service.told, body.ignored)
    choices = TextChoices(service.info.tokenizer, body, call)
    return await answer(request, Reply(service, call, choices), body)


def _read(request: web.Request, raw: bytes) -> tuple[CompletionBody, Call]:
    service, body = request.app[SERVICE], parse(CompletionBody, raw)
    body.cache_salt = salted(request, body.cache_salt)
    service.check_model(body.model)
    return body, completion_call(body, service.info)


routes = [post("/v1/completions", _create)]
