"""Tree attention in plain PyTorch, row by row: the meaning that every kernel is held to."""

import torch
from torch import Tensor


def history_slots(row: int, position: int, base: int, pages_P: Tensor, ancestor_slots_RD: Tensor, page_size: int) -> Tensor:
    """int64 [position + 1]: the slot of the key at each position that `row` sees, itself last."""
    before = torch.arange(min(base, position + 1), device=pages_P.device)
    slots = pages_P[before // page_size] * page_size + before % page_size
    return torch.cat([slots, ancestor_slots_RD[row, : position + 1 - base]]) if position >= base else slots


def tree_attention_reference(
    q_RHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    *,
    page_table_SP: Tensor,
    sequences_R: Tensor,
    positions_R: Tensor,
    bases_S: Tensor,
    starts_S: Tensor,
    ancestor_slots_RD: Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """As `specdec.kernels.tree_attention.tree_attention`, computed in float64 and returned in float32."""
    del starts_S  # what lies below may be read early, which is no part of the meaning
    page_size, num_kv_heads = k_pages.shape[2], k_pages.shape[1]
    group = q_RHD.shape[1] // num_kv_heads
    k_slots = k_pages.transpose(1, 2).reshape(-1, num_kv_heads, k_pages.shape[3]).double()  # [slots, K, D]
    v_slots = v_pages.transpose(1, 2).reshape(-1, num_kv_heads, v_pages.shape[3]).double()
    out = torch.empty(q_RHD.shape, dtype=torch.float32, device=q_RHD.device)
    for row in range(len(q_RHD)):
        sequence, position = int(sequences_R[row]), int(positions_R[row])
        slots = history_slots(row, position, int(bases_S[sequence]), page_table_SP[sequence], ancestor_slots_RD, page_size)
        if window is not None:
            slots = slots[-window:]
        k = k_slots[slots].repeat_interleave(group, dim=1)  # [T, H, D]
        v = v_slots[slots].repeat_interleave(group, dim=1)
        scores = torch.einsum("hd,thd->ht", q_RHD[row].double(), k) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        out[row] = torch.einsum("ht,thd->hd", scores.softmax(dim=-1), v).float()
    return out
