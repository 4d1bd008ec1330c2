"""Offline use: prompts in, completions out, in one call."""

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, TypeVar, cast

from specdec.assemble import Assembled, build
from specdec.config import DEFAULT_MODEL, EngineConfig
from specdec.drafters.registry import DrafterFactory
from specdec.errors import RequestError, RoundError, SpecdecError
from specdec.foreign import engine_fields
from specdec.progress import Progress
from specdec.request import FinishReason, Request, RequestOutput, SamplingParams, SpeculationStats, TokenLogprob, resolve_seed
from specdec.text.tokenizer import Message

_log = logging.getLogger(__name__)

Prompt = str | Sequence[int] | Request  # text, token ids, or a request of its own
Messages = Sequence[Message]  # a conversation
_Asked = TypeVar("_Asked")


@dataclass(kw_only=True, slots=True)
class Completion:
    """The whole answer to one prompt, and with `n` above 1 the first of them. `outputs` has all."""

    request_id: str
    prompt: str | None = None  # where it was given as text
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)  # of the prompt's tokens but the first, when asked for
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None  # why there is no whole answer, with FinishReason.ERROR
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    ttft: float = 0.0  # seconds from submission to the first token
    seconds: float = 0.0  # from submission to the end
    arrivals: list[tuple[float, int]] = field(default_factory=list)  # (seconds from submission, tokens) of each delta
    others: list["Completion"] = field(default_factory=list)  # answers to the same prompt, beside this one

    @property
    def outputs(self) -> list["Completion"]:
        """All n answers to the prompt."""
        return [self, *self.others]

    def add(self, output: RequestOutput, elapsed: float) -> None:
        """Take in a delta that arrived `elapsed` seconds after submission."""
        self.error = output.error
        if output.token_ids:
            self.ttft = self.ttft if self.token_ids else elapsed
            self.arrivals.append((elapsed, len(output.token_ids)))
        self.token_ids += output.token_ids
        self.text += output.text
        self.logprobs += output.logprobs
        self.prompt_logprobs += output.prompt_logprobs or ()
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
    """A model with its engine, driven by its callers' threads, as many as there are: their requests share the rounds.

    Example:
        llm = LLM("smollm2-135m", drafters="ngram,suffix")
        for answer in llm.generate(["Rivers are", "Seas are"], SamplingParams(temperature=0.8, max_tokens=40)):
            print(answer.text)
        print(llm.chat([{"role": "user", "content": "Hello"}])[0].text)
    """

    def __init__(self, model: str | Assembled = DEFAULT_MODEL, *, progress: Progress | None = None, **options: Any) -> None:
        """Args:
            model: alias, folder, .gguf file or hub id; or an engine that is assembled already, which nobody else may step.
            progress: shows loading.
            options: fields of `EngineConfig`, or what other engines call them (`specdec.foreign`); drafters may be a comma
                list, and a draft model brings its drafter along.

        Raises:
            ConfigError: the model cannot be loaded, or an option is unknown or out of its range.
        """
        if isinstance(model, str):
            model = build(EngineConfig.of({"model": model, **engine_fields(options)}), progress)
        self.assembled = model
        self.engine = model.engine
        self.tokenizer = model.tokenizer
        self.sampling_defaults = model.sampling_defaults
        self._turn = threading.Condition()
        self._stepping = False  # by one of the threads; the others wait for what it brings
        self._ids = itertools.count(1)
        self._in_use: set[str] = set()

    @staticmethod
    def from_config(
        config: EngineConfig, progress: Progress | None = None, drafters: Mapping[str, DrafterFactory] | None = None
    ) -> "LLM":
        """Load what `config` names. drafters: the caller's own ones, see `specdec.assemble.build`.

        Raises:
            ConfigError: it cannot be loaded.
        """
        return LLM(build(config, progress, drafters=drafters))

    def generate(
        self, prompts: Prompt | Sequence[Prompt], sampling: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """Run all prompts to their end; the completions come in their order.

        A request that fails takes no other down: its completion has `error` and FinishReason.ERROR, and the log says so.

        Args:
            prompts: texts, token ids, or requests with sampling parameters of their own; or one of these alone.
            sampling: of all prompts that are no requests, or one for each prompt.

        Raises:
            RequestError: no request can ever be served; this is the first one's error.
            RoundError: no request was answered; this is the first one's error.
        """
        return self._run(_listed(prompts), sampling, self._request)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """`generate` for one conversation, a list of messages with `role` and `content`, or for several.

        Raises:
            RequestError: as `generate`; also where the model has no chat template, or it refuses the messages.
        """
        return self._run(_talks(messages), sampling, self._chat_request)

    def stream(self, prompt: Prompt, sampling: SamplingParams | None = None) -> Generator[RequestOutput, None, None]:
        """The deltas of one answer as they come; closing the iterator aborts the request.

        Raises:
            RequestError: it can never be served.
        """
        request = self._request(prompt, sampling)
        if request.sampling.n != 1:
            raise RequestError("A stream has one answer; n must be 1.", param="n", code="invalid_value")
        outputs: deque[RequestOutput] = deque()
        job = _Job({})
        self._submit(job, request, outputs.append)
        try:
            while job.running or outputs:
                self._step_until(lambda: bool(outputs) or not job.running)
                while outputs:
                    yield outputs.popleft()
        finally:
            self._abandon(job)

    def stream_chat(self, messages: Messages, sampling: SamplingParams | None = None) -> Generator[RequestOutput, None, None]:
        """`stream` of a conversation. Raises what `chat` raises."""
        return self.stream(self._chat_request(messages, sampling))

    def _request(self, prompt: Prompt, sampling: SamplingParams | None) -> Request:
        if isinstance(prompt, Request):
            return prompt if sampling is None else replace(prompt, sampling=sampling)
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else map(int, prompt)
        return Request(
            request_id=self._new_id(),
            prompt_ids=tuple(ids),
            sampling=sampling or SamplingParams(**self.sampling_defaults.given()),
        )

    def _chat_request(self, messages: Messages, sampling: SamplingParams | None) -> Request:
        return self._request(tuple(self.tokenizer.chat(messages)), sampling)

    def _new_id(self) -> str:
        return f"llm-{next(self._ids)}"

    def _run(
        self,
        prompts: Sequence[_Asked],
        sampling: SamplingParams | Sequence[SamplingParams] | None,
        make: Callable[[_Asked, SamplingParams | None], Request],
    ) -> list[Completion]:
        completions: list[Completion] = []
        failures: list[SpecdecError] = []
        job = _Job({})
        try:
            for prompt, own in zip(prompts, _paired(len(prompts), sampling), strict=True):
                try:
                    requests = _choices(make(prompt, own))
                    first, *others = [self._ask(job, request, failures) for request in requests]
                except RequestError as error:
                    first, others = _refused(self._new_id(), error, failures), []
                first.prompt, first.others = prompt if isinstance(prompt, str) else None, others
                completions.append(first)
            self._step_until(lambda: self._is_over(job))
        except BaseException:
            self._abandon(job)
            raise
        self._judge([answer for completion in completions for answer in completion.outputs], failures)
        return completions

    def _ask(self, job: "_Job", request: Request, failures: list[SpecdecError]) -> Completion:
        """The completion that fills as the engine is stepped; at its end already where the request is refused."""
        completion = Completion(request_id=request.request_id)
        started = time.perf_counter()
        try:
            self._submit(job, request, lambda output: completion.add(output, time.perf_counter() - started))
        except RequestError as error:
            return _refused(request.request_id, error, failures)
        return completion

    def _judge(self, answers: Sequence[Completion], failures: Sequence[SpecdecError]) -> None:
        """Good answers are kept; where there is none, the first failure is raised."""
        failed = [answer for answer in answers if answer.error is not None]
        if failed and len(failed) == len(answers):
            raise failures[0] if failures else RoundError(failed[0].error)
        for answer in failed:
            _log.warning("The request %s failed: %s", answer.request_id, answer.error)

    def _submit(self, job: "_Job", request: Request, sink: Callable[[RequestOutput], None]) -> None:
        """Queue a request. An id that another thread's request has at the moment is made another one for the engine."""
        given = request.request_id
        with self._turn:
            if given in self._in_use:
                request = replace(request, request_id=f"{given} ({next(self._ids)})")
            self._in_use.add(request.request_id)
            job.running[request.request_id] = None

        def deliver(output: RequestOutput) -> None:
            output.request_id = given
            sink(output)
            if output.finish_reason is not None:
                self._release(job, request)

        try:
            self.engine.submit(request, deliver)
        except BaseException:
            self._release(job, request)
            raise

    def _release(self, job: "_Job", request: Request) -> None:
        self._in_use.discard(request.request_id)
        job.running.pop(request.request_id, None)

    def _step_until(self, done: Callable[[], bool]) -> None:
        """Step the engine, or wait while another thread does, which serves this one's requests as well."""
        while True:
            with self._turn:
                while self._stepping and not done():
                    self._turn.wait()
                if done():
                    return
                self._stepping = True
            try:
                self.engine.step()
            finally:
                with self._turn:
                    self._stepping = False
                    self._turn.notify_all()

    def _abandon(self, job: "_Job") -> None:
        """Leave nothing of the requests behind in the engine."""
        for request_id in list(job.running):
            self.engine.abort(request_id)
        self._step_until(lambda: self._is_over(job))

    def _is_over(self, job: "_Job") -> bool:
        """The requests have ended; where nobody else's go on, no round is underway either."""
        return not job.running and (bool(self._in_use) or not self.engine.has_work)


@dataclass(frozen=True, slots=True)
class _Job:
    """The engine's ids of a call's requests that have not ended, in their order."""

    running: dict[str, None]


def _refused(request_id: str, error: RequestError, failures: list[SpecdecError]) -> Completion:
    failures.append(error)
    return Completion(request_id=request_id, finish_reason=FinishReason.ERROR, error=error.message)


def _listed(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """Prompts, where one may be given without a list around it. Token ids may be numpy's."""
    if isinstance(prompts, str | Request):
        return [prompts]
    alone = len(prompts) > 0 and isinstance(prompts[0], Integral)
    return [cast(Sequence[int], prompts)] if alone else cast(Sequence[Prompt], prompts)


def _talks(messages: Messages | Sequence[Messages]) -> Sequence[Messages]:
    """Conversations, where one may be given without a list around it."""
    alone = len(messages) > 0 and isinstance(messages[0], Mapping)
    return [cast(Messages, messages)] if alone else cast(Sequence[Messages], messages)


def _paired(count: int, sampling: SamplingParams | Sequence[SamplingParams] | None) -> Sequence[SamplingParams | None]:
    if sampling is None or isinstance(sampling, SamplingParams):
        return [sampling] * count
    if len(sampling) != count:
        message = f"There are {count} prompts and {len(sampling)} sampling parameters; give one for all or one for each."
        raise RequestError(message, param="sampling", code="invalid_value")
    return sampling


def _choices(request: Request) -> list[Request]:
    """A request for each of its n answers; the seeds of all but the first come from its own."""
    sampling = request.sampling
    return [
        request
        if sampling.n == 1
        else replace(
            request,
            request_id=f"{request.request_id} answer {choice}" if choice else request.request_id,
            sampling=replace(sampling, n=1, seed=resolve_seed(sampling.seed, choice)),
        )
        for choice in range(sampling.n)
    ]
