"""DraftTree: derived tables, cutting and merging."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.draft.tree import DraftTree, merge

PARENTS = st.integers(1, 12).flatmap(
    lambda n: st.tuples(st.just(0), *(st.integers(0, max(i - 1, 0)) for i in range(1, n))).map(list)
)


def tree_of(parents: list[int], tokens: list[int] | None = None) -> DraftTree:
    n = len(parents)
    zeros = np.zeros(n, np.int64)
    return DraftTree(np.array(tokens or range(n)), np.array(parents), np.zeros(n), zeros, zeros)


def path_to(tree: DraftTree, node: int) -> list[int]:
    path = [node]
    while path[0]:
        path.insert(0, int(tree.parents[path[0]]))
    return path


@given(PARENTS)
def test_depths_and_ancestors_follow_the_parents(parents: list[int]) -> None:
    tree = tree_of(parents)
    tree.check()
    width = int(tree.depths().max()) + 1
    for node in range(len(tree)):
        path = path_to(tree, node)
        assert tree.depths()[node] == len(path) - 1
        assert tree.ancestors()[node].tolist() == path + [node] * (width - len(path))


@given(PARENTS, st.data())
def test_select_keeps_paths(parents: list[int], data: st.DataObject) -> None:
    tree = tree_of(parents)
    keep = np.array([True, *(data.draw(st.booleans()) for _ in parents[1:])])
    for node, parent in enumerate(parents):
        keep[node] &= keep[parent]
    cut = tree.select(keep)
    cut.check()
    for new, old in enumerate(np.flatnonzero(keep)):
        assert cut.tokens[path_to(cut, new)].tolist() == tree.tokens[path_to(tree, int(old))].tolist()


def test_merge_shares_common_paths_and_keeps_the_first_values() -> None:
    first = DraftTree.chain(1, [2, 3, 4], source=0, log_q=np.array([-0.1, -0.2, -0.3]))
    second = DraftTree.chain(1, [2, 9], source=1, log_q=np.array([-5.0, -6.0]))
    both = merge([first, second])
    both.check()
    assert both.tokens.tolist() == [1, 2, 3, 4, 9]
    assert both.parents.tolist() == [0, 0, 1, 2, 1]
    assert both.sources.tolist() == [-1, 0, 0, 0, 1]
    assert both.log_q.tolist() == [0.0, -0.1, -0.2, -0.3, -6.0]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (tree_of([0, 2, 1]), "parents first"),
        (tree_of([0, 0, 0], tokens=[1, 5, 5]), "different tokens"),
        (DraftTree.chain(1, [2], 0, log_q=np.array([0.5])), "at most 0"),
    ],
)
def test_check_names_what_is_broken(tree: DraftTree, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        tree.check()


def test_chain_is_a_chain() -> None:
    assert DraftTree.chain(1, [2, 3], 0).is_chain()
    assert DraftTree.root(1).is_chain()
    assert not tree_of([0, 0, 0]).is_chain()
