"""The rows of a round: prompt rows first, then trees, each finding its own history, whatever the bucket."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from specdec.draft.tree import DraftTree
from specdec.kernels.tree_attention.reference import history_entries
from specdec.kernels.tree_rows import Texts
from specdec.round.rows import Entries
from tests.specdec.conftest import plan_of, rows_of

PAGE = 4
ENTRIES = Entries(PAGE, spare=900, scratch=700)
BUSHY = DraftTree(np.array([0, 1, 2, 3, 4]), np.array([0, 0, 0, 1, 3]))
# of slot 0 a prompt goes on, of slot 1 it ends, slot 2 decodes
PLAN = plan_of([0, 1, 2], [(3, 6), (4, 5), (-1, 0)], [0, 1, 5], 5)
LENGTHS = [20, 10, 12, 1]


def texts() -> Texts:
    """Three slots and the spare one; the first token of a text names it."""
    tokens = torch.arange(4 * 40).view(4, 40).int()
    pages = torch.randperm(20, generator=torch.Generator().manual_seed(1)).view(4, 5)
    return Texts(tokens, torch.tensor(LENGTHS), pages)


def place(known: Texts, slot: int, position: int) -> int:
    return int(known.pages_SP[slot, position // PAGE]) * PAGE + position % PAGE


@pytest.mark.parametrize("bucket", [(3, 11, 6), (4, 16, 8)])
def test_every_row_sees_the_text_before_it_and_its_own_path(bucket: tuple[int, int, int]) -> None:
    known = texts()
    rows, trees = rows_of(known, PLAN, [None, None, BUSHY], ENTRIES, bucket)
    members, chunk, _ = bucket
    tables = rows.attention
    assert rows.num_rows == chunk + bucket[2]
    assert (rows.num_chunk, tables.num_chunk) == (chunk, chunk)
    assert (tables.chunk_sequences, tables.tree_sequences) == (2, 2)
    assert rows.slots_M.tolist() == [0, 1, 2] + [3] * (members - 3)
    expected = [(0, position) for position in range(3, 9)] + [(1, position) for position in range(4, 9)]
    for row, (slot, position) in enumerate(expected):
        assert int(rows.tokens_R[row]) == int(known.tokens_SL[slot, position])
        assert int(rows.positions_R[row]) == position
        assert int(rows.entries_R[row]) == place(known, slot, position)
        assert history_entries(tables, row).tolist() == [place(known, slot, p) for p in range(position + 1)]
    for row in range(len(expected), chunk):
        assert int(rows.entries_R[row]) == ENTRIES.spare
        assert (int(rows.tokens_R[row]), int(rows.positions_R[row])) == (int(rows.tokens_R[10]), 8)
    first = chunk + int(trees.trees_T.tolist().index(2))
    root = 11
    before = [place(known, 2, position) for position in range(root)]
    own = [place(known, 2, root), place(known, 2, root + 1), *(700 + first - chunk + node for node in (2, 3, 4))]
    for node in range(len(BUSHY)):
        path = BUSHY.path(node)
        assert history_entries(tables, first + node).tolist() == before + [own[step] for step in path]
        assert int(rows.positions_R[first + node]) == root + len(path) - 1
        assert int(rows.entries_R[first + node]) == own[node]
    assert rows.tokens_R[chunk].item() == known.tokens_SL[1, LENGTHS[1] - 1].item(), "the prompt's last token is a root"
    assert history_entries(tables, chunk).tolist() == [place(known, 1, position) for position in range(LENGTHS[1])]


def test_where_a_members_round_begins_is_told() -> None:
    rows, _ = rows_of(texts(), PLAN, [None, None, BUSHY], ENTRIES)
    assert rows.attention.starts_M.tolist() == [3, 4, 11]
    assert rows.attention.bases_M.tolist() == [9, 9, 11]


def test_without_prompts_there_are_tree_rows_alone_and_without_trees_prompt_rows() -> None:
    decoding = plan_of([2], [(-1, 0)], [5], 5)
    rows, trees = rows_of(texts(), decoding, [BUSHY], ENTRIES)
    assert rows.num_chunk == 0
    assert torch.equal(rows.entries_R, trees.entries_T)
    reading = plan_of([0], [(3, 6)], [0], 5)
    rows, trees = rows_of(texts(), reading, [None], ENTRIES)
    assert (rows.num_rows, len(trees.tokens_T)) == (6, 0)


def test_marks_are_those_of_the_plan() -> None:
    plan = plan_of([0, 1], [(0, 4), (0, 4)], [0, 0], 5)
    marked = replace(plan, marks=np.array([[4, -1], [2, 3]]), mark_slots=np.array([[2, 0], [1, 3]]))
    for told, wanted in ((plan, [[-1, -1], [-1, -1]]), (marked, [[4, -1], [2, 3]])):
        rows, _ = rows_of(texts(), told, [None, None], ENTRIES)
        assert rows.marks_MX is not None
        assert rows.mark_slots_MX is not None
        assert rows.marks_MX.tolist() == wanted
        slots = rows.mark_slots_MX.tolist()
    assert slots == [[2, 0], [1, 3]]
