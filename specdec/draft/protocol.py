"""The Drafter protocol: what every drafter offers the engine, and what the engine tells it.

Life of a request as a drafter sees it: `start`, then each round `propose` and `observe`, then `release`.
A drafter never changes the output, only the speed: it may be wrong, late or silent at will.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from specdec.draft.tree import DraftTree
from specdec.request import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftContext:
    """One sequence that wants a draft this round."""

    request_id: str
    tokens: Sequence[int]  # prompt and output so far; the last one is the root. Read only, may grow after the call
    num_prompt_tokens: int
    sampling: SamplingParams  # temperature, seed and filters, for drafters that rank by shared noise
    max_nodes: int  # of the tree, the root counted, 2 or more
    max_depth: int  # of the tree, 1 or more: tokens that may still be emitted after the root


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """What a drafter proposes for one sequence.

    tree: rooted at the context's last token; `len(tree) <= max_nodes`, depth at most `max_depth`.
    q: None when the children are the drafter's fixed choice. A drafter that *sampled* the children of a node
        gives float32 [len(tree), vocab]: q[u] is the distribution that the children of u were drawn from without
        replacement, in sibling order, with noise of its own. Only the rejection rule reads it.
    """

    tree: DraftTree
    q: "Tensor | None" = None


@dataclass(kw_only=True, slots=True)  # not frozen, which takes long: there is one for every sequence in every round
class Observation:
    """What a round gave one sequence, told to every drafter after the commit.

    emitted: the new tokens, oldest first: accepted drafts, then the target's own.
    hidden: [len(emitted), hidden size * captured layers] of the target, in its dtype; row i is the row that emitted
        token i. None unless the drafter's `hidden_layers` asks for some.
    """

    request_id: str
    emitted: Sequence[int]
    hidden: "Tensor | None" = None


class Drafter(Protocol):
    """Proposes trees. One instance serves all requests of an engine and is only called from its thread."""

    name: str
    hidden_layers: tuple[int, ...]  # decoder layers whose output (layer i's) it wants to observe; () for none
    samples: bool  # whether, under a rejection rule, it gives `Proposal.q`

    def start(self, request_id: str, prompt_ids: Sequence[int], prediction_ids: Sequence[int]) -> None:
        """A request is admitted. Cheap: long work is spread over `propose`."""
        ...

    def propose(self, contexts: Sequence[DraftContext]) -> list[Proposal | None]:
        """One proposal per context, None where it has nothing to say."""
        ...

    def observe(self, observations: Sequence[Observation]) -> None:
        """What the round emitted. Prompt rows are observed with `emitted` empty and `hidden` given, when asked for."""
        ...

    def release(self, request_id: str, finished: bool) -> None:
        """The request is over (`finished`: ended by itself, its output may be learned from) or aborted."""
        ...
