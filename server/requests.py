"""From a checked body to engine requests."""

import json
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from specdec.errors import RequestError
from specdec.request import Request, SamplingParams, SpeculationParams, resolve_seed
from specdec.server.messages import EngineInfo
from specdec.server.schema import ChatBody, ChatFields, CompletionBody, GenerationBody, Message
from specdec.text.tokenizer import Tokenizer

_COMPLETION_TOKENS = 16  # what /v1/completions gives when max_tokens is left out
_SEED_MASK = 2**63 - 1  # the API's seeds are signed, the engine's are not
_SHRINKS = 4  # a tokenizer's normal form has no fewer than a fourth of a text's characters
_NO_EFFORT = {"enable_thinking": False, "thinking": False}  # how templates call it


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP call as engine requests: prompt by prompt, each prompt's n choices side by side.

    echoes: per request, the text that is put before the answer's.
    """

    id: str
    requests: tuple[Request, ...]
    n: int
    echoes: tuple[str, ...]

    @property
    def num_prompt_tokens(self) -> int:
        """Of all prompts, each of which counts once."""
        return sum(len(request.prompt_ids) for request in self.requests[:: self.n])


def chat_call(body: ChatBody, info: EngineInfo) -> Call:
    """One conversation, n choices. The answer may take all of the context that the prompt leaves, unless told otherwise.

    Raises:
        RequestError: a value is out of its range, or the chat template refuses the messages.
    """
    prompt = chat_prompt(body, info, body.ignored)
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _call("chatcmpl", body, info, [prompt], _limits([prompt], info, asked, info.max_model_len), logprobs)


def completion_call(body: CompletionBody, info: EngineInfo) -> Call:
    """One or several prompts, n choices each.

    Raises:
        RequestError: a value is out of its range.
    """
    prompts = [prompt_ids(prompt, info, body.add_special_tokens) for prompt in body.prompt]
    limits = _limits(prompts, info, body.max_tokens, _COMPLETION_TOKENS)
    echoes = [_echo(prompt, info.tokenizer) if body.echo else "" for prompt in body.prompt]
    return _call("cmpl", body, info, prompts, limits, body.logprobs, echoes)


def prompt_ids(prompt: str | list[int], info: EngineInfo, add_special_tokens: bool) -> list[int]:
    """A text's tokens, or token ids as they are."""
    if not isinstance(prompt, str):
        return prompt
    _check_size(prompt, info, "prompt")
    return info.tokenizer.encode(prompt, add_special_tokens=add_special_tokens)


def chat_prompt(body: ChatFields, info: EngineInfo, ignored: list[str]) -> list[int]:
    """A conversation's tokens. `ignored` gets the names of what the model's template does not read.

    Raises:
        RequestError: the conversation cannot fit, or the chat template refuses the messages.
    """
    size = sum(len(message.content or "") for message in body.messages)
    _check_size(size, info, "messages")
    variables = _variables(body)
    messages = [_message(message) for message in body.messages]
    read = info.tokenizer.chat_template or ""
    thoughts = {"reasoning_content"} if any("reasoning_content" in message for message in messages) else set()
    ignored += [name for name in sorted({*body.chat_template_kwargs, *thoughts, *_wishes(body)}) if name not in read]
    ids = info.tokenizer.chat(messages, None, variables, body.continue_final_message)
    return info.tokenizer.encode("", add_special_tokens=True) + ids if body.add_special_tokens else ids


def _wishes(body: ChatFields) -> list[str]:
    """Template variables that have fields of their own."""
    return [name for name in ("enable_thinking", "reasoning_effort") if getattr(body, name) is not None]


def _variables(body: ChatFields) -> dict[str, Any]:
    """What the template is given beside the messages; what is said in `chat_template_kwargs` goes before."""
    given: dict[str, Any] = {name: getattr(body, name) for name in _wishes(body)}
    if body.reasoning_effort == "none":
        given = _NO_EFFORT | given
    if body.add_generation_prompt is not None:
        given["add_generation_prompt"] = body.add_generation_prompt
    return given | body.chat_template_kwargs


