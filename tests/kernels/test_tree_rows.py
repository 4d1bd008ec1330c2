"""The rows of trees and of prompt chunks, held to a layout by hand, row by row; and the kernel to the reference."""

from dataclasses import fields

import pytest
import torch

from specdec.draft.tree import DraftTree
from specdec.kernels.tree_rows import Layout, Texts, TreeRows, chunk_rows, tree_rows
from specdec.kernels.tree_rows.reference import tree_rows_reference
from tests.kernels.conftest import SCRATCH_ENTRY, SPARE_ENTRY, Forest, forest, moved, random_tree, same

kernel = pytest.importorskip("specdec.kernels.tree_rows.kernel")

BUSHY = DraftTree(torch.tensor([7, 1, 2, 3, 4, 5]).numpy(), torch.tensor([0, 0, 1, 1, 0, 4]).numpy())
FORESTS = {
    "roots": lambda: forest([DraftTree.root(3), DraftTree.root(4)], [1, 9]),
    "one chain": lambda: forest([DraftTree.chain(1, [2, 3, 4])], [6]),
    "no tree between trees": lambda: forest([BUSHY, None, DraftTree.chain(8, [1, 2])], [5, 12, 4], surplus=2),
    "a wider bucket": lambda: forest([BUSHY, DraftTree.root(1)], [3, 8], num_nodes=16),
    "random": lambda: forest([random_tree(n, n, b) for n, b in ((13, 3), (1, 1), (9, 9), (20, 2))], [30, 1, 17, 8], surplus=1),
    "the largest": lambda: forest([random_tree(64, 5, 7, 99), random_tree(63, 6, 1, 99)], [1, 1], num_nodes=64, page_size=16),
}


def lay_out(f: Forest) -> TreeRows:
    return tree_rows(f.texts, f.layout, f.drafts, torch.zeros(1, dtype=torch.int64), **f.shape)


