"""The `choices` of both endpoints, whole and in pieces."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from specdec.request import FinishReason
from specdec.server.answers import Answer
from specdec.server.logprobs import chat_logprobs, completion_logprobs, num_characters
from specdec.text.tokenizer import Tokenizer


class Choices(Protocol):
    """How an endpoint writes its choices. `index` counts over all prompts."""

    whole_object: str
    chunk_object: str

    def whole(self, index: int, answer: Answer) -> dict[str, Any]:
        """A choice of a response that is not streamed."""

    def first(self, index: int) -> dict[str, Any] | None:
        """What a stream says of a choice before its first token."""

    def piece(self, index: int, delta: Answer) -> dict[str, Any]:
        """What `delta` adds to a streamed choice; called in the order of the stream."""

    def last(self, index: int, answer: Answer) -> dict[str, Any]:
        """How a streamed choice ends."""


@dataclass(frozen=True, slots=True)
class ChatChoices:
    """/v1/chat/completions"""

    tokenizer: Tokenizer
    logprobs: bool
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def whole(self, index: int, answer: Answer) -> dict[str, Any]:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return {"index": index, "message": message, "logprobs": self._logprobs(answer), **_ending(answer)}

    def first(self, index: int) -> dict[str, Any] | None:
        return self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def piece(self, index: int, delta: Answer) -> dict[str, Any]:
        return self._chunk(index, {"content": delta.text}) | {"logprobs": self._logprobs(delta)}

    def last(self, index: int, answer: Answer) -> dict[str, Any]:
        return self._chunk(index, {}) | _ending(answer)

    def _chunk(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _logprobs(self, answer: Answer) -> dict[str, Any] | None:
        return chat_logprobs(self.tokenizer, answer.logprobs) if self.logprobs else None


@dataclass(frozen=True, slots=True)
class TextChoices:
    """/v1/completions"""

    tokenizer: Tokenizer
    logprobs: bool
    echoes: tuple[str, ...]
    _starts: dict[int, int] = field(default_factory=dict)  # per choice, characters streamed with logprobs so far
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def whole(self, index: int, answer: Answer) -> dict[str, Any]:
        text = self.echoes[index] + answer.text
        return self._choice(index, text) | {"logprobs": self._logprobs(answer, 0)} | _ending(answer)

    def first(self, index: int) -> dict[str, Any] | None:
        return self._choice(index, self.echoes[index]) if self.echoes[index] else None

    def piece(self, index: int, delta: Answer) -> dict[str, Any]:
        start = self._starts.get(index, 0)
        self._starts[index] = start + num_characters(self.tokenizer, [entry.token for entry in delta.logprobs])
        return self._choice(index, delta.text) | {"logprobs": self._logprobs(delta, start)}

    def last(self, index: int, answer: Answer) -> dict[str, Any]:
        return self._choice(index, "") | _ending(answer)

    def _choice(self, index: int, text: str) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": None}

    def _logprobs(self, answer: Answer, start: int) -> dict[str, Any] | None:
        return completion_logprobs(self.tokenizer, answer.logprobs, start) if self.logprobs else None


def _ending(answer: Answer) -> dict[str, Any]:
    """An answer that the server cut short says "length", which clients know, and `stop_reason` "abort"."""
    if answer.finish_reason is FinishReason.ABORT:
        return {"finish_reason": FinishReason.LENGTH, "stop_reason": FinishReason.ABORT}
    return {"finish_reason": answer.finish_reason, "stop_reason": answer.stop_reason}
