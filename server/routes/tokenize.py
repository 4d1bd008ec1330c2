"""POST /tokenize, POST /detokenize and GET /tokenizer_info, as vLLM has them and lm-eval reads them"""

import asyncio

from aiohttp import web

from specdec.errors import RequestError
from specdec.server.bodies import read_body
from specdec.server.requests import chat_prompt, prompt_ids
from specdec.server.routes import get, post
from specdec.server.schema import DetokenizeBody, TokenizeBody, TokenizeChatBody, check, load
from specdec.server.service import SERVICE, Service


async def _tokenize(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    raw = await read_body(request)
    ids, with_texts = await asyncio.to_thread(_tokens, service, raw)  # long prompts take long to tokenize
    texts = [service.info.tokenizer.token_text(token) for token in ids] if with_texts else None
    length = service.info.max_model_len
    return web.json_response({"count": len(ids), "max_model_len": length, "tokens": ids, "token_strs": texts})


def _tokens(service: Service, raw: bytes) -> tuple[list[int], bool]:
    data = load(raw)
    if "messages" in data:
        chat = check(TokenizeChatBody, data)
        service.check_model(chat.model)
        return chat_prompt(chat, service.info, []), chat.return_token_strs
    text = check(TokenizeBody, data)
    service.check_model(text.model)
    return prompt_ids(text.prompt, service.info, text.add_special_tokens), text.return_token_strs


async def _detokenize(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    body = check(DetokenizeBody, load(await read_body(request)))
    service.check_model(body.model)
    tokenizer = service.info.tokenizer
    for token in body.tokens:
        if not 0 <= token < tokenizer.vocab_size:
            message = f"tokens has {token}, but token ids lie between 0 and {tokenizer.vocab_size - 1}."
            raise RequestError(message, param="tokens", code="invalid_value")
    return web.json_response({"prompt": await asyncio.to_thread(tokenizer.decode, body.tokens)})


async def _info(request: web.Request) -> web.Response:
    info = request.app[SERVICE].info
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    special = {name: info.tokenizer.special_tokens.get(name) for name in names}
    return web.json_response(
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "vocab_size": info.tokenizer.vocab_size,
            "model_max_length": info.max_model_len,
            "chat_template": info.tokenizer.chat_template,
            **special,
        }
    )


routes = [post("/tokenize", _tokenize), post("/detokenize", _detokenize), get("/tokenizer_info", _info)]
