"""Answers as they grow: what the engine said of one request, from the start or since the last look."""

from dataclasses import dataclass, field

from specdec.request import FinishReason, RequestOutput, SpeculationStats, TokenLogprob


@dataclass(slots=True)
class Answer:
    """The whole answer to a request, or a part of it: however many outputs it came in, it is joined here.

    token_ids: where the call wants them. prompt_logprobs: of the prompt's tokens but the first, where the request wants them.
    last: the request's last output, once it has come; it has the counts and how the answer ended.
    """

    num_tokens: int = 0
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    last: RequestOutput | None = None

    def add(
        self,
        num_tokens: int,
        text: str,
        logprobs: tuple[TokenLogprob, ...],
        token_ids: tuple[int, ...] = (),
        prompt_logprobs: tuple[TokenLogprob, ...] | None = None,
    ) -> None:
        """Take in what a round gave."""
        self.num_tokens += num_tokens
        if text:
            self.texts.append(text)
        if logprobs:
            self.logprobs += logprobs
        if token_ids:
            self.token_ids += token_ids
        if prompt_logprobs is not None:
            self.prompt_logprobs = prompt_logprobs

    def end(self, output: RequestOutput) -> None:
        """Take in the last output."""
        self.add(len(output.token_ids), output.text, output.logprobs, output.token_ids, output.prompt_logprobs)
        self.last = output

    def count(self, part: "Answer") -> None:
        """Take over what usage and metrics are made of, and leave the text."""
        self.num_tokens += part.num_tokens
        self.last = part.last

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def finish_reason(self) -> FinishReason | None:
        return None if self.last is None else self.last.finish_reason

    @property
    def stop_reason(self) -> str | int | None:
        return None if self.last is None else self.last.stop_reason

    @property
    def num_prompt_tokens(self) -> int:
        return 0 if self.last is None else self.last.num_prompt_tokens

    @property
    def num_cached_tokens(self) -> int:
        return 0 if self.last is None else self.last.num_cached_tokens

    @property
    def stats(self) -> SpeculationStats:
        return (self.last and self.last.stats) or SpeculationStats()
