"""The rows of a forward pass as caches read them.

Legend of shape suffixes: R rows, M members of the round (sequences), T tree rows, D depths of their trees, P pages, X marks of
a member.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from specdec.kernels.tree_attention import AttentionTables


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Prompt rows first, then tree rows; within each, rows of a member are neighbours, members in order. int64 throughout.

    tokens_R, positions_R: what is computed, and where. entries_R: where keys and values go, page * page size + offset.
    slots_M: the slot of each member. parents_T: the row above each tree row, as a tree row; a root its own. attention: how
    rows find their history. num_rows: without the padding behind them, which only a CPU asks for; entries_R has no padding.
    marks_MX, mark_slots_MX: positions behind which a member's state is to be kept, -1 for none, and where; see `CacheKind`.
    """

    tokens_R: Tensor
    positions_R: Tensor
    entries_R: Tensor
    slots_M: Tensor
    parents_T: Tensor
    attention: AttentionTables
    marks_MX: Tensor | None = None
    mark_slots_MX: Tensor | None = None
    kept: dict[object, object] = field(default_factory=dict)  # what a kind works out once for all of its layers

    @property
    def num_rows(self) -> int:
        return len(self.entries_R)

    @property
    def num_chunk(self) -> int:
        """Prompt rows."""
        return self.attention.num_chunk


@dataclass(frozen=True, slots=True)
class Runs:
    """Rows whose entries are neighbours in one page: (first row, behind the last, page, offset); the host's list of writes."""

    runs: Sequence[tuple[int, int, int, int]]

    @staticmethod
    def of(entries_R: Tensor, page_size: int, spare_page: int) -> "Runs":
        """On the CPU. Rows that write to the spare page write nothing."""
        runs: list[tuple[int, int, int, int]] = []
        for row, entry in enumerate(entries_R.tolist()):
            page, offset = divmod(entry, page_size)
            if page == spare_page:
                continue
            if runs and (last := runs[-1])[1] == row and last[2] == page and last[3] + row - last[0] == offset:
                runs[-1] = (last[0], row + 1, page, last[3])
            else:
                runs.append((row, row + 1, page, offset))
        return Runs(runs)
