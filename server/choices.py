"""The `choices` of both endpoints, whole and in pieces."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from specdec.request import FinishReason, TokenLogprob
from specdec.server.answers import Answer
from specdec.server.logprobs import chat_logprobs, completion_logprobs, num_characters, prompt_logprobs
from specdec.server.requests import Call
from specdec.server.schema import ChatBody, CompletionBody, GenerationBody
from specdec.text.tokenizer import Tokenizer


class Choices(Protocol):
    """How an endpoint writes its choices. `index` counts over all prompts."""

    whole_object: str
    chunk_object: str

    def head(self, answer: Answer | None, /) -> dict[str, Any]:
        """What stands beside the choices; in a stream, with its first event, when nothing of the answer is known."""

    def whole(self, index: int, answer: Answer) -> dict[str, Any]:
        """A choice of a response that is not streamed."""

    def first(self, index: int, part: Answer, /) -> dict[str, Any] | None:
        """What a stream says of a choice before its first token, when `part` has come of it."""

    def piece(self, index: int, delta: Answer) -> dict[str, Any]:
        """What `delta` adds to a streamed choice; called in the order of the stream."""

    def last(self, index: int, answer: Answer) -> dict[str, Any]:
        """How a streamed choice ends."""


@dataclass(frozen=True, slots=True)
class ChatChoices:
    """/v1/chat/completions"""

    tokenizer: Tokenizer
    body: ChatBody
    call: Call
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def head(self, answer: Answer | None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.body.return_token_ids:
            found["prompt_token_ids"] = list(self.call.requests[0].prompt_ids)
        if self.body.prompt_logprobs is not None and answer is not None:
            found["prompt_logprobs"] = _prompt_logprobs(self.tokenizer, answer, self.body.prompt_logprobs)
        return found

    def whole(self, index: int, answer: Answer) -> dict[str, Any]:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"index": index, "message": message, "logprobs": self._logprobs(answer), **_ending(answer)}
        return choice | _token_ids(self.body, answer)

    def first(self, index: int, _part: Answer, /) -> dict[str, Any] | None:
        return self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def piece(self, index: int, delta: Answer) -> dict[str, Any]:
        told = {"logprobs": self._logprobs(delta)} | _token_ids(self.body, delta)
        return self._chunk(index, {"content": delta.text}) | told

    def last(self, index: int, answer: Answer) -> dict[str, Any]:
        return self._chunk(index, {}) | _ending(answer)

    def _chunk(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _logprobs(self, answer: Answer) -> dict[str, Any] | None:
        return chat_logprobs(self.tokenizer, answer.logprobs) if self.body.logprobs else None


@dataclass(frozen=True, slots=True)
class TextChoices:
    """/v1/completions"""

    tokenizer: Tokenizer
    body: CompletionBody
    call: Call
    _starts: dict[int, int] = field(default_factory=dict)  # per choice, characters streamed with logprobs so far
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def head(self, _answer: Answer | None, /) -> dict[str, Any]:
        return {}

    def whole(self, index: int, answer: Answer) -> dict[str, Any]:
        logprobs = self._logprobs(answer, 0, self._first_token(index), answer.prompt_logprobs or ())
        told = {"logprobs": logprobs} | self._prompt_ids(index) | _token_ids(self.body, answer)
        if self.body.prompt_logprobs is not None:
            told["prompt_logprobs"] = _prompt_logprobs(self.tokenizer, answer, self.body.prompt_logprobs)
        return self._choice(index, self.call.echoes[index] + answer.text) | told | _ending(answer)

    def first(self, index: int, part: Answer) -> dict[str, Any] | None:
        echo, told = self.call.echoes[index], self._prompt_ids(index)
        if self.body.echo and self.body.logprobs is not None:
            told["logprobs"] = self._logprobs(Answer(), 0, self._first_token(index), part.prompt_logprobs or ())
            self._starts[index] = num_characters(self.tokenizer, self.call.requests[index].prompt_ids)
        return self._choice(index, echo) | told if echo or told else None

    def piece(self, index: int, delta: Answer) -> dict[str, Any]:
        start = self._starts.get(index, 0)
        self._starts[index] = start + num_characters(self.tokenizer, [entry.token for entry in delta.logprobs])
        told = {"logprobs": self._logprobs(delta, start)} | _token_ids(self.body, delta)
        return self._choice(index, delta.text) | told

    def last(self, index: int, answer: Answer) -> dict[str, Any]:
        return self._choice(index, "") | _ending(answer)

    def _choice(self, index: int, text: str) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": None}

    def _first_token(self, index: int) -> int | None:
        return self.call.requests[index].prompt_ids[0] if self.body.echo else None

    def _prompt_ids(self, index: int) -> dict[str, Any]:
        return {"prompt_token_ids": list(self.call.requests[index].prompt_ids)} if self.body.return_token_ids else {}

    def _logprobs(
        self, answer: Answer, start: int, first_token: int | None = None, before: tuple[TokenLogprob, ...] = ()
    ) -> dict[str, Any] | None:
        """Of an answer's tokens, behind those of an echoed prompt."""
        if self.body.logprobs is None:
            return None
        entries = [*(before if self.body.echo else ()), *answer.logprobs]
        return completion_logprobs(self.tokenizer, entries, start, self.body.logprobs, first_token)


def _token_ids(body: GenerationBody, answer: Answer) -> dict[str, Any]:
    return {"token_ids": answer.token_ids} if body.return_token_ids else {}


def _prompt_logprobs(tokenizer: Tokenizer, answer: Answer, top: int) -> list[dict[str, Any] | None]:
    return prompt_logprobs(tokenizer, answer.prompt_logprobs or (), top)


def _ending(answer: Answer) -> dict[str, Any]:
    """An answer that the server cut short says "length", which clients know, and `stop_reason` "abort"."""
    if answer.finish_reason is FinishReason.ABORT:
        return {"finish_reason": FinishReason.LENGTH, "stop_reason": FinishReason.ABORT}
    return {"finish_reason": answer.finish_reason, "stop_reason": answer.stop_reason}
