"""Reference of the layout of tree rows, in plain PyTorch; see the package for the legend."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from specdec.kernels.tree_rows import Layout, Texts


def tree_rows_reference(
    texts: "Texts",
    layout: "Layout",
    drafts: tuple[Tensor, Tensor, Tensor] | None,
    calls_1: Tensor,
    *,
    num_nodes: int,
    num_pages: int,
    page_size: int,
    spare_entry: int,
    scratch_entry: int,
) -> tuple[Tensor, ...]:
    """As `specdec.kernels.tree_rows.tree_rows`; the fields of `TreeRows`."""
    calls_1.add_(1)
    device, trees_T = layout.trees_T.device, layout.trees_T
    nodes_N = torch.arange(num_nodes, device=device)
    page_table_MP = texts.pages_SP[layout.texts_M, :num_pages]
    lengths_M = texts.lengths_S[layout.texts_M]
    bases_M = torch.where(layout.bases_M < 0, lengths_M - 1, layout.bases_M)
    starts_M = torch.where(layout.starts_M < 0, bases_M, layout.starts_M)
    roots_M = texts.tokens_SL[layout.texts_M, lengths_M - 1].long()
    if drafts is None:
        tokens_MN, counts_M = roots_M[:, None].expand(-1, num_nodes), torch.zeros_like(bases_M)
        parents_MN = torch.zeros_like(tokens_MN)
    else:
        tokens_MN, parents_MN, counts_M = drafts
        tokens_MN = torch.where(nodes_N == 0, roots_M[:, None], tokens_MN)
    depths_MN, paths_MN, ancestors_MND = _climb(parents_MN, num_nodes)
    positions_MN = bases_M[:, None] + depths_MN
    # nodes behind the last one, which no row shows, may reach beyond the pages
    places_MN = page_table_MP.gather(1, (positions_MN // page_size).clamp(max=num_pages - 1))
    scratch_MN = scratch_entry + layout.firsts_M[:, None] + nodes_N
    entries_MN = torch.where(depths_MN == nodes_N, places_MN * page_size + positions_MN % page_size, scratch_MN)
    within_T = torch.arange(len(trees_T), device=device) - layout.firsts_M[trees_T]
    node_T = torch.minimum(within_T, counts_M[trees_T])
    above_TD = ancestors_MND[trees_T, node_T]
    return (
        tokens_MN[trees_T, node_T],
        positions_MN[trees_T, node_T],
        trees_T,
        layout.texts_M[trees_T],
        torch.where(within_T == node_T, entries_MN[trees_T, node_T], spare_entry),
        layout.firsts_M[trees_T] + parents_MN[trees_T, node_T],
        depths_MN[trees_T, node_T],
        paths_MN[trees_T, node_T],
        layout.firsts_M[trees_T, None] + above_TD,
        entries_MN[trees_T].gather(1, above_TD),
        bases_M,
        starts_M,
        page_table_MP,
    )


def _climb(parents_MN: Tensor, num_nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Depth and path (bits) of each node, and int64 [M, N, N] the node at each depth of its path, itself from its own on."""
    nodes_N = torch.arange(num_nodes, device=parents_MN.device)
    bits_N = torch.ones_like(nodes_N) << nodes_N
    paths_MN, above_MN = bits_N.expand_as(parents_MN), parents_MN
    for _ in range((num_nodes - 1).bit_length()):
        paths_MN = paths_MN | paths_MN.gather(1, above_MN)
        above_MN = above_MN.gather(1, above_MN)
    on_path_MNN = (paths_MN[:, :, None] >> nodes_N & 1).bool()
    depths_MN = on_path_MNN.sum(2) - 1
    # the nodes of a path in order, their own number standing for what is not on it
    ordered_MND = torch.where(on_path_MNN, nodes_N, num_nodes).sort(2).values
    return depths_MN, paths_MN, torch.where(ordered_MND == num_nodes, nodes_N[:, None], ordered_MND)
