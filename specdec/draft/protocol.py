"""The Drafter protocol: what every drafter offers a round, and what a round tells it.

A drafter works on tensors and inside the round: it sees all members at once, reads no value back, and its shapes depend on
nothing that it finds. So a round with any drafter can be recorded and run ahead of the host. It never changes the output, only
the speed: it may be wrong or silent at will.

Legend of shape suffixes: M members of a round, S slots, C candidates, X kinds, T tree rows, R rows, E hidden size, D depths, L
laws (C + 1), V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from specdec.arrays import FloatArray, IntArray
from specdec.cache.kinds import Caches
from specdec.cache.rows import Rows
from specdec.kernels.gumbel import Keys
from specdec.kernels.tree_rows import Texts, TreeRows
from specdec.kernels.tree_select import Candidates
from specdec.kernels.tree_walk import Accepted
from specdec.models.base import CacheSpec
from specdec.request import SamplingParams

__all__ = ["CandidateKinds", "Candidates", "DraftView", "Drafter", "Drafts", "ObserveView", "Starter"]


@dataclass(frozen=True, slots=True)
class CandidateKinds:
    """What a drafter tells apart among its candidates: depth, rank, confidence, whatever foretells whether they are right.

    priors_X: float64, the chance that a candidate of each kind is right, given that all above it are, before any was seen.
    sources_X: int64, which of the drafter's names each kind counts for. elders_X: int64, of a drafter that samples: the kind of
    the sibling that is drawn right before, without which a tree may not have this one; -1 for none.
    """

    priors_X: FloatArray
    sources_X: IntArray
    elders_X: IntArray | None = None

    @staticmethod
    def alike(prior: float) -> "CandidateKinds":
        """One kind."""
        return CandidateKinds(np.full(1, prior), np.zeros(1, np.int64))


@dataclass(frozen=True, slots=True)
class Drafts:
    """What a drafter proposes. laws_MLV: float32, only of a drafter that samples, see `specdec.round.accept.base.Verification`.
    repeats: whether two candidates may have the same path."""

    candidates: Candidates
    laws_MLV: Tensor | None = None
    repeats: bool = False


class Ranking(Protocol):
    """Which tokens the target would be the likeliest to draw at some positions, if its logits were a drafter's."""

    def __call__(self, logits_MV: Tensor, positions_M: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """The members' `num` best of log q + g, with the very noise that the target will draw with; greedy members rank by log
        q alone, and filters apply.

        Args:
            logits_MV: float32, contiguous, one row for each member.
            positions_M: int64, of the rows; the tokens that are ranked lie right behind.
            num: tokens of each.

        Returns:
            int64 [M, num] tokens, best first, and float32 [M, num] their log q, temperature applied, before filters; -inf where
            the filters leave no token.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class DraftView:
    """The members of a round before it is laid out.

    slots_M: int64. texts: of all slots; the last token of a member's is its root. has_tree_M: bool; whatever others are offered
    is not looked at. starts_M: int64, the first position of its prompt that a member reads in this very round, from where on
    its caches hold nothing yet; -1 for none. keys: temperature, seed and noise of all slots. rank: see `Ranking`. num_nodes: of
    the largest tree, the root counted; drafts beyond it are lost. num_pages, page_size, spare_entry: of the caches.
    """

    slots_M: Tensor
    texts: Texts
    has_tree_M: Tensor
    starts_M: Tensor
    keys: Keys
    rank: Ranking
    num_nodes: int
    num_pages: int
    page_size: int
    spare_entry: int


@dataclass(frozen=True, kw_only=True)
class ObserveView:
    """The rows of a round after they were computed.

    rows: all of them, their entries as written. trees: those of trees. hidden: the hidden states that were asked for by name,
    [R, E] each. accepted: what is kept of each tree. has_tree_M: bool. moves are still to come: a drafter's own caches
    are written where the rows' entries say and follow the target's.
    """

    view: DraftView
    rows: Rows
    trees: TreeRows
    hidden: Mapping[str, Tensor]
    accepted: Accepted | None


@dataclass(frozen=True, slots=True)
class Starter:
    """What a drafter hears of a sequence that takes a slot. group: what it says may reach sequences of the same group alone;
    empty for those that share what they say."""

    tokens: Sequence[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    prediction_ids: Sequence[int]
    group: str = ""


class Drafter(Protocol):
    """Proposes candidates. One instance serves all slots of an engine.

    names: what it counts its drafts as, one or several. kinds: see `CandidateKinds`. reads: the target's hidden states that it
    observes, by name (`embedding`, `layers.<i>`, `norm`), each given to it separately. cache_specs: layers of its own, which
    live in the target's pages at the same positions; so prefix-cache hits, preemption and page accounting hold for them.
    shared_names, where a drafter has it: those of its names whose drafts come from what other sequences said; sequences of a
    group get none of them. Such a drafter has a method `forget()` too: what others said is gone. catch_up(), where a drafter
    has it: a round is to be enqueued in which it will be asked. From the host, in the order of the device's stream.
    """

    names: tuple[str, ...]
    kinds: CandidateKinds
    reads: tuple[str, ...]
    cache_specs: tuple[CacheSpec, ...]

    @property
    def shape(self) -> int:
        """What it keeps that a recording depends on; another number when that has changed."""
        ...

    def bind(self, caches: Caches, first_layer: int, row_multiple: int) -> None:
        """Its own layers are there, from that place on among all caches. row_multiple: see `specdec.round.forward.Forward`."""
        ...

    def enter(self, slot: int, starter: Starter) -> None:
        """A sequence takes a slot. From the host, in the order of the device's stream."""
        ...

    def leave(self, slot: int, output: Sequence[int]) -> None:
        """Its sequence is over; `output` is what may be learned from it, empty where nothing may."""
        ...

    def draft(self, view: DraftView) -> Drafts:
        """Candidates for every member, inside the round."""
        ...

    def observe(self, view: ObserveView) -> None:
        """What the round computed and kept, prompt rows included, inside the round. Called in every round, whether drafters
        were asked or not."""
        ...