def _check_size(text: str | int, info: EngineInfo, param: str) -> None:
    """Raise RequestError where a text is too long for the context whatever its tokens are, before these are looked for."""
    size = text if isinstance(text, int) else len(text)
    most = info.max_model_len * info.tokenizer.longest_token * _SHRINKS
    if size > most:
        raise RequestError(
            f"This server's context holds {info.max_model_len} tokens, but {param} has {size} characters, which is more than "
            "they can stand for. Shorten the prompt.",
            param=param,
            code="context_length_exceeded",
        )


def _limits(prompts: Sequence[Sequence[int]], info: EngineInfo, asked: int | None, default: int) -> list[int]:
    """How many tokens each prompt's answer may have: as many as were asked for, as far as there is room."""
    rooms = [max(1, info.max_model_len - len(prompt)) for prompt in prompts]
    return [min(default if asked is None else asked, room) for room in rooms]


def _call(
    prefix: str,
    body: GenerationBody,
    info: EngineInfo,
    prompts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
    logprobs: int | None,
    echoes: Sequence[str] = ("",),
) -> Call:
    call_id = f"{prefix}-{secrets.token_hex(12)}"
    prediction: Sequence[int] = ()
    if body.prediction is not None:
        _check_size(body.prediction.content, info, "prediction")
        prediction = info.tokenizer.encode(body.prediction.content, add_special_tokens=False)
    requests: list[Request] = []
    for prompt, room in zip(prompts, max_tokens, strict=True):
        ids = tuple(prompt)
        for choice in range(body.n):
            requests.append(
                Request(
                    request_id=f"{call_id}-{len(requests)}",
                    prompt_ids=ids,
                    sampling=_sampling(body, info, choice, room, logprobs),
                    speculation=SpeculationParams(**body.speculative.model_dump()),
                    prediction_ids=tuple(prediction),
                    cache_salt=body.cache_salt,
                )
            )
    return Call(call_id, tuple(requests), body.n, tuple(echo for echo in echoes for _ in range(body.n)))


def _sampling(body: GenerationBody, info: EngineInfo, choice: int, max_tokens: int, logprobs: int | None) -> SamplingParams:
    return SamplingParams(
        **info.sampling_defaults.given() | _own_sampling(body),
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=body.logit_bias,
        seed=resolve_seed(None if body.seed is None else body.seed & _SEED_MASK, choice),
        stop=tuple(body.stop),
        stop_token_ids=tuple(body.stop_token_ids),
        include_stop_str_in_output=body.include_stop_str_in_output,
        min_tokens=body.min_tokens,
        max_tokens=max_tokens,
        ignore_eos=body.ignore_eos,
        logprobs=logprobs,
        prompt_logprobs=_prompt_logprobs(body),
    )


def _own_sampling(body: GenerationBody) -> dict[str, Any]:
    """What the request says of that for which the model's publisher may recommend something."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    said = {name: value for name in names if (value := getattr(body, name)) is not None}
    if said.get("top_k") == -1:
        said["top_k"] = 0
    if said.get("top_p") == 0:
        said |= {"temperature": 0.0, "top_p": 1.0}  # the smallest nucleus is the most likely token
    return said


def _prompt_logprobs(body: GenerationBody) -> int | None:
    """As many as are asked for by either name."""
    echoed = body.logprobs if isinstance(body, CompletionBody) and body.echo else None
    wanted = [count for count in (echoed, body.prompt_logprobs) if count is not None]
    return max(wanted) if wanted else None


def _message(message: Message) -> dict[str, Any]:
    """As chat templates know it: `developer` is OpenAI's newer word for `system`, arguments are objects, no content is none."""
    said = message.model_dump(exclude_none=True, exclude_defaults=True)
    said |= {"role": "system" if message.role == "developer" else message.role, "content": message.content or ""}
    if message.tool_calls:
        said["tool_calls"] = [_tool_call(call) for call in said["tool_calls"]]
    thoughts = said.pop("reasoning", None) or message.reasoning_content
    return said | ({"reasoning_content": thoughts, "reasoning": thoughts} if thoughts else {})


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """A model may have written arguments that are no JSON; the template gets these as they are."""
    function = call["function"]
    arguments = function.get("arguments") or "{}"
    with suppress(ValueError):
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return {"type": "function", **call, "function": {**function, "arguments": arguments}}


def _echo(prompt: str | list[int], tokenizer: Tokenizer) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
