"""RoundPlan: all that the host says of a round; and the same on the device, in the shapes of a bucket.

The host names slots and counts. It says no token of an answer, and where a decoding sequence stands it does not know: the
device does. Legend of shape suffixes: M members of a round, C prompt rows, T tree rows, X marks of a member.
"""

import functools
from bisect import bisect_left
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from specdec.arrays import FloatArray, IntArray, share_evenly
from specdec.draft.cost import COST_BUCKETS
from specdec.kernels.tree_rows import Layout
from specdec.kernels.tree_select import MAX_NODES
from specdec.round.sample.draw import Nucleus

MOST_TREE_ROWS = 256  # of all members together
ROW_BUCKETS: tuple[int, ...] = tuple(
    rows for rows in COST_BUCKETS.tolist() if rows <= MOST_TREE_ROWS
)  # tree rows of recorded rounds
# prompt rows of a recorded round; beyond, multiples of the first
CHUNK_BUCKETS = (64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024)
_FEWEST_PAGES = 4
_FEW_MEMBERS = 4
MOST_MARKS = 2  # of a member in one round


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """Who takes part, and with how many rows; int64 [M] where no type is said. Members that read prompts and members that
    decode may be the same: the round that ends a prompt brings its last token as the root of a tree.

    slots. firsts: first position that a member reads of its prompt; -1 for none. chunks: how many. nodes: nodes of its
    tree, the root counted; 0 while its prompt goes on. pages: the most that a member holds. odds: float64, what the odds of its
    drafts are multiplied with. least: drafts that survive less likely are dropped. drafting: whether drafters run.
    marks, mark_slots: [M, MOST_MARKS], positions behind which a member's state is to be kept, -1 for none, and where; None if
    nobody's is.
    """

    slots: IntArray
    firsts: IntArray
    chunks: IntArray
    nodes: IntArray
    pages: int
    odds: FloatArray
    least: float = 0.0
    drafting: bool = False
    marks: IntArray | None = None
    mark_slots: IntArray | None = None

    def __len__(self) -> int:
        return len(self.slots)

    def rows(self, trees: int) -> IntArray:
        """int64 [M]: rows of each member, `trees` together: as many as it has nodes, and what is left over shared out evenly,
        as far as a tree may have so many."""
        if trees not in self._rows:
            self._rows[trees] = spread(self.nodes, trees)
        return self._rows[trees]

    @cached_property
    def key(self) -> tuple[object, ...] | None:
        """Equal for rounds whose tables are equal; None where prompts are read, which hardly repeats."""
        if self.num_chunk:
            return None
        return (
            self.slots.tobytes(), self.nodes.tobytes(), self.odds.tobytes(), self.pages, self.least, self.drafting
        )  # fmt: skip

    @cached_property
    def _rows(self) -> dict[int, IntArray]:
        return {}

    @cached_property
    def num_chunk(self) -> int:
        """Prompt rows."""
        return int(self.chunks.sum())

    @property
    def chunk_firsts(self) -> IntArray:
        """int64 [M]: the first prompt row of each member."""
        return np.cumsum(self.chunks) - self.chunks

    @cached_property
    def num_nodes(self) -> int:
        """Tree rows that are asked for."""
        return int(self.nodes.sum())

    @property
    def num_trees(self) -> int:
        """Members with a tree."""
        return int(np.count_nonzero(self.nodes))


class RoundShape(NamedTuple):
    """What fixes the shapes and the steps of a round; where rounds are recorded, each of these has a recording.

    nodes: of the largest tree. pages: of the longest member. truncated: tree rows that a filter truncates, where a recording
    looks for their nucleus. scored_rows: tree rows whose log probabilities it tells, 0 for all. lists: entries of the lists of
    biases. keepers: whatever drafters keep that shapes depend on. prompt_scored: whether it tells log probabilities of the
    prompts that it reads.
    """

    members: int
    chunk: int
    trees: int
    nodes: int
    pages: int
    chunk_members: int
    tree_members: int
    drafting: bool = False
    nucleus: Nucleus = Nucleus.NONE
    truncated: int = 0
    edited: bool = False
    scored: bool = False
    scored_rows: int = 0
    restricted: bool = False
    lists: int = 0
    keepers: tuple[int, ...] = ()
    prompt_scored: bool = False


