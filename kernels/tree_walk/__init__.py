"""The walk down a draft tree along the tokens that were chosen after each node: what is kept, and what is emitted.

Legend of shape suffixes: T tree rows, M trees, D depths.
"""

from dataclasses import dataclass

from torch import Tensor

from specdec.kernels.linear import uses_triton
from specdec.kernels.tree_rows import TreeRows
from specdec.kernels.tree_walk.reference import walk_trees_reference

__all__ = ["Accepted", "walk_trees"]


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a round decided for each tree; int64 but for sound_M. Void for members without a tree.

    num_M: accepted drafts; num + 1 tokens are emitted. rows_MD: the kept rows, root first; the last one fills the rest.
    emitted_MD: the accepted drafts, then the target's own token; -1 fills the rest. sound_M: bool, whether the logits of all
    kept rows gave a token. chosen_T: the target's own token after every row, kept or not; under a rule that draws its tokens
    otherwise, the likeliest.
    """

    num_M: Tensor
    rows_MD: Tensor
    emitted_MD: Tensor
    sound_M: Tensor
    chosen_T: Tensor


def walk_trees(
    rows: TreeRows, nodes_M: Tensor, firsts_M: Tensor, chosen_T: Tensor, tops_T: Tensor, settled_T: Tensor | None
) -> Accepted:
    """From the root, step to the child that carries the token chosen after the node; emit every chosen token on the way.

    Args:
        rows: the trees. Rows that repeat a node count for nothing.
        nodes_M, firsts_M: see `specdec.kernels.tree_rows.Layout`.
        chosen_T: int64, the target's own token after each row.
        tops_T: float32, the largest logit of each row; where it is not finite the row gave no token.
        settled_T: bool, False where the row's token is not certain; None where all are.
    """
    if uses_triton(chosen_T.device):
        from specdec.kernels.tree_walk.kernel import walk_trees_triton as walk
    else:
        walk = walk_trees_reference
    num_M, rows_MD, emitted_MD, sound_M = walk(rows, nodes_M, firsts_M, chosen_T, tops_T, settled_T)
    return Accepted(num_M, rows_MD, emitted_MD, sound_M, chosen_T)
