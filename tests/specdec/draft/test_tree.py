"""DraftTree: derived tables, and what its check finds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.draft.tree import DraftTree

PARENTS = st.integers(1, 12).flatmap(
    lambda n: st.tuples(st.just(0), *(st.integers(0, max(i - 1, 0)) for i in range(1, n))).map(list)
)


def tree_of(parents: list[int], tokens: list[int] | None = None) -> DraftTree:
    return DraftTree(np.array(tokens or range(len(parents))), np.array(parents))


@given(PARENTS)
def test_depths_and_paths_follow_the_parents(parents: list[int]) -> None:
    tree = tree_of(parents)
    tree.check()
    for node in range(len(tree)):
        path = tree.path(node)
        assert (path[0], path[-1]) == (0, node)
        assert [parents[step] for step in path[1:]] == path[:-1]
        assert tree.depths()[node] == len(path) - 1


def test_a_chain_is_one_path() -> None:
    chain = DraftTree.chain(1, [2, 3])
    chain.check()
    assert chain.tokens.tolist() == [1, 2, 3]
    assert chain.path(2) == [0, 1, 2]
    assert DraftTree.chain(1, []).tokens.tolist() == DraftTree.root(1).tokens.tolist() == [1]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (tree_of([0, 2, 1]), "parents first"),
        (tree_of([0, -1]), "parents first"),
        (tree_of([1, 0]), "its own parent"),
        (tree_of([0, 0, 0], tokens=[1, 5, 5]), "different tokens"),
        (DraftTree(np.arange(2), np.zeros(1, np.int64)), "one length"),
        (DraftTree(np.zeros(0, np.int64), np.zeros(0, np.int64)), "a root"),
    ],
)
def test_check_names_what_is_broken(tree: DraftTree, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        tree.check()
