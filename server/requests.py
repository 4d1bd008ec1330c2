"""From a checked body to engine requests."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from specdec.request import Request, SamplingParams, SpeculationParams, resolve_seed
from specdec.server.schema import ChatBody, CompletionBody, GenerationBody
from specdec.text.tokenizer import Tokenizer

_COMPLETION_TOKENS = 16  # what /v1/completions gives when max_tokens is left out
_SEED_MASK = 2**63 - 1  # the API's seeds are signed, the engine's are not


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP call as engine requests: prompt by prompt, each prompt's n choices side by side.

    echoes: per request, the text that is put before the answer's.
    """

    id: str
    requests: tuple[Request, ...]
    n: int
    echoes: tuple[str, ...]


def chat_call(body: ChatBody, tokenizer: Tokenizer, max_model_len: int) -> Call:
    """One conversation, n choices. The answer may take all of the context that the prompt leaves, unless told otherwise.

    Raises:
        RequestError: a value is out of its range, or the chat template refuses the messages.
    """
    prompt = tokenizer.chat([_message(message.model_dump(exclude_none=True)) for message in body.messages])
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    max_tokens = max(1, max_model_len - len(prompt)) if asked is None else asked
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _call("chatcmpl", body, tokenizer, [prompt], [max_tokens], logprobs)


def completion_call(body: CompletionBody, tokenizer: Tokenizer, max_model_len: int) -> Call:
    """One or several prompts, n choices each.

    Raises:
        RequestError: a value is out of its range.
    """
    prompts = [tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in body.prompt]
    rooms = [max(1, min(_COMPLETION_TOKENS, max_model_len - len(prompt))) for prompt in prompts]
    max_tokens = rooms if body.max_tokens is None else [body.max_tokens] * len(prompts)
    echoes = [_echo(prompt, tokenizer) if body.echo else "" for prompt in body.prompt]
    return _call("cmpl", body, tokenizer, prompts, max_tokens, body.logprobs, echoes)


def _call(
    prefix: str,
    body: GenerationBody,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
    logprobs: int | None,
    echoes: Sequence[str] = ("",),
) -> Call:
    call_id = f"{prefix}-{secrets.token_hex(12)}"
    prediction = tokenizer.encode(body.prediction.content, add_special_tokens=False) if body.prediction is not None else ()
    requests: list[Request] = []
    for prompt, room in zip(prompts, max_tokens, strict=True):
        prompt_ids = tuple(prompt)
        for choice in range(body.n):
            requests.append(
                Request(
                    request_id=f"{call_id}-{len(requests)}",
                    prompt_ids=prompt_ids,
                    sampling=_sampling(body, choice, room, logprobs),
                    speculation=SpeculationParams(**body.speculative.model_dump()),
                    prediction_ids=tuple(prediction),
                )
            )
    return Call(call_id, tuple(requests), body.n, tuple(echo for echo in echoes for _ in range(body.n)))


def _sampling(body: GenerationBody, choice: int, max_tokens: int, logprobs: int | None) -> SamplingParams:
    return SamplingParams(
        temperature=body.temperature,
        top_k=max(0, body.top_k),
        top_p=body.top_p,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=body.logit_bias,
        seed=resolve_seed(None if body.seed is None else body.seed & _SEED_MASK, choice),
        stop=tuple(body.stop),
        stop_token_ids=tuple(body.stop_token_ids),
        min_tokens=body.min_tokens,
        max_tokens=max_tokens,
        ignore_eos=body.ignore_eos,
        logprobs=logprobs,
    )


def _message(message: dict[str, str]) -> dict[str, str]:
    """As chat templates know it: `developer` is OpenAI's newer word for `system`."""
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _echo(prompt: str | list[int], tokenizer: Tokenizer) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
