"""A Sequence: one request on its way through the engine."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from specdec.request import Request, RequestOutput, SamplingParams, SpeculationStats
from specdec.text.tokenizer import TextStream

Sink = Callable[[RequestOutput], None]


@dataclass(eq=False, slots=True)
class Sequence:
    """What the engine knows of a request; owned by the engine's thread once submitted.

    The last of `tokens` is the root of the next tree: its K and V do not exist yet, so `num_cached < len(tokens)`.
    """

    request: Request
    sink: Sink
    stop_ids: frozenset[int]  # end it when emitted, and are forbidden before min_tokens
    stream: TextStream
    tokens: list[int]  # prompt and output
    arrival: float  # seconds, monotonic clock
    pages: list[int] = field(default_factory=list)
    num_cached: int = 0  # leading positions whose K and V are committed
    digests: list[bytes] = field(default_factory=list)  # of the full pages, for the prefix index
    num_prefix_hits: int = 0  # prompt tokens found in the prefix cache when first admitted
    admitted: bool = False  # drafters know it
    first_token_at: float | None = None
    stats: SpeculationStats = field(default_factory=SpeculationStats)

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def num_missing(self) -> int:
        """Tokens before the root whose K and V are still to be computed."""
        return len(self.tokens) - 1 - self.num_cached

    def send(self, output: RequestOutput) -> None:
        """Hand a delta to the caller, with the counts every output carries; those of a round's tokens bring them along."""
        if output.num_prompt_tokens == 0:
            output = replace(output, num_prompt_tokens=self.num_prompt_tokens, num_cached_tokens=self.num_prefix_hits)
        self.sink(output)


class Turn(NamedTuple):
    """A sequence's part in one round: `num_chunk` tokens to prefill, and a tree when that completes them."""

    sequence: Sequence
    num_chunk: int
    has_tree: bool
