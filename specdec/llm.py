"""Offline use: requests in, completions out, in one call."""

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

from specdec.assemble import Assembled, build
from specdec.config import EngineConfig
from specdec.drafters.registry import DrafterFactory
from specdec.errors import RoundError
from specdec.progress import Progress
from specdec.request import FinishReason, Request, RequestOutput, SpeculationStats, TokenLogprob


@dataclass(kw_only=True, slots=True)
class Completion:
    """The whole answer to one request."""

    request_id: str
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    ttft: float = 0.0  # seconds from submission to the first token
    seconds: float = 0.0  # from submission to the end
    arrivals: list[tuple[float, int]] = field(default_factory=list)  # (seconds from submission, tokens) of each delta

    def add(self, output: RequestOutput, elapsed: float) -> None:
        """Take in a delta that arrived `elapsed` seconds after submission."""
        self.error = output.error
        if output.token_ids:
            self.ttft = self.ttft if self.token_ids else elapsed
            self.arrivals.append((elapsed, len(output.token_ids)))
        self.token_ids += output.token_ids
        self.text += output.text
        self.logprobs += output.logprobs
        self.num_prompt_tokens, self.num_cached_tokens = output.num_prompt_tokens, output.num_cached_tokens
        if output.finish_reason is not None:
            self.finish_reason, self.stop_reason, self.seconds = output.finish_reason, output.stop_reason, elapsed
            self.stats = output.stats or self.stats


def complete(completions: Sequence[Completion]) -> Sequence[Completion]:
    """The same, for who has no use for a part of them.

    Raises:
        RoundError: one of the requests failed.
    """
    for completion in completions:
        if completion.error is not None:
            raise RoundError(completion.error)
    return completions


class LLM:
    """A model with its engine, driven by the caller's own thread.

    Example:
        llm = LLM.from_config(EngineConfig(model="smollm2-135m"))
        prompt = tuple(llm.tokenizer.chat([{"role": "user", "content": "Hello"}]))
        print(llm.generate([Request(request_id="1", prompt_ids=prompt)])[0].text)
    """

    def __init__(self, assembled: Assembled) -> None:
        self.assembled = assembled
        self.engine = assembled.engine
        self.tokenizer = assembled.tokenizer

    @staticmethod
    def from_config(
        config: EngineConfig, progress: Progress | None = None, drafters: Mapping[str, DrafterFactory] | None = None
    ) -> "LLM":
        """Load what `config` names. drafters: the caller's own ones, see `specdec.assemble.build`.

        Raises:
            ConfigError: it cannot be loaded.
        """
        return LLM(build(config, progress, drafters=drafters))

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Run all requests to their end; completions in the order given. One that failed says so in its `error`.

        Raises:
            RequestError: one of them can never be served; none has run then.
            DeviceError: no request will be served any more.
        """
        completions = {request.request_id: Completion(request_id=request.request_id) for request in requests}
        started = time.perf_counter()

        def sink(output: RequestOutput) -> None:
            completions[output.request_id].add(output, time.perf_counter() - started)

        try:
            for request in requests:
                self.engine.submit(request, sink)
            while self.engine.step():
                pass
        except BaseException:
            self._abandon(requests)
            raise
        return list(completions.values())

    def stream(self, request: Request) -> Generator[RequestOutput, None, None]:
        """The deltas of one request as they come; closing the iterator aborts the request.

        Raises:
            RequestError: it can never be served.
        """
        outputs: list[RequestOutput] = []
        self.engine.submit(request, outputs.append)
        try:
            while self.engine.step():
                yield from outputs
                outputs.clear()
        finally:
            self._abandon([request])

    def _abandon(self, requests: Sequence[Request]) -> None:
        """Leave nothing of the requests behind in the engine."""
        for request in requests:
            self.engine.abort(request.request_id)
        while self.engine.step():
            pass
