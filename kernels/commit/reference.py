"""Reference of a round's end, in plain PyTorch; see the package for the legend."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from specdec.kernels.commit import Verified
    from specdec.kernels.tree_rows import Layout, Texts
    from specdec.kernels.tree_walk import Accepted


SURE = 1 << 20  # as in the package


def commit_reference(
    texts: "Texts",
    layout: "Layout",
    accepted: "Accepted",
    verified: "Verified | None",
    told_HX: Tensor,
    turns_1: Tensor,
    counts_SV: Tensor | None = None,
) -> None:
    """As `specdec.kernels.commit.commit`."""
    has_tree_M = layout.nodes_M > 0
    moves_M = has_tree_M & accepted.sound_M
    emitted_MD = accepted.emitted_MD
    depths_D = torch.arange(emitted_MD.shape[1], device=emitted_MD.device)
    kept_MD = moves_M[:, None] & (depths_D <= accepted.num_M[:, None])
    # padding names a text that nobody owns, several times
    texts_K, tokens_K = layout.texts_M[:, None].expand_as(emitted_MD)[kept_MD], emitted_MD[kept_MD]
    places_K = (texts.lengths_S[layout.texts_M, None] + depths_D)[kept_MD]
    texts.tokens_SL[texts_K, places_K] = tokens_K.int()
    if counts_SV is not None:
        counts_SV.index_put_((texts_K, tokens_K), torch.ones_like(tokens_K, dtype=counts_SV.dtype), accumulate=True)
    texts.lengths_S[layout.texts_M[moves_M]] += accepted.num_M[moves_M] + 1
    columns = [accepted.num_M * has_tree_M, (accepted.sound_M | ~has_tree_M).long(), torch.zeros_like(accepted.num_M)]
    if verified is None:
        columns += [torch.full_like(columns[0], -1), columns[2]]
        told = [torch.stack(columns, 1), emitted_MD]
    else:
        told = _tell_drafts(columns, layout, accepted, verified)
    flat = torch.cat(told, 1).flatten()
    told_HX[turns_1 % len(told_HX), : len(flat)] = flat


def _tell_drafts(columns: list[Tensor], layout: "Layout", accepted: "Accepted", verified: "Verified") -> list[Tensor]:
    trees, candidates = verified.trees, verified.candidates
    kinds_MC, tokens_MC = (values.expand(len(columns[0]), -1) for values in (candidates.kinds_MC, candidates.tokens_MC))
    offers_M1 = trees.offers_M.clamp(min=0)[:, None]
    has_offer_M = (trees.offers_M >= 0) & (layout.nodes_M > 0)
    offered_M = has_offer_M & (tokens_MC.gather(1, offers_M1)[:, 0] == accepted.emitted_MD[:, 0])
    columns[2] = trees.counts_M
    columns += [torch.where(has_offer_M, kinds_MC.gather(1, offers_M1)[:, 0], -1), offered_M.long()]
    picked_MN = trees.picks_MN >= 0
    nodes_MN = kinds_MC.gather(1, trees.picks_MN.clamp(min=0)) | trees.parents_MN << 32
    path_MD = accepted.rows_MD - layout.firsts_M[:, None]
    offered_MO = (trees.survivals_MO * SURE).long()
    return [torch.stack(columns, 1), accepted.emitted_MD, path_MD, torch.where(picked_MN, nodes_MN, -1), offered_MO]


def tell_reference(values: Tensor, ring_HX: Tensor, turns_1: Tensor) -> None:
    """As `specdec.kernels.commit.tell`."""
    ring_HX[turns_1 % len(ring_HX), : values.numel()] = values.flatten()
