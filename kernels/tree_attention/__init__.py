"""Attention of the rows of a round over paged K/V caches, through the ancestor table of their trees."""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.kernels.tree_attention.reference import tree_attention_reference
from specdec.kernels.tree_attention.tiles import TilePlan, plan_tiles, tree_attention_tiles

__all__ = ["TilePlan", "plan_tiles", "tree_attention", "tree_attention_reference", "tree_attention_tiles"]


def tree_attention(
    q_RHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    plans: Sequence[TilePlan],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of every row over its own history: cached keys below its sequence's base, its ancestors above.

    Keys lie in tiles of one page, aligned to absolute positions; a row's tiles are reduced in the order of their
    positions. So its bits depend on its own history only, not on which rows stand beside it.

    Args:
        q_RHD: [rows, heads, head_dim], any float dtype.
        k_pages, v_pages: float32 [pages, kv heads, page size, head_dim]; the rows' own K and V are written already.
        plans: one per sequence, from `plan_tiles`; the same for all layers of a round.
        scale: factor of the dot products, usually head_dim ** -0.5.
        window: a row sees its last `window` positions, itself counted; None sees all.
        softcap: scores become softcap * tanh(score / softcap).

    Returns:
        [rows, heads, head_dim] in q's dtype; rows beyond the plans (padding) are zero.
    """
    assert (q_RHD.dim(), k_pages.dim(), v_pages.shape) == (3, 4, k_pages.shape), "q is [R, H, D], pages are [P, K, page, D]"
    assert q_RHD.shape[1] % k_pages.shape[1] == 0, "the heads divide evenly over the kv heads"
    assert k_pages.dtype == v_pages.dtype == torch.float32, "pages of the tile path are float32"
    return tree_attention_tiles(q_RHD, k_pages, v_pages, plans, scale=scale, window=window, softcap=softcap)
