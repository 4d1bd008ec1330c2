"""Rows of a round: slots, positions and ancestors of chunks and trees side by side."""

import numpy as np
import torch

from specdec.draft.tree import DraftTree
from specdec.round.batch import RowSpec, build_rows, spine_length

CPU = torch.device("cpu")


def tree_of(parents: list[int]) -> DraftTree:
    n = len(parents)
    zeros = np.zeros(n, np.int64)
    return DraftTree(100 + np.arange(n), np.array(parents), np.zeros(n), zeros, zeros)


def test_spine_is_the_leading_chain() -> None:
    assert spine_length(tree_of([0])) == 1
    assert spine_length(tree_of([0, 0, 1, 2])) == 4
    assert spine_length(tree_of([0, 0, 1, 1, 2])) == 3
    assert spine_length(tree_of([0, 0, 0])) == 2


def test_slots_follow_positions_on_the_spine_and_scratch_off_it() -> None:
    tree = tree_of([0, 0, 1, 0, 3])  # spine 0-1-2, branch 3-4
    spec = RowSpec(chunk=np.array([7, 8]), tree=tree, num_cached=3, pages=np.array([9, 2]), scratch=np.array([60, 61, 62]))
    other = RowSpec(chunk=np.array([5]), tree=None, num_cached=0, pages=np.array([4]), scratch=np.zeros(0, np.int64))
    rows = build_rows([spec, other], 4, CPU)
    assert rows.positions_R.tolist() == [3, 4, 5, 6, 7, 6, 7, 0]
    assert rows.slots_R.tolist() == [39, 8, 9, 10, 11, 60, 61, 16]
    assert rows.ancestor_slots_RD[4].tolist() == [9, 10, 11]
    assert rows.ancestor_slots_RD[6].tolist() == [9, 60, 61]
    assert rows.bases_S.tolist() == [5, 1]
    assert rows.sequences_R.tolist() == [0] * 7 + [1]
    assert rows.tree is not None
    assert rows.tree.rows_T.tolist() == [2, 3, 4, 5, 6]
    assert rows.tree.parents_T.tolist() == [0, 0, 1, 0, 3]
    assert rows.tree.ancestors_TD.tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 2], [0, 3, 3], [0, 3, 4]]


def test_trees_of_several_sequences_share_one_index_space() -> None:
    none = np.zeros(0, np.int64)
    specs = [
        RowSpec(chunk=none, tree=tree_of([0, 0]), num_cached=2, pages=np.array([1]), scratch=none),
        RowSpec(chunk=np.array([1]), tree=tree_of([0, 0, 1]), num_cached=0, pages=np.array([0]), scratch=none),
    ]
    tree = build_rows(specs, 16, CPU).tree
    assert tree is not None
    assert tree.roots_S.tolist() == [0, 2]
    assert tree.rows_T.tolist() == [0, 1, 3, 4, 5]
    assert tree.parents_T.tolist() == [0, 0, 2, 2, 3]
    assert tree.positions_T.tolist() == [2, 3, 1, 2, 3]
    assert tree.sequences_T.tolist() == [0, 0, 1, 1, 1]
