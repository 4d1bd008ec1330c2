"""The walk down draft trees, held to a walk by hand; and the kernel to the reference."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specdec.draft.tree import DraftTree
from specdec.kernels.tree_walk import Accepted, walk_trees
from specdec.kernels.tree_walk.reference import walk_trees_reference
from tests.kernels.conftest import Forest, forest, moved, random_tree, same

kernel = pytest.importorskip("specdec.kernels.tree_walk.kernel")

TREES: list[list[DraftTree | None]] = [
    [DraftTree.root(3)],
    [DraftTree.chain(1, [2, 3, 4]), None, DraftTree.root(5)],
    [random_tree(n, n + b, b) for n, b in ((13, 3), (1, 1), (9, 9), (20, 2), (30, 5))],
    [random_tree(64, 1, 1, 99), None, random_tree(64, 2, 3, 99), random_tree(50, 3, 64, 99)],
]


def by_hand(tree: DraftTree, chosen: list[int]) -> tuple[list[int], list[int]]:
    """The nodes that are kept, root first, and the tokens that are emitted."""
    node, path, emitted = 0, [0], [chosen[0]]
    while True:
        children = [child for child in range(1, len(tree)) if tree.parents[child] == node and tree.tokens[child] == emitted[-1]]
        if not children:
            return path, emitted
        node = children[0]
        path.append(node)
        emitted.append(chosen[node])


def drawn(f: Forest, seed: int, agreement: float = 0.8) -> Tensor:
    """What the target might draw after each row: often the token of one of its children. Rows that repeat a node draw what
    would lead on if anyone asked them."""
    generator = torch.Generator().manual_seed(seed)
    rows = f.rows()
    chosen = torch.randint(0, 100, (len(rows.tokens_T),), generator=generator)
    for row in torch.randperm(len(chosen), generator=generator).tolist():
        if torch.rand(1, generator=generator) < agreement and rows.depths_T[row]:
            chosen[rows.parents_T[row]] = rows.tokens_T[row]
    repeats = rows.ancestors_TD[:, -1] != torch.arange(len(chosen))
    return torch.where(repeats, rows.tokens_T, chosen)


def walk(f: Forest, chosen: Tensor, tops: Tensor | None = None, settled: Tensor | None = None) -> Accepted:
    tops = torch.zeros(len(chosen)) if tops is None else tops
    return walk_trees(f.rows(), f.layout.nodes_M, f.layout.firsts_M, chosen, tops, settled)


@given(st.integers(0, 10**6), st.sampled_from(TREES), st.integers(0, 2), st.sampled_from([0.0, 0.5, 0.8, 1.0]))
@settings(max_examples=60, deadline=None)
def test_what_is_kept_and_emitted_is_that_of_a_walk_by_hand(
    seed: int, trees: list[DraftTree | None], surplus: int, agreement: float
) -> None:
    surplus = 0 if max(len(tree) for tree in trees if tree is not None) == 64 else surplus
    f = forest(trees, [3] * len(trees), surplus=surplus, page_size=16)
    chosen = drawn(f, seed, agreement)
    accepted = walk(f, chosen)
    for member, tree in enumerate(trees):
        if tree is None:
            assert accepted.emitted_MD[member].tolist() == [-1] * f.num_nodes
            continue
        first = int(f.layout.firsts_M[member])
        path, emitted = by_hand(tree, chosen[first : first + len(tree)].tolist())
        rest = f.num_nodes - len(path)
        assert int(accepted.num_M[member]) == len(path) - 1
        assert accepted.rows_MD[member].tolist() == [first + node for node in path] + [first + path[-1]] * rest
        assert accepted.emitted_MD[member].tolist() == emitted + [-1] * rest
    assert accepted.sound_M.all()


def test_only_kept_rows_decide_whether_a_tree_is_sound() -> None:
    f = forest([DraftTree.chain(1, [2, 3, 4]) for _ in range(6)], [5] * 6, surplus=1)
    chosen = torch.tensor([2, 3, 9, 0, 0]).repeat(6)  # two of three drafts are kept
    tops, settled = torch.zeros(30), torch.ones(30, dtype=torch.bool)
    tops[0 + 2], tops[5 + 0], tops[10 + 3], tops[10 + 4] = torch.nan, torch.inf, torch.nan, torch.nan
    settled[15 + 1] = settled[20 + 3] = settled[20 + 4] = False
    assert walk(f, chosen, tops, settled).sound_M.tolist() == [False, False, True, False, True, True]
    assert walk(f, chosen, tops).sound_M.tolist() == [False, False, True, True, True, True]
    tops[25] = -torch.inf
    assert not walk(f, chosen, tops).sound_M[5], "no token was left"


@pytest.mark.parametrize("number", range(len(TREES)))
def test_the_kernel_walks_as_the_reference_does(number: int, kernel_device: torch.device) -> None:
    trees = TREES[number]
    for seed in range(6):
        f = forest(trees, [3] * len(trees), surplus=seed % 2 if number < 3 else 0, page_size=16)
        rows, chosen = f.rows(), drawn(f, seed)
        generator = torch.Generator().manual_seed(seed)
        tops = torch.randn(len(chosen), generator=generator)
        for value in (torch.nan, torch.inf, -torch.inf):
            tops[torch.rand(len(chosen), generator=generator) < 0.05] = value
        settled = torch.rand(len(chosen), generator=generator) < 0.9 if seed % 3 else None
        arguments = rows, f.layout.nodes_M, f.layout.firsts_M, chosen, tops, settled
        expected = walk_trees_reference(*arguments)
        found = kernel.walk_trees_triton(*moved(arguments, kernel_device))
        has_tree = f.layout.nodes_M > 0
        for field, mine, theirs in zip(fields(Accepted)[:4], found, expected, strict=True):
            assert same(mine.cpu()[has_tree], theirs[has_tree]), field.name
        assert (found[2].cpu()[~has_tree] == -1).all()
        assert ((found[1] >= 0) & (found[1] < len(chosen))).all(), "void rows can be read"
