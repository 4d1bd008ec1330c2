"""Who is measured, and the interleaved runs: every case goes to all contenders in turn before the next case."""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from specdec.bench.cases import Case
from specdec.errors import RoundError
from specdec.progress import Progress
from specdec.request import Request, RequestOutput, SamplingParams, SpeculationStats

_TOKENS_OF_A_ROUND = 64  # at most
SamplingOf = Callable[[Case], SamplingParams]


class Streamer(Protocol):
    """See `specdec.llm.LLM`."""

    def stream(self, request: Request) -> Generator[RequestOutput, None, None]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One timed answer. Seconds run from the prompt's tokens to the last token, prefill included."""

    contender: str
    repeat: int
    case_id: str
    content_type: str
    token_ids: tuple[int, ...]
    seconds: float
    first_token_seconds: float  # to the end of the step that gave the first tokens
    num_first_tokens: int  # tokens of that step
    stats: SpeculationStats | None = None


class Contender(Protocol):
    """Something that answers, one request at a time."""

    name: str

    def start_repeat(self, warm_up: Sequence[Case], sampling_of: SamplingOf) -> None:
        """Forget what earlier repeats taught about the prompts, and get warm on answers of some of them."""
        ...

    def answer(self, case: Case, sampling: SamplingParams, repeat: int) -> Sample:
        """Generate and time one answer."""
        ...


class EngineContender:
    """specdec itself.

    Args:
        make: builds the engine.
        remembers: whether its drafters learn from earlier answers. Such an engine is built anew for each repeat: it
            would otherwise be given the very answers that it is measured on.
    """

    def __init__(self, name: str, make: Callable[[], Streamer], remembers: bool, predictions: bool = False) -> None:
        self.name = name
        self._make = make
        self._remembers = remembers
        self._predictions = predictions
        self._llm = make()
        self._cold = True

    def start_repeat(self, warm_up: Sequence[Case], sampling_of: SamplingOf) -> None:
        """An engine that was just built breaks its answers off before their end: so no drafter learns from them."""
        if not self._cold and self._remembers:
            self._llm = self._make()
            self._cold = True
        if self._cold:
            for case in warm_up:
                self._begin(case, sampling_of(case))
            self._cold = False

    def _begin(self, case: Case, sampling: SamplingParams) -> None:
        left = sampling.max_tokens - _TOKENS_OF_A_ROUND
        endless = replace(sampling, ignore_eos=not sampling.min_tokens)
        stream = self._llm.stream(self._request(case, endless, "warm-up"))
        for output in stream:
            left -= len(output.token_ids)
            if left <= 0:
                break
        stream.close()

    def answer(self, case: Case, sampling: SamplingParams, repeat: int) -> Sample:
        request = self._request(case, sampling, str(repeat))
        started = time.perf_counter()
        arrivals = [(output, time.perf_counter() - started) for output in self._llm.stream(request)]
        if error := arrivals[-1][0].error:
            raise RoundError(f"{self.name} failed on {case.id}: {error}")
        with_tokens = [(output, elapsed) for output, elapsed in arrivals if output.token_ids]
        return Sample(
            contender=self.name,
            repeat=repeat,
            case_id=case.id,
            content_type=case.content_type,
            token_ids=tuple(token for output, _ in with_tokens for token in output.token_ids),
            seconds=arrivals[-1][1],
            first_token_seconds=with_tokens[0][1],
            num_first_tokens=len(with_tokens[0][0].token_ids),
            stats=arrivals[-1][0].stats,
        )

    def _request(self, case: Case, sampling: SamplingParams, turn: str) -> Request:
        return Request(
            request_id=f"{case.id}#{turn}",
            prompt_ids=case.prompt_ids,
            sampling=sampling,
            prediction_ids=case.prediction_ids if self._predictions else (),
        )


def interleave(
    contenders: Sequence[Contender],
    cases: Sequence[Case],
    sampling_of: SamplingOf,
    repeats: int,
    progress: Progress,
    device: str = "cpu",
) -> list[Sample]:
    """Measure, after unmeasured answers: to the first case; to all on a GPU, where each shape of a round is recorded first."""
    samples: list[Sample] = []
    warm_up = cases[:1] if device == "cpu" else cases
    with progress.task("Measuring", repeats * len(cases) * len(contenders)) as advance:
        for repeat in range(repeats):
            for contender in contenders:
                contender.start_repeat(warm_up, sampling_of)
            for case in cases:
                for contender in contenders:
                    samples.append(contender.answer(case, sampling_of(case), repeat))
                    advance(1)
    return samples


def tokens_per_second(samples: Sequence[Sample]) -> float:
    """Tokens of all samples over their seconds, prefill included."""
    return sum(len(sample.token_ids) for sample in samples) / sum(sample.seconds for sample in samples)


def decode_tokens_per_second(samples: Sequence[Sample]) -> float | None:
    """The same without the step that gave the first tokens; None where nothing came after it."""
    tokens = sum(len(sample.token_ids) - sample.num_first_tokens for sample in samples)
    seconds = sum(sample.seconds - sample.first_token_seconds for sample in samples)
    return tokens / seconds if seconds > 0 and tokens > 0 else None