class _Fields(NamedTuple):
    """Places of the tables in one flat tensor of int64."""

    slots: slice
    nodes: slice
    rows: slice
    firsts: slice
    bases: slice
    starts: slice
    marks: slice
    mark_slots: slice
    odds: slice
    least: slice
    trees: slice
    chunk_slots: slice
    chunk_members: slice
    chunk_positions: slice
    end: slice

    @staticmethod
    @functools.lru_cache(maxsize=1 << 10)  # on a CPU there is no end of shapes
    def of(members: int, chunk: int, trees: int) -> "_Fields":
        sizes = [members] * 6 + [members * MOST_MARKS] * 2 + [-(-members // 2), 1, trees, chunk, chunk, chunk, 1]
        starts = np.cumsum([0, *(size + size % 2 for size in sizes)]).tolist()  # each at a multiple of 16 bytes, see `aligned`
        return _Fields(*(slice(start, start + size) for start, size in zip(starts, sizes, strict=False)))


class PlanTables:
    """A plan as tensors: views of one flat tensor.

    budgets_M: nodes that each tree may have. layout: rows that each member has, which may be more, so that a bucket is full.
    """

    def __init__(self, flat: Tensor, members: int, chunk: int, trees: int) -> None:
        fields = _Fields.of(members, chunk, trees)
        self.budgets_M = flat[fields.nodes]
        self.layout = Layout(
            texts_M=flat[fields.slots],
            nodes_M=flat[fields.rows],
            firsts_M=flat[fields.firsts],
            bases_M=flat[fields.bases],
            starts_M=flat[fields.starts],
            trees_T=flat[fields.trees],
        )
        self.marks_MX, self.mark_slots_MX = (flat[field].view(members, -1) for field in (fields.marks, fields.mark_slots))
        self.odds_M = flat[fields.odds].view(torch.float32)[:members]
        self.least_1 = flat[fields.least].view(torch.float32)[:1]
        self.chunk_slots_C, self.chunk_members_C = flat[fields.chunk_slots], flat[fields.chunk_members]
        self.chunk_positions_C, self.count_1 = flat[fields.chunk_positions], flat[fields.end]

    def with_layout(self, layout: Layout) -> "PlanTables":
        """The same with another layout."""
        changed = copy(self)
        changed.layout = layout
        return changed

    @staticmethod
    def size(members: int, chunk: int, trees: int) -> int:
        """Entries of the flat tensor."""
        return int(_Fields.of(members, chunk, trees).end.stop)


def flatten(plan: RoundPlan, members: int, chunk: int, trees: int, spare: int) -> IntArray:
    """A plan as the flat tensor of `PlanTables`.

    Args:
        plan: the plan.
        members, chunk, trees: of the bucket. Members beyond the plan's are the spare slot and bring nothing; prompt rows
            beyond repeat the last one; tree rows beyond are spread over the trees.
        spare: the spare slot.
    """
    fields, count = _Fields.of(members, chunk, trees), len(plan)
    flat = np.zeros(fields.end.stop, np.int64)
    rows = plan.rows(trees)
    ends = plan.firsts + plan.chunks
    flat[fields.slots] = spare
    flat[fields.bases] = flat[fields.marks] = -1
    flat[fields.slots][:count] = plan.slots
    flat[fields.nodes][:count] = plan.nodes
    flat[fields.rows][:count] = rows
    flat[fields.firsts][:count] = np.cumsum(rows) - rows
    flat[fields.bases][:count] = np.where(plan.nodes > 0, -1, ends)
    flat[fields.bases][count:] = 0
    flat[fields.starts][:count] = np.where(plan.chunks > 0, plan.firsts, -1)
    if plan.marks is not None and plan.mark_slots is not None:
        filled = count * MOST_MARKS
        flat[fields.marks][:filled], flat[fields.mark_slots][:filled] = plan.marks.ravel(), plan.mark_slots.ravel()
    flat[fields.odds].view(np.float32)[:count] = plan.odds
    flat[fields.least].view(np.float32)[0] = plan.least
    flat[fields.trees] = np.repeat(np.arange(count), rows)
    if chunk:
        _fill_chunk(flat, fields, plan)
    return flat


def spread(nodes: IntArray, trees: int) -> IntArray:
    """See `RoundPlan.rows`. Each of the row buckets finds room in as few trees as there may be of so many nodes."""
    left = trees - int(nodes.sum())
    return nodes + share_evenly(np.where(nodes > 0, MAX_NODES - nodes, 0), left) if left else nodes.copy()


def _fill_chunk(flat: IntArray, fields: _Fields, plan: RoundPlan) -> None:
    """Prompt rows in order; what is left over repeats the last."""
    readers = np.repeat(np.arange(len(plan)), plan.chunks)
    within = np.arange(len(readers)) - np.repeat(np.cumsum(plan.chunks) - plan.chunks, plan.chunks)
    positions, count = plan.firsts[readers] + within, len(readers)
    for place, values in (
        (fields.chunk_slots, plan.slots[readers]),
        (fields.chunk_members, readers),
        (fields.chunk_positions, positions),
    ):
        flat[place][:count] = values
        flat[place][count:] = values[-1]
    flat[fields.end] = count


def row_bucket(count: int) -> int:
    """The smallest of the row buckets that holds `count`."""
    return ROW_BUCKETS[bisect_left(ROW_BUCKETS, count)]


def chunk_bucket(count: int) -> int:
    """Prompt rows of a round whose shape is a bucket."""
    if not count:
        return 0
    if count <= CHUNK_BUCKETS[-1]:
        return CHUNK_BUCKETS[bisect_left(CHUNK_BUCKETS, count)]
    return -(-count // CHUNK_BUCKETS[0]) * CHUNK_BUCKETS[0]


def page_bucket(count: int, members: int, most: int) -> int:
    """Room to grow in, so that few recordings serve all lengths; few members hardly notice splits that are not there."""
    room = max(power_of_two(count), _FEWEST_PAGES)
    if members > _FEW_MEMBERS and room > _FEWEST_PAGES and count <= room * 3 // 4:
        room = room * 3 // 4
    return min(room, most)


def power_of_two(count: int) -> int:
    """The next power of two."""
    return 1 << max(count - 1, 0).bit_length()


def members_bucket(count: int, fixed: bool) -> int:
    """Members of one kind, of which attention's launches need to know no more than about how many there are."""
    return power_of_two(count) if fixed and count else count
