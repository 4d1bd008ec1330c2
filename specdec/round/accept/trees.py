"""Draft trees as the rejection rules walk them.

Shape suffixes: M trees, T tree rows, N nodes, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.kernels.commit import Verified
from specdec.kernels.tree_rows import Layout, TreeRows
from specdec.round.accept.base import Verification


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleTrees:
    """tokens_T, parents_T: of the rows. roots_M: the row of each root. counts_M: drafts. bases_M: positions of the roots.
    texts_M: slots. chains_M: bool, trees that are one path. picks_MN: the candidate that each node was, -1 for none."""

    tokens_T: Tensor
    parents_T: Tensor
    roots_M: Tensor
    counts_M: Tensor
    bases_M: Tensor
    texts_M: Tensor
    chains_M: Tensor
    picks_MN: Tensor | None
    num_nodes: int

    @staticmethod
    def of(rows: TreeRows, layout: Layout, verified: Verified | None) -> "RuleTrees":
        """The trees of a round."""
        counts_M = torch.zeros_like(layout.nodes_M) if verified is None else verified.trees.counts_M
        # members without a tree are decided like others, and nobody reads the decision
        roots_M = layout.firsts_M.clamp(max=len(rows.tokens_T) - 1)
        last_M = (roots_M + counts_M).clamp(max=len(rows.tokens_T) - 1)
        return RuleTrees(
            tokens_T=rows.tokens_T,
            parents_T=rows.parents_T,
            roots_M=roots_M,
            counts_M=counts_M,
            bases_M=rows.bases_M,
            texts_M=layout.texts_M,
            chains_M=rows.depths_T[last_M] == counts_M,
            picks_MN=None if verified is None else verified.trees.picks_MN,
            num_nodes=rows.ancestors_TD.shape[1],
        )

    def row(self, node: int) -> Tensor:
        """int64 [M]: the row of a node; some row where a tree has no such node."""
        return (self.roots_M + node).clamp(max=len(self.tokens_T) - 1)

    def laws(self, verification: Verification, p_TV: Tensor) -> Tensor:
        """float64 [T, V]: the distribution that each row's children were drawn from, zero where they are a fixed choice."""
        laws_MLV = verification.laws_MLV
        if laws_MLV is None or self.picks_MN is None:
            return torch.zeros_like(p_TV)
        trees_T = verification.rows.trees_T
        nodes_T = torch.arange(len(trees_T), device=trees_T.device) - self.roots_M[trees_T]
        picks_T = self.picks_MN[trees_T, torch.minimum(nodes_T, self.counts_M[trees_T])]
        return laws_MLV[trees_T, picks_T + 1].to(p_TV)
