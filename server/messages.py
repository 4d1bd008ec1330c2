"""What the server and its engine tell each other, and the form it has on the socket between them: a length, then a pickle.

Both ends are this program, and nobody else has an end of the socket; that is why pickles may be read.
"""

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from specdec.errors import SpecdecError
from specdec.request import Request, RequestOutput, SamplingDefaults, TokenLogprob
from specdec.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from specdec.assemble import Assembled

_LENGTH_BYTES = 8

# What a round gave a request that goes on: call, index in the call, number of tokens, text, logprobs, the tokens where the
# call wants them, the prompt's logprobs where these are complete. A plain tuple, since there is one for every token and a
# class of its own would take ten times as long to pickle.
Delta = tuple[int, int, int, str, tuple[TokenLogprob, ...], tuple[int, ...], tuple[TokenLogprob, ...] | None]
Ending = tuple[int, int, RequestOutput]  # call, index in the call, the last output


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the server needs to know of an engine. `max_model_len` is in tokens, prompt and answer together; `max_batch`
    requests may run at once."""

    model_name: str
    dtype: str
    max_model_len: int
    max_batch: int
    tokenizer: Tokenizer
    sampling_defaults: SamplingDefaults

    @staticmethod
    def of(assembled: "Assembled") -> "EngineInfo":
        """That of an engine in this process."""
        return EngineInfo(
            model_name=assembled.model_name,
            dtype=assembled.dtype,
            max_model_len=assembled.engine.max_model_len,
            max_batch=assembled.max_batch,
            tokenizer=assembled.tokenizer,
            sampling_defaults=assembled.sampling_defaults,
        )


class Submit(NamedTuple):
    """To the engine: queue the requests of a call, all of them or none. with_ids: whether deltas bring their tokens."""

    call: int
    requests: tuple[Request, ...]
    with_ids: bool = False


class Abort(NamedTuple):
    """To the engine: end these requests, as far as they still run."""

    request_ids: tuple[str, ...]


class TellMetrics(NamedTuple):
    """To the engine: say `Metrics`, in one of two forms."""

    openmetrics: bool


class Admitted(NamedTuple):
    """To the server: the call's requests are queued."""

    call: int


class Refused(NamedTuple):
    """To the server: none of the call's requests is queued. A RequestError is the client's fault, others are not."""

    call: int
    error: SpecdecError


class Round(NamedTuple):
    """To the server: all that a round gave, and how many requests run and wait after it."""

    deltas: list[Delta]
    endings: list[Ending]
    num_running: int
    num_waiting: int


class Metrics(NamedTuple):
    """To the server: the engine's counters in Prometheus' text form, or in OpenMetrics'."""

    text: bytes
    openmetrics: bool


class TaskBegun(NamedTuple):
    """To the server, while the engine loads: see `specdec.progress.Progress.task`."""

    description: str
    total: int | None


class Advanced(NamedTuple):
    """To the server: units of the task that are done since the last time."""

    units: int


class TaskEnded(NamedTuple):
    """To the server: the task is over."""

    failed: bool


class LoadingFailed(NamedTuple):
    """To the server: why the engine cannot be built, in words for the user."""

    message: str


class Ready(NamedTuple):
    """To the server: the engine takes requests. `banner` tells the user about it."""

    info: EngineInfo
    banner: str


def encode(message: object) -> bytes:
    """A message as it goes over the socket. Raises what pickle raises where it cannot be pickled."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return len(body).to_bytes(_LENGTH_BYTES) + body


class Decoder:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[object]:
        """The messages that `data` completes."""
        self._bytes += data
        messages: list[object] = []
        start = 0
        while (body := start + _LENGTH_BYTES) <= len(self._bytes):
            end = body + int.from_bytes(self._bytes[start:body])
            if end > len(self._bytes):
                break
            messages.append(pickle.loads(self._bytes[body:end]))
            start = end
        del self._bytes[:start]
        return messages
