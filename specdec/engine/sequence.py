"""A Sequence: one request on its way through the engine."""

import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, runtime_checkable

from specdec.request import Request, RequestOutput, SamplingParams, SpeculationStats, TokenLogprob
from specdec.text.tokenizer import TextStream, Tokenizer

Sink = Callable[[RequestOutput], None]

NO_SLOT = -1


@runtime_checkable
class HostWork(Protocol):
    """What the host does for a sequence before each of its trees and from all its tokens: a draft, say, or a grammar's mask.

    Such a sequence sits out while the outcome of its last tree is not read; the others go on.
    """

    def concerns(self, request: Request) -> bool:
        """Whether a request's sequence needs it."""
        ...

    def prepare(self, slot: int, tokens: SequenceOf[int]) -> None:
        """Write what the next round of that slot reads. What it raises fails the request, and no other."""
        ...


@dataclass(eq=False, slots=True)
class Sequence:
    """What the engine knows of a request; owned by the engine's thread once submitted.

    Rounds may be underway whose outcome is not known yet: `num_enqueued` and `ahead` tell of them, all else is as of the last
    outcome that was read.
    """

    request: Request
    sink: Sink
    stop_ids: frozenset[int]  # end it when emitted, and are forbidden before min_tokens
    stream: TextStream
    tokens: list[int]  # prompt and output; the last one is the root of the next tree
    arrival: float  # seconds, monotonic clock
    host_work: tuple[HostWork, ...] = ()
    slot: int = NO_SLOT
    pages: list[int] = field(default_factory=list)
    num_cached: int = 0  # leading positions whose caches are committed
    prompt_end: int = 0  # positions that have to be read before the first tree
    fork: int = 0  # positions that another had in common with it, known without a state
    num_enqueued: int = 0  # of those, how many are read or underway
    ahead: int = 0  # tokens that the trees underway may add at most
    trees_underway: int = 0
    suspect: bool = False  # a round that it was in has failed, and it has given no token since
    spoilt: bool = False  # its prompt has rows that are not finite, so that its pages are nothing for others
    epoch: int = 0  # counts its stays in slots, so that what is underway for an earlier one is void
    digests: list[bytes] = field(default_factory=list)  # of the full pages, for the prefix index
    num_prefix_hits: int = 0  # prompt tokens found in the prefix cache when first admitted
    admitted: bool = False  # it had a slot once
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)  # of the prompt's tokens but the first, as far as known
    prompt_told: bool = False  # they are all on their way to the caller
    started_at: float = 0.0  # when it first had a slot; as the two below, on the same clock as `arrival`
    first_token_at: float | None = None
    last_token_at: float = 0.0
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    request_id: str = field(init=False)
    num_prompt_tokens: int = field(init=False)
    longest: int = field(init=False)  # tokens when it has all that it asked for
    most_nodes: int = field(init=False)  # of its trees, as the request limits them

    @staticmethod
    def of(request: Request, sink: Sink, tokenizer: Tokenizer, host_work: SequenceOf[HostWork]) -> "Sequence":
        """A request that has just come."""
        sampling = request.sampling
        eos = frozenset[int]() if sampling.ignore_eos else tokenizer.eos_token_ids
        return Sequence(
            request=request,
            sink=sink,
            stop_ids=eos | frozenset(sampling.stop_token_ids),
            stream=TextStream(tokenizer, sampling.stop, sampling.min_tokens),
            tokens=list(request.prompt_ids),
            arrival=time.monotonic(),
            host_work=tuple(work for work in host_work if work.concerns(request)),
        )

    def __post_init__(self) -> None:
        wish = self.request.speculation
        self.request_id, self.num_prompt_tokens = self.request.request_id, len(self.request.prompt_ids)
        self.longest = self.num_prompt_tokens + self.request.sampling.max_tokens
        self.most_nodes = 1 if not wish.enabled else self.longest if wish.max_nodes is None else wish.max_nodes

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    @property
    def wants_tokens(self) -> bool:
        """Whether it asked for any; else its prompt is all that is read."""
        return self.longest > self.num_prompt_tokens

    @property
    def prompt_known(self) -> bool:
        """Whether nothing of it is left to read before its next tree."""
        return self.num_cached >= self.prompt_end

    @property
    def reads_whole_prompt(self) -> bool:
        """Whether every row of its prompt has to be computed, known or not."""
        return self.sampling.prompt_logprobs is not None and not self.prompt_told

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def most_tokens(self) -> int:
        """Its tokens, if all that is underway is accepted."""
        return len(self.tokens) + self.ahead

    def send(self, output: RequestOutput) -> None:
        """Hand a delta to the caller, with the counts every output carries; those of a round's tokens bring them along."""
        if output.num_prompt_tokens == 0:
            output = replace(output, num_prompt_tokens=self.num_prompt_tokens, num_cached_tokens=self.num_prefix_hits)
        self.sink(output)


class Turn(NamedTuple):
    """A sequence's part in one round: `chunk` prompt tokens from position `first` on, and a tree of at most `most_nodes` nodes
    (0: its prompt goes on). It is void when the sequence has left the slot that it had in `epoch`."""

    sequence: Sequence
    epoch: int
    first: int
    chunk: int
    most_nodes: int
    marks: tuple[tuple[int, int], ...] = ()  # positions behind which its state is to be kept, and where

    def prepare(self) -> None:
        """The host's part in the tree."""
        for work in self.sequence.host_work if self.most_nodes else ():
            work.prepare(self.sequence.slot, self.sequence.tokens)
