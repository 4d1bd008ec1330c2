"""Reference of the moves, in plain PyTorch; see the package for the legend."""

import torch
from torch import Tensor

from specdec.kernels.tree_rows import TreeRows
from specdec.kernels.tree_walk import Accepted


def move_accepted_reference(store: Tensor, rows: TreeRows, accepted: Accepted, nodes_M: Tensor) -> None:
    """As `specdec.kernels.entry_move.move_accepted`."""
    size = store.shape[3]
    moves_MD, sources_MD, targets_MD = accepted_moves(rows, accepted, nodes_M, size)
    sources_N, targets_N = sources_MD[moves_MD], targets_MD[moves_MD]
    if len(sources_N):
        values = store[:, sources_N // size, :, sources_N % size]
        store[:, targets_N // size, :, targets_N % size] = values


def accepted_moves(rows: TreeRows, accepted: Accepted, nodes_M: Tensor, page_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which accepted rows move (bool), from which entry and to which (int64); [M, D] each, without a look at any value."""
    depths_D = torch.arange(accepted.rows_MD.shape[1], device=nodes_M.device)
    kept_MD = (depths_D <= accepted.num_M[:, None]) & (accepted.sound_M & (nodes_M > 0))[:, None]
    sources_MD = rows.entries_T[accepted.rows_MD]
    positions_MD = rows.bases_M[:, None] + depths_D
    last_page = rows.page_table_MP.shape[1] - 1
    pages_MD = rows.page_table_MP.gather(1, (positions_MD // page_size).clamp(max=last_page))
    targets_MD = pages_MD * page_size + positions_MD % page_size
    return kept_MD & (sources_MD != targets_MD), sources_MD, targets_MD
