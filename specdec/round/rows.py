"""The rows of a round, from its plan and its drafts."""

from dataclasses import dataclass, replace

import torch

from specdec.cache.rows import Rows
from specdec.kernels.commit import Verified
from specdec.kernels.tree_attention import AttentionTables
from specdec.kernels.tree_rows import Texts, TreeRows, chunk_rows, tree_rows
from specdec.kernels.tree_select import Trees
from specdec.round.plan import PlanTables, RoundShape


@dataclass(frozen=True, slots=True)
class Entries:
    """Where rows write. spare: for what nobody reads. scratch: the first of as many entries as a round has tree rows."""

    page_size: int
    spare: int
    scratch: int


def lay_out(
    texts: Texts, tables: PlanTables, shape: RoundShape, trees: Trees | None, turns_1: torch.Tensor, entries: Entries
) -> tuple[Rows, TreeRows]:
    """All rows of a round, and those of the trees by themselves.

    Args:
        texts: of all slots.
        tables, shape: the plan.
        trees: the drafts; None where trees are roots.
        turns_1: int64, counted up by one.
        entries: where rows write.
    """
    of_trees = tree_rows(
        texts,
        tables.layout,
        None if trees is None else (trees.tokens_MN, trees.parents_MN, trees.counts_M),
        turns_1,
        num_nodes=shape.nodes,
        num_pages=shape.pages,
        page_size=entries.page_size,
        spare_entry=entries.spare,
        scratch_entry=entries.scratch,
    )
    tokens, positions, places, members = (
        of_trees.tokens_T,
        of_trees.positions_T,
        of_trees.entries_T,
        of_trees.trees_T,
    )
    if shape.chunk:
        positions_C = tables.chunk_positions_C
        tokens_C, entries_C = chunk_rows(
            texts,
            tables.chunk_slots_C,
            positions_C,
            tables.count_1,
            page_size=entries.page_size,
            spare_entry=entries.spare,
        )
        tokens, places = torch.cat((tokens_C, tokens)), torch.cat((entries_C, places))
        positions, members = torch.cat((positions_C, positions)), torch.cat((tables.chunk_members_C, members))
    rows = Rows(
        tokens_R=tokens,
        positions_R=positions,
        entries_R=places,
        slots_M=tables.layout.texts_M,
        parents_T=of_trees.parents_T,
        attention=AttentionTables(
            page_table_MP=of_trees.page_table_MP,
            sequences_R=members,
            positions_R=positions,
            bases_M=of_trees.bases_M,
            starts_M=of_trees.starts_M,
            ancestor_entries_TD=of_trees.ancestor_entries_TD,
            num_chunk=shape.chunk,
            chunk_sequences=shape.chunk_members,
            tree_sequences=shape.tree_members,
            page_size=entries.page_size,
        ),
        marks_MX=tables.marks_MX,
        mark_slots_MX=tables.mark_slots_MX,
    )
    return rows, of_trees


def trim(tables: PlanTables, shape: RoundShape, verified: Verified) -> tuple[PlanTables, RoundShape, Verified]:
    """As many rows as there are nodes, for a device that computes when it is told to and knows the counts."""
    layout, trees = tables.layout, verified.trees
    nodes_M = torch.where(layout.nodes_M > 0, trees.counts_M + 1, 0)
    trees_T = torch.repeat_interleave(torch.arange(len(nodes_M), device=nodes_M.device), nodes_M)
    largest = max(int(nodes_M.max()), 1)
    trimmed = replace(layout, nodes_M=nodes_M, firsts_M=nodes_M.cumsum(0) - nodes_M, trees_T=trees_T)
    kept = Trees(
        trees.tokens_MN[:, :largest].contiguous(),
        trees.parents_MN[:, :largest].contiguous(),
        trees.picks_MN[:, :largest].contiguous(),
        trees.counts_M,
        trees.offers_M,
        trees.survivals_MO,
    )
    changed = tables.with_layout(trimmed)
    return changed, shape._replace(nodes=largest, trees=len(trees_T)), Verified(verified.candidates, kept)
