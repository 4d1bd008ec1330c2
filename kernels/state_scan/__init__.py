"""States that tokens move on one by one: along prompts, and down draft trees of any shape.

A layer that keeps a state computes, for each token, `state, output = advance(state, what it reads of the last few tokens)`. The
same step runs in the same order whether a token is decoded, verified, read with a prompt or taken in later; so the bits of a
row depend on the tokens before it alone. Accepted rows of a tree wait in a ring until their sequence is computed the next time,
and join the state then. So a call reads and writes each state once, and what is not accepted is forgotten by doing nothing.

Legend of shape suffixes: R rows, C prompt rows, T tree rows, M sequences, S states in memory, K states kept aside, X marks of a
sequence, B room of a ring, J taps (rows that a step reads of, its own last), W numbers kept of a row, N steps at once, O
numbers of an output.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from specdec.kernels.state_scan.reference import Places, scan_states_reference

__all__ = ["StateScan", "StateStore", "StateTables", "Step", "scan_states"]


@dataclass(frozen=True, slots=True)
class StateStore:
    """What a layer keeps between calls.

    states: float32 [S, ...]; the last one is nobody's. recent_SBW: a ring of rows for each state, that of position p at p % B.
    kept: float32 [K, ...], states kept aside; the last one is nobody's. kept_rows_KJW: the last J - 1 rows that each has taken
    in, oldest first.
    """

    states: Tensor
    recent_SBW: Tensor
    kept: Tensor
    kept_rows_KJW: Tensor


@dataclass(frozen=True, kw_only=True)
class StateTables:
    """Which rows belong to which states; int64. Rows that read prompts come first, then the rows of trees; within each, rows of
    a sequence are neighbours, sequences in order. A prompt row that has the position of the one before repeats it.

    states_M: the state of each sequence; padding has the last. folded_M: positions that it has taken in. starts_M: the first
    position computed now; those before it that were not taken in, at most `waiting`, lie in the ring. bases_M: where the tree
    begins, behind the prompt rows. sequences_R, positions_R. parents_T: the row above each tree row, as a tree row; a root its
    own. num_chunk: C. num_nodes: tree rows of a sequence at most. taps: J. marks_MX, kept_MX: positions behind which a state is
    kept aside while prompt rows pass them, -1 for none, and where.
    """

    states_M: Tensor
    folded_M: Tensor
    starts_M: Tensor
    bases_M: Tensor
    sequences_R: Tensor
    positions_R: Tensor
    parents_T: Tensor
    num_chunk: int
    num_nodes: int
    waiting: int
    taps: int
    marks_MX: Tensor | None = None
    kept_MX: Tensor | None = None

    @cached_property
    def places(self) -> Places:
        """Where the reference finds rows, worked out once for all layers."""
        return Places.of(self)


class Step(Protocol):
    """One token of a recurrence. Row by row, in float32; sums are spelled out, so that no library chooses their order."""

    def read(self, windows_NJW: Tensor) -> tuple[Tensor, ...]:
        """What `advance` reads of the last J tokens, the own one last; zeros stand before a text. Any tensors, N first."""
        ...

    def advance(self, states: Tensor, *read: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [N, ...] states, what `read` gave: the states behind the token, and outputs, float32 [N, O]."""
        ...


# a layer's whole recurrence: rows [R, W], where its states are, and how rows find them, to outputs, float32 [R, O]
StateScan = Callable[[Tensor, StateStore, StateTables], Tensor]


def scan_states(rows_RW: Tensor, step: Step, store: StateStore, tables: StateTables) -> Tensor:
    """Take in what waits, move the states on along the prompt rows, and step down the trees from there.

    Afterwards the store holds each state as of its sequence's `bases_M`; the ring holds the last J - 1 prompt rows and the root
    of the tree. Accepted rows below the root are for the caller to copy there.

    Args:
        rows_RW: what is kept of each row, in the ring's dtype.
        step: the recurrence.
        store: B is at least `waiting` + J.
        tables: the rows.

    Returns:
        float32 [R, O].
    """
    assert store.states.dtype == store.kept.dtype, "a state is kept as it is"
    assert rows_RW.dtype == store.recent_SBW.dtype, "what waits is what was read"
    assert store.recent_SBW.shape[1] >= tables.waiting + tables.taps, "the ring holds what waits, what is before and a root"
    return scan_states_reference(rows_RW, step, store, tables)
