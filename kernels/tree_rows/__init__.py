"""The rows that draft trees and prompt chunks bring to a forward pass: tokens, positions, cache entries, ancestors.

An entry is one position of the paged cache: page * page size + offset. A tree's spine (its leading nodes, while each is the
child of the one before) writes where its positions lie, so that accepting it moves nothing; other nodes write to scratch
entries. A tree has as many rows as it was given: rows behind its last node repeat that node and write where nobody reads.
So no shape depends on what was drafted, and topology is data.

Legend of shape suffixes: M members of a round, N nodes of a tree (the root counted), T tree rows of all members, C chunk rows,
D depths (= N), S texts in memory, L room of a text, P pages.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.kernels.linear import uses_triton
from specdec.kernels.tree_rows.reference import tree_rows_reference

__all__ = ["Layout", "Texts", "TreeRows", "chunk_rows", "tree_rows"]


@dataclass(frozen=True, slots=True)
class Texts:
    """What is known of all texts. tokens_SL: int32. lengths_S: int64. pages_SP: int64, the pages of each text's positions."""

    tokens_SL: Tensor
    lengths_S: Tensor
    pages_SP: Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Who brings which rows; int64 [M] but for trees_T.

    texts_M: of `Texts`. nodes_M: tree rows, 0 for none. firsts_M: the first of them. bases_M: position behind the chunk of a
    member without a tree; -1 with one, whose root is its text's last token. starts_M: position of the member's first row in
    this round; -1: its root. trees_T: the member of each tree row.
    """

    texts_M: Tensor
    nodes_M: Tensor
    firsts_M: Tensor
    bases_M: Tensor
    starts_M: Tensor
    trees_T: Tensor


@dataclass(frozen=True, slots=True)
class TreeRows:
    """Tree rows as tensors, int64.

    trees_T: the member. texts_T: the member's text. entries_T: where a row's key and value go. parents_T: the row above, a
    root its own. paths_T: bit i for the node i of the tree on the way to the row, both ends counted.
    ancestors_TD, ancestor_entries_TD: [t, d], the row at depth d on that way and its entry, t's own from its depth on.
    bases_M: position of each root, or the layout's own. starts_M: first position computed. page_table_MP.
    """

    tokens_T: Tensor
    positions_T: Tensor
    trees_T: Tensor
    texts_T: Tensor
    entries_T: Tensor
    parents_T: Tensor
    depths_T: Tensor
    paths_T: Tensor
    ancestors_TD: Tensor
    ancestor_entries_TD: Tensor
    bases_M: Tensor
    starts_M: Tensor
    page_table_MP: Tensor


def tree_rows(
    texts: Texts,
    layout: Layout,
    drafts: tuple[Tensor, Tensor, Tensor] | None,
    calls_1: Tensor,
    *,
    num_nodes: int,
    num_pages: int,
    page_size: int,
    spare_entry: int,
    scratch_entry: int,
) -> TreeRows:
    """Lay the trees of all members out.

    Args:
        texts: whose last tokens are the roots.
        layout: who brings what; rows of a member are neighbours, members in order.
        drafts: tokens_MN, parents_MN and counts_M of `specdec.kernels.tree_select.Trees`; None where trees are roots.
        calls_1: int64, counted up by one.
        num_nodes: N.
        num_pages: P, pages of the longest member.
        page_size: tokens per page.
        spare_entry: where rows write whose keys nobody reads.
        scratch_entry: the first of at least T entries that belong to no text.
    """
    assert texts.tokens_SL.dtype == torch.int32, texts.tokens_SL.dtype
    shape = {
        "num_nodes": num_nodes,
        "num_pages": num_pages,
        "page_size": page_size,
        "spare_entry": spare_entry,
        "scratch_entry": scratch_entry,
    }
    if uses_triton(texts.lengths_S.device):
        from specdec.kernels.tree_rows.kernel import tree_rows_triton

        return TreeRows(*tree_rows_triton(texts, layout, drafts, calls_1, **shape))
    return TreeRows(*tree_rows_reference(texts, layout, drafts, calls_1, **shape))


def chunk_rows(
    texts: Texts, texts_C: Tensor, positions_C: Tensor, count_1: Tensor, *, page_size: int, spare_entry: int
) -> tuple[Tensor, Tensor]:
    """Tokens and cache entries of prompt rows, int64 [C] each.

    Args:
        texts: where the tokens stand.
        texts_C, positions_C: int64, which token each row computes.
        count_1: int64; rows from there on are padding and write to the spare entry.
        page_size, spare_entry: see `tree_rows`.
    """
    tokens_C = texts.tokens_SL[texts_C, positions_C].long()
    entries_C = texts.pages_SP[texts_C, positions_C // page_size] * page_size + positions_C % page_size
    real_C = torch.arange(len(texts_C), device=texts_C.device) < count_1
    return tokens_C, torch.where(real_C, entries_C, spare_entry)
