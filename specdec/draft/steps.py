"""Rows for drafters that draft with a model, token by token."""

import torch
from torch import Tensor

from specdec.cache.rows import Rows
from specdec.draft.protocol import DraftView
from specdec.kernels.tree_attention import AttentionTables


def roots(view: DraftView) -> tuple[Tensor, Tensor]:
    """int64 [M] each: the root of every member's tree, and its position."""
    lengths_M = view.texts.lengths_S[view.slots_M]
    return view.texts.tokens_SL[view.slots_M, lengths_M - 1].long(), lengths_M - 1


def next_rows(view: DraftView, tokens_M: Tensor, positions_M: Tensor) -> Rows:
    """One row of each member, whose history is all that lies in its pages below. Behind the pages that a member holds, rows
    write where nobody reads.

    Args:
        view: the round.
        tokens_M, positions_M: int64.
    """
    size = view.page_size
    page_table_MP = view.texts.pages_SP[view.slots_M, : view.num_pages]
    places_M = positions_M.clamp(max=view.num_pages * size - 1)
    pages_M = page_table_MP.gather(1, places_M[:, None] // size)[:, 0]
    entries_M = torch.where(places_M == positions_M, pages_M * size + places_M % size, view.spare_entry)
    members_M = torch.arange(len(tokens_M), device=tokens_M.device)
    return Rows(
        tokens_R=tokens_M,
        positions_R=places_M,
        entries_R=entries_M,
        slots_M=view.slots_M,
        parents_T=members_M,
        attention=AttentionTables(
            page_table_MP=page_table_MP,
            sequences_R=members_M,
            positions_R=places_M,
            bases_M=places_M + 1,
            starts_M=places_M,
            ancestor_entries_TD=entries_M[:, None],
            num_chunk=0,
            chunk_sequences=0,
            tree_sequences=len(tokens_M),
            page_size=size,
        ),
    )