def entry(f: Forest, member: int, node: int) -> int:
    """Where a node writes: its position while every node up to it is the child of the one before, else scratch."""
    tree = f.trees[member]
    assert tree is not None
    if tree.path(node) != list(range(node + 1)):
        return SCRATCH_ENTRY + int(f.layout.firsts_M[member]) + node
    text = int(f.layout.texts_M[member])
    position = int(f.texts.lengths_S[text]) - 1 + node
    return int(f.texts.pages_SP[text, position // f.page_size]) * f.page_size + position % f.page_size


@pytest.mark.parametrize("name", list(FORESTS))
def test_rows_are_those_laid_out_by_hand(name: str) -> None:
    f = FORESTS[name]()
    rows, row = lay_out(f), 0
    for member, tree in enumerate(f.trees):
        text, first = int(f.layout.texts_M[member]), row
        base = int(f.texts.lengths_S[text]) - 1 if tree is not None else int(f.layout.bases_M[member])
        assert int(rows.bases_M[member]) == base
        assert int(rows.starts_M[member]) == (base if tree is not None else int(f.layout.starts_M[member]))
        assert same(rows.page_table_MP[member], f.texts.pages_SP[text])
        for within in range(int(f.layout.nodes_M[member])):
            assert tree is not None
            node = min(within, len(tree) - 1)
            path = tree.path(node)
            ancestors = path + [node] * (f.num_nodes - len(path))
            assert int(rows.tokens_T[row]) == int(tree.tokens[node])
            assert int(rows.positions_T[row]) == base + len(path) - 1
            assert (int(rows.trees_T[row]), int(rows.texts_T[row])) == (member, text)
            assert int(rows.entries_T[row]) == (entry(f, member, node) if within == node else SPARE_ENTRY)
            assert int(rows.parents_T[row]) == first + int(tree.parents[node])
            assert int(rows.depths_T[row]) == len(path) - 1
            assert int(rows.paths_T[row]) % 2**64 == sum(1 << step for step in path)
            assert rows.ancestors_TD[row].tolist() == [first + step for step in ancestors]
            assert rows.ancestor_entries_TD[row].tolist() == [entry(f, member, step) for step in ancestors]
            row += 1
    assert row == len(rows.tokens_T)


def test_no_row_writes_where_another_writes_or_where_a_text_was_written() -> None:
    f = FORESTS["random"]()
    rows = lay_out(f)
    written = rows.entries_T[rows.entries_T != SPARE_ENTRY].tolist()
    assert len(set(written)) == len(written)
    for text, length in enumerate(f.texts.lengths_S.tolist()):
        places = torch.arange(max(length - 1, 0))
        old = f.texts.pages_SP[text, places // f.page_size] * f.page_size + places % f.page_size
        assert not set(old.tolist()) & set(written)


def test_without_drafts_every_row_is_its_root() -> None:
    f = forest([DraftTree.root(3), None, DraftTree.root(4)], [5, 6, 7], surplus=2)
    calls = torch.tensor([8])
    rows = tree_rows(f.texts, f.layout, None, calls, **f.shape)
    assert calls.item() == 9
    assert rows.tokens_T.tolist() == [3, 3, 3, 4, 4, 4]
    assert rows.depths_T.tolist() == [0] * 6
    assert rows.positions_T.tolist() == [4] * 3 + [6] * 3
    assert [place == SPARE_ENTRY for place in rows.entries_T.tolist()] == [False, True, True] * 2


@pytest.mark.parametrize("surplus", [0, 3])
def test_a_member_gets_the_same_rows_alone_and_with_rows_to_spare(surplus: int) -> None:
    f = forest([random_tree(n, n, 3) for n in (7, 1, 12)], [9, 3, 14], surplus=surplus)
    together = lay_out(f)
    for member, tree in enumerate(f.trees):
        assert tree is not None
        alone, first = lay_out(f.alone(member)), int(f.layout.firsts_M[member])
        own = slice(first, first + len(tree))
        for name in ("tokens_T", "positions_T", "texts_T", "depths_T", "paths_T"):
            assert torch.equal(getattr(together, name)[own], getattr(alone, name)), name
        for name in ("parents_T", "ancestors_TD"):
            assert torch.equal(getattr(together, name)[own] - first, getattr(alone, name)), name
        scratch = alone.ancestor_entries_TD >= SCRATCH_ENTRY
        assert torch.equal(together.ancestor_entries_TD[own] - first * scratch, alone.ancestor_entries_TD)


def test_prompt_rows_read_and_write_where_their_positions_lie_and_padding_writes_nowhere() -> None:
    f = FORESTS["random"]()
    texts_C, positions_C = torch.tensor([3, 3, 1, 1, 1]), torch.tensor([0, 7, 15, 16, 16])
    tokens, entries = chunk_rows(
        f.texts, texts_C, positions_C, torch.tensor([4]), page_size=f.page_size, spare_entry=SPARE_ENTRY
    )
    assert tokens.tolist() == [int(f.texts.tokens_SL[t, p]) for t, p in zip(texts_C, positions_C, strict=True)]
    own = [int(f.texts.pages_SP[t, p // 4]) * 4 + int(p) % 4 for t, p in zip(texts_C, positions_C, strict=True)]
    assert entries.tolist() == [*own[:4], SPARE_ENTRY]


def spare_members(f: Forest, count: int) -> tuple[Texts, Layout]:
    """The same round with members behind that bring nothing and share text 0."""

    def filled(values_M: torch.Tensor) -> torch.Tensor:
        return torch.cat((values_M, torch.zeros(count, dtype=torch.int64)))

    own = {field.name: getattr(f.layout, field.name) for field in fields(Layout)}
    return f.texts, Layout(**{name: values if name == "trees_T" else filled(values) for name, values in own.items()})


@pytest.mark.parametrize("drafted", [True, False])
@pytest.mark.parametrize("name", list(FORESTS))
def test_the_kernel_lays_out_as_the_reference_does(name: str, drafted: bool, kernel_device: torch.device) -> None:
    f = FORESTS[name]()
    texts, layout = spare_members(f, 2)
    drafts = None
    if drafted:
        drafts = tuple(torch.cat((values, values.new_zeros(2, *values.shape[1:]))) for values in f.drafts)
    calls = torch.tensor([4])
    expected = TreeRows(*tree_rows_reference(texts, layout, drafts, calls, **f.shape))  # type: ignore[arg-type]
    counted = torch.tensor([4], device=kernel_device)
    found = kernel.tree_rows_triton(*moved((texts, layout, drafts), kernel_device), counted, **f.shape)
    for field, values in zip(fields(TreeRows), found, strict=True):
        assert same(values, getattr(expected, field.name)), field.name
    assert counted.item() == calls.item() == 5
