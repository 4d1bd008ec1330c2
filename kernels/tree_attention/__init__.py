"""Attention of the rows of a round over paged K/V caches, through the ancestor table of their trees.

Legend of shape suffixes: R rows, H query heads, D head size (of q, k and v) or depths (of tables), M sequences, P pages of the
longest sequence, T rows of trees.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from specdec.kernels.linear import uses_triton
from specdec.kernels.tree_attention.reference import tree_attention_reference
from specdec.kernels.tree_attention.tiles import TilePlan, plan_tiles, tree_attention_tiles

__all__ = [
    "AttentionTables",
    "TilePlan",
    "plan_tiles",
    "tree_attention",
    "tree_attention_reference",
    "tree_attention_tiles",
]


@dataclass(frozen=True, kw_only=True)
class AttentionTables:
    """How rows find their history; int64. Rows that read prompts come first, then the rows of trees.

    page_table_MP: the pages of each sequence. sequences_R: the sequence of each row, rows of one neighbours, in order.
    positions_R: absolute. bases_M: where the tree begins; keys below it lie in pages, from there on at the entries of the
    row's ancestors. starts_M: positions from here on are this round's own. ancestor_entries_TD: [t, d], the entry of the
    ancestor at depth d. num_chunk: rows before the trees. chunk_sequences, tree_sequences: that those rows belong to.
    """

    page_table_MP: Tensor
    sequences_R: Tensor
    positions_R: Tensor
    bases_M: Tensor
    starts_M: Tensor
    ancestor_entries_TD: Tensor
    num_chunk: int
    chunk_sequences: int
    tree_sequences: int
    page_size: int

    @property
    def max_positions(self) -> int:
        """Positions that the page tables hold."""
        return self.page_table_MP.shape[1] * self.page_size

    @cached_property
    def plans(self) -> list[TilePlan]:
        """The CPU's plan of each run of rows of one sequence, made once for all layers."""
        sequences, positions = self.sequences_R.numpy(), self.positions_R.numpy()
        bases, entries = self.bases_M.numpy(), self.ancestor_entries_TD.numpy()
        cuts = np.flatnonzero(np.diff(sequences)) + 1
        edges = sorted({0, *cuts.tolist(), self.num_chunk, len(sequences)})
        plans = []
        for first, end in pairwise(edges):
            own, sequence = positions[first:end], int(sequences[first])
            in_tree = first >= self.num_chunk
            base = int(bases[sequence])
            plans.append(
                plan_tiles(
                    row_start=first,
                    positions=own,
                    ancestor_entries=entries[first - self.num_chunk : end - self.num_chunk] if in_tree else own[:, None],
                    num_chain=None if in_tree else end - first,
                    base=base,
                    pages=self.page_table_MP[sequence].numpy(),
                    page_size=self.page_size,
                    device=self.positions_R.device,
                )
            )
        return plans


def tree_attention(
    q_RHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    tables: AttentionTables,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of every row over its own history: cached keys below its sequence's base, its ancestors above.

    Keys lie in tiles aligned to absolute positions; a row's tiles are reduced in the order of their positions. So its bits
    depend on its own history only, not on which rows stand beside it.

    Args:
        q_RHD: [rows, heads, head_dim], contiguous on a GPU; rows behind those of the tables are padding.
        k_pages, v_pages: [pages, kv heads, page size, head_dim], contiguous, float32 on a CPU, else q's dtype; the rows' own K
            and V are written already.
        tables: where each row's history lies.
        scale: factor of the dot products, usually head_dim ** -0.5.
        window: a row sees its last `window` positions, itself counted; None sees all.
        softcap: scores become softcap * tanh(score / softcap).

    Returns:
        [rows, heads, head_dim] in q's dtype; padding rows are zero.
    """
    assert (q_RHD.dim(), k_pages.dim(), v_pages.shape) == (3, 4, k_pages.shape), "q is [R, H, D], pages are [P, K, page, D]"
    assert q_RHD.shape[1] % k_pages.shape[1] == 0, "the heads divide evenly over the kv heads"
    if not uses_triton(q_RHD.device):
        assert k_pages.dtype == v_pages.dtype == torch.float32, "pages of the tile path are float32"
        return tree_attention_tiles(q_RHD, k_pages, v_pages, tables.plans, scale=scale, window=window, softcap=softcap)
    from specdec.kernels.tree_attention.kernel import tree_attention_triton

    return tree_attention_triton(q_RHD, k_pages, v_pages, tables, scale=scale, window=window, softcap=softcap)
