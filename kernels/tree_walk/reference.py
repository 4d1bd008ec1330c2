"""Reference of the walk, in plain PyTorch; see the package for the legend."""

import torch
from torch import Tensor

from specdec.kernels.tree_rows import TreeRows


def walk_trees_reference(
    rows: TreeRows, nodes_M: Tensor, firsts_M: Tensor, chosen_T: Tensor, tops_T: Tensor, settled_T: Tensor | None
) -> tuple[Tensor, ...]:
    """As `specdec.kernels.tree_walk.walk_trees`; the fields of `Accepted`."""
    places_T = torch.arange(len(chosen_T), device=chosen_T.device)
    matches_T = (rows.tokens_T == chosen_T[rows.parents_T]) | (rows.depths_T == 0)
    kept_T = matches_T[rows.ancestors_TD].all(dim=1)
    # siblings differ, so at most one node of each depth is kept; rows that repeat it have its path
    depths_T = torch.where(kept_T, rows.depths_T, 0)
    num_M = torch.zeros_like(firsts_M).scatter_reduce(0, rows.trees_T, depths_T, "amax")
    is_last_T = kept_T & (rows.depths_T == num_M[rows.trees_T])
    last_M = torch.zeros_like(firsts_M).scatter_reduce(0, rows.trees_T, torch.where(is_last_T, places_T, 0), "amax")
    rows_MD = rows.ancestors_TD[last_M]
    behind_MD = torch.arange(rows_MD.shape[1], device=num_M.device) > num_M[:, None]
    emitted_MD = chosen_T[rows_MD].masked_fill(behind_MD | (nodes_M == 0)[:, None], -1)
    sound_T = torch.isfinite(tops_T) if settled_T is None else torch.isfinite(tops_T) & settled_T
    return num_M, rows_MD, emitted_MD, sound_T[rows_MD].all(dim=1)
