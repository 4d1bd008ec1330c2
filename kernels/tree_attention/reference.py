"""Tree attention in plain PyTorch, row by row: the meaning that every kernel is held to."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from specdec.kernels.tree_attention import AttentionTables


def history_entries(tables: "AttentionTables", row: int) -> Tensor:
    """int64 [position + 1]: the entry of the key at each position that `row` sees, itself last."""
    sequence, position = int(tables.sequences_R[row]), int(tables.positions_R[row])
    base, pages_P = int(tables.bases_M[sequence]), tables.page_table_MP[sequence]
    before = torch.arange(min(base, position + 1), device=pages_P.device)
    entries = pages_P[before // tables.page_size] * tables.page_size + before % tables.page_size
    if position < base:
        return entries
    return torch.cat([entries, tables.ancestor_entries_TD[row - tables.num_chunk, : position + 1 - base]])


def tree_attention_reference(
    q_RHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    tables: "AttentionTables",
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """As `specdec.kernels.tree_attention.tree_attention`, computed in float64 and returned in float32."""
    num_kv_heads = k_pages.shape[1]
    group = q_RHD.shape[1] // num_kv_heads
    k_entries = k_pages.transpose(1, 2).reshape(-1, num_kv_heads, k_pages.shape[3]).double()  # [entries, K, D]
    v_entries = v_pages.transpose(1, 2).reshape(-1, num_kv_heads, v_pages.shape[3]).double()
    out = torch.zeros(q_RHD.shape, dtype=torch.float32, device=q_RHD.device)
    for row in range(len(tables.positions_R)):
        entries = history_entries(tables, row)
        if window is not None:
            entries = entries[-window:]
        k = k_entries[entries].repeat_interleave(group, dim=1)  # [T, H, D]
        v = v_entries[entries].repeat_interleave(group, dim=1)
        scores = torch.einsum("hd,thd->ht", q_RHD[row].double(), k) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        out[row] = torch.einsum("ht,thd->hd", scores.softmax(dim=-1), v).float()
    return out
