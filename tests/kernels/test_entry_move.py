"""Accepted rows end where their positions lie, in every layer, and nothing else moves; and the kernel does as the reference."""

import pytest
import torch
from torch import Tensor

from specdec.draft.tree import DraftTree
from specdec.kernels.entry_move import accepted_moves, move_accepted
from specdec.kernels.entry_move.reference import move_accepted_reference
from specdec.kernels.tree_rows import TreeRows
from specdec.kernels.tree_walk import Accepted
from tests.kernels.conftest import SPARE_ENTRY, Forest, forest, moved, random_tree, same

kernel = pytest.importorskip("specdec.kernels.entry_move.kernel")

PAGE, LAYERS, HEADS, DIM = 4, 4, 2, 3
BUSHY = DraftTree(torch.tensor([7, 1, 2, 3, 4, 5]).numpy(), torch.tensor([0, 0, 1, 1, 3, 0]).numpy())
TREES: list[DraftTree | None] = [
    BUSHY,
    None,
    DraftTree.chain(1, [2, 3, 4, 5]),
    random_tree(12, 3, 4),
    random_tree(12, 4, 2),
    BUSHY,
]
LENGTHS = [6, 9, 3, 8, 12, 5]
UNSOUND = 5


def store(dtype: torch.dtype = torch.float32) -> Tensor:
    """Pages enough for every entry that a forest names."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(LAYERS, SPARE_ENTRY // PAGE + 1, HEADS, PAGE, DIM, generator=generator).to(dtype)


def entries(store: Tensor) -> Tensor:
    """[layers, entries, heads, dim]."""
    return store.transpose(2, 3).reshape(LAYERS, -1, HEADS, DIM)


def accepted(f: Forest, rows: TreeRows, seed: int) -> tuple[Accepted, list[list[int]]]:
    """A path of each tree, to a node drawn at random; and its rows by depth."""
    generator = torch.Generator().manual_seed(seed)
    paths = []
    for member, tree in enumerate(f.trees):
        size = len(tree) if tree is not None else 1
        node = int(torch.randint(0, size, (1,), generator=generator))
        first = int(f.layout.firsts_M[member])
        paths.append([first + step for step in tree.path(node)] if tree is not None else [0])
    kept = torch.tensor([path + [path[-1]] * (f.num_nodes - len(path)) for path in paths])
    sound = torch.arange(len(paths)) != UNSOUND
    return Accepted(torch.tensor([len(path) - 1 for path in paths]), kept, torch.zeros_like(kept), sound, torch.zeros(0)), paths


@pytest.mark.parametrize("seed", range(5))
def test_a_path_is_found_by_position_and_nothing_else_moves(seed: int) -> None:
    f = forest(TREES, LENGTHS, surplus=1, page_size=PAGE)
    rows, before = f.rows(), store()
    kept, paths = accepted(f, rows, seed)
    after = before.clone()
    move_accepted(after, rows, kept, f.layout.nodes_M)
    old, new = entries(before), entries(after)
    touched = []
    for member, path in enumerate(paths):
        if f.trees[member] is None or member == UNSOUND:
            continue
        text = int(f.layout.texts_M[member])
        for depth, row in enumerate(path):
            position = LENGTHS[member] - 1 + depth
            place = int(f.texts.pages_SP[text, position // PAGE]) * PAGE + position % PAGE
            assert torch.equal(new[:, place], old[:, rows.entries_T[row]])
            touched.append(place)
    rest = torch.ones(old.shape[1], dtype=torch.bool)
    rest[touched] = False
    assert torch.equal(new[:, rest], old[:, rest])


def test_what_was_drafted_along_the_spine_costs_nothing() -> None:
    f = forest(TREES, LENGTHS, page_size=PAGE)
    rows = f.rows()
    kept, paths = accepted(f, rows, 1)
    moves, sources, targets = accepted_moves(rows, kept, f.layout.nodes_M, PAGE)
    for member, tree in enumerate(f.trees):
        off_spine = [
            depth
            for depth, row in enumerate(paths[member])
            if tree is not None and member != UNSOUND and row - int(f.layout.firsts_M[member]) != depth
        ]
        assert moves[member].nonzero()[:, 0].tolist() == off_spine
    assert not (sources == targets)[moves].any()
    assert not moves[2].any(), "a chain is its spine"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_kernel_moves_as_the_reference_does(dtype: torch.dtype, kernel_device: torch.device) -> None:
    moves = 0
    for seed in range(4):
        f = forest(TREES, LENGTHS, surplus=seed % 2, page_size=PAGE)
        rows = f.rows()
        kept, _ = accepted(f, rows, seed)
        mine, theirs = store(dtype).to(kernel_device), store(dtype)
        move_accepted_reference(theirs, rows, kept, f.layout.nodes_M)
        kernel.move_accepted_triton(mine, *moved((rows, kept, f.layout.nodes_M), kernel_device))
        assert same(mine, theirs)
        moves += not same(mine, store(dtype))
    assert moves
