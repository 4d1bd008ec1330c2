"""POST /v1/chat/completions"""

import asyncio

from aiohttp import web

from specdec.errors import RequestError
from specdec.server.auth import salted
from specdec.server.bodies import read_body
from specdec.server.choices import ChatChoices
from specdec.server.headers import tell_ignored
from specdec.server.requests import Call, chat_call
from specdec.server.responses import Reply
from specdec.server.routes import post
from specdec.server.schema import ChatBody, parse
from specdec.server.service import SERVICE
from specdec.server.stream import answer


async def _create(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    body, call = await asyncio.to_thread(_read, request, await read_body(request))  # long prompts take long to tokenize
    tell_ignored(request, service.told, body.ignored)
    choices = ChatChoices(service.info.tokenizer, body, call)
    try:
        return await answer(request, Reply(service, call, choices), body)
    except RequestError as error:
        raise _renamed(error, body) from error


def _read(request: web.Request, raw: bytes) -> tuple[ChatBody, Call]:
    service, body = request.app[SERVICE], parse(ChatBody, raw)
    body.cache_salt = salted(request, body.cache_salt)
    service.check_model(body.model)
    try:
        return body, chat_call(body, service.info)
    except RequestError as error:
        raise _renamed(error, body) from error


def _renamed(error: RequestError, body: ChatBody) -> RequestError:
    """The engine's names of fields, as this client wrote them."""
    names = {"prompt": "messages", "logprobs": "top_logprobs"}
    if body.max_completion_tokens is not None:
        names["max_tokens"] = "max_completion_tokens"
    if error.param not in names:
        return error
    param, message = names[error.param], error.message
    for name in names.keys() - {"prompt"}:  # a plain word, which the messages do make
        message = message.replace(name, names[name])
    return RequestError(message, param=param, code=error.code)


routes = [post("/v1/chat/completions", _create)]
