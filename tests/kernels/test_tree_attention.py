"""The tile path and the kernel against the reference, and a row's bits against the same row decoded alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from specdec.draft.tree import DraftTree
from specdec.kernels.tree_attention import AttentionTables, tree_attention, tree_attention_reference
from specdec.kernels.tree_attention.plans import Plan
from specdec.kernels.tree_attention.reference import history_entries
from tests.kernels.conftest import SPARE_ENTRY, Forest, forest, random_tree

if not torch.cuda.is_available():
    kernel = pytest.importorskip("specdec.kernels.tree_attention.kernel")

PAGE = 16
Chunks = Mapping[int, tuple[int, int]]  # of members: the first position that is read, and how many


@dataclass
class Cache:
    """One layer's pages."""

    keys: Tensor
    values: Tensor

    @staticmethod
    def random(num_kv_heads: int, head_dim: int, page_size: int = PAGE, dtype: torch.dtype = torch.float32) -> "Cache":
        generator = torch.Generator().manual_seed(7)
        shape = (SPARE_ENTRY // page_size + 1, num_kv_heads, page_size, head_dim)
        return Cache(*(torch.randn(shape, generator=generator).to(dtype) for _ in range(2)))

    def put(self, entries: Tensor, keys_NKD: Tensor, values_NKD: Tensor) -> None:
        page = self.keys.shape[2]
        self.keys[entries // page, :, entries % page] = keys_NKD
        self.values[entries // page, :, entries % page] = values_NKD

    def forget(self, seen: Tensor) -> None:
        """NaN wherever nobody may look."""
        page = self.keys.shape[2]
        hidden = torch.ones(self.keys.shape[0] * page, dtype=torch.bool)
        hidden[seen] = False
        for pages in (self.keys, self.values):
            pages[hidden.view(-1, page)[:, None].expand(-1, pages.shape[1], -1)] = torch.nan


def tables_of(f: Forest, chunks: Chunks | None = None) -> AttentionTables:
    """Of the trees, and of prompt rows before them."""
    rows, chunks = f.rows(), chunks or {}
    readers = torch.tensor([member for member, (_, count) in sorted(chunks.items()) for _ in range(count)], dtype=torch.int64)
    places = [torch.arange(first, first + count) for _, (first, count) in sorted(chunks.items())]
    starts = rows.starts_M.clone()
    for member, (first, _) in chunks.items():
        starts[member] = first
    return AttentionTables(
        page_table_MP=rows.page_table_MP,
        sequences_R=torch.cat((readers, rows.trees_T)),
        positions_R=torch.cat((*places, rows.positions_T)),
        bases_M=rows.bases_M,
        starts_M=starts,
        ancestor_entries_TD=rows.ancestor_entries_TD,
        num_chunk=len(readers),
        chunk_sequences=len(chunks),
        tree_sequences=int((f.layout.nodes_M > 0).sum()),
        page_size=f.page_size,
    )


def queries(tables: AttentionTables, heads: int, head_dim: int, seed: int = 1) -> Tensor:
    return torch.randn(len(tables.positions_R), heads, head_dim, generator=torch.Generator().manual_seed(seed))


def attend(cache: Cache, tables: AttentionTables, q: Tensor, **options: Any) -> Tensor:
    return tree_attention(q, cache.keys, cache.values, tables, scale=0.2, **options)


def in_a_row(f: Forest, first_page: int = 3, gap: int = 1) -> Forest:
    """The same with the pages of a text `gap` apart."""
    count = f.texts.pages_SP.shape[1]
    pages = first_page + gap * torch.arange(len(f.texts.pages_SP) * count).view(-1, count)
    return replace(f, texts=replace(f.texts, pages_SP=pages))


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 64), (4, 4, 80), (8, 1, 16), (2, 2, 96)])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (20, None), (None, 5.0)])
def test_equals_the_reference(heads: int, kv_heads: int, head_dim: int, window: int | None, softcap: float | None) -> None:
    cache = Cache.random(kv_heads, head_dim)
    trees = [random_tree(13, 1, 4), DraftTree.root(1), None, DraftTree.chain(1, [2, 3, 4]), random_tree(9, 2, 9)]
    scattered = forest(trees, [30, 1, 35, 36, 17], surplus=2, page_size=PAGE)
    for f in (scattered, in_a_row(scattered)):
        tables = tables_of(f, {2: (5, 30), 3: (17, 18)})
        q = queries(tables, heads, head_dim)
        expected = tree_attention_reference(q, cache.keys, cache.values, tables, scale=0.2, window=window, softcap=softcap)
        got = attend(cache, tables, q, window=window, softcap=softcap)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("base", [0, 1, 14, 15, 16, 17, 31, 32, 47])
@pytest.mark.parametrize("bushiness", [1, 3, 12])
def test_a_row_of_a_tree_has_the_bits_it_has_alone(base: int, bushiness: int) -> None:
    tree = random_tree(24, seed=base, bushiness=bushiness)
    cache = Cache.random(num_kv_heads=3, head_dim=64)
    f = forest([tree], [base + 1], page_size=PAGE, surplus=2)
    rows, tables = f.rows(), tables_of(f)
    generator = torch.Generator().manual_seed(base)
    q, k, v = (torch.randn(len(rows.tokens_T), heads, 64, generator=generator) for heads in (9, 3, 3))
    q[len(tree) :] = q[len(tree) - 1]
    cache.put(rows.entries_T, k, v)
    together = attend(cache, tables, q)
    for node in range(len(tree)):
        path = tree.path(node)
        one = forest([DraftTree.root(0)], [base + len(path)], page_size=PAGE)
        one = replace(one, texts=replace(one.texts, pages_SP=f.texts.pages_SP))
        alone = Cache(cache.keys.clone(), cache.values.clone())
        places = base + torch.arange(len(path))
        alone.put(f.texts.pages_SP[1][places // PAGE] * PAGE + places % PAGE, k[path], v[path])
        assert torch.equal(attend(alone, tables_of(one), q[node : node + 1])[0], together[node]), f"node {node}"
    assert torch.equal(together[len(tree) :], together[len(tree) - 1].expand(2, -1, -1)), "rows that repeat the last node"


def chunk_tables(first: int, count: int, page_size: int = PAGE) -> AttentionTables:
    """Of one sequence that reads its prompt."""
    f = forest([None], [first + count], page_size=page_size)
    pages = torch.tensor([[0] * 16, [3, 1, 4, 2, *range(5, 17)]])
    return tables_of(replace(f, texts=replace(f.texts, pages_SP=pages)), {0: (first, count)})


def test_a_prompt_has_the_same_bits_in_chunks_of_any_size() -> None:
    cache, length = Cache.random(num_kv_heads=2, head_dim=32), 75
    tables = chunk_tables(0, length)
    q = queries(tables, 4, 32, 3)
    whole = attend(cache, tables, q)
    for size in (1, 7, 16, 33):
        firsts = range(0, length, size)
        parts = [attend(cache, chunk_tables(i, min(size, length - i)), q[i : i + size]) for i in firsts]
        assert torch.equal(torch.cat(parts), whole), f"chunks of {size}"


def test_blocks_of_rows_and_scattered_pages_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache.random(num_kv_heads=2, head_dim=32)
    f = in_a_row(forest([random_tree(20, 2, 5)], [57], page_size=PAGE))
    tables = tables_of(f, {0: (6, 50)})
    q = queries(tables, 4, 32, 3)
    whole = attend(cache, tables, q)
    monkeypatch.setattr("specdec.kernels.tree_attention.tiles.MAX_SCORES", 1)
    assert torch.equal(attend(cache, tables_of(f, {0: (6, 50)}), q), whole)
    monkeypatch.undo()
    moved = Cache(cache.keys.clone(), cache.values.clone())
    scattered = in_a_row(f, first_page=1, gap=3)
    for old, new in zip(f.texts.pages_SP[1].tolist(), scattered.texts.pages_SP[1].tolist(), strict=True):
        moved.keys[new], moved.values[new] = cache.keys[old], cache.values[old]
    assert torch.equal(attend(moved, tables_of(scattered, {0: (6, 50)}), q), whole)


def test_rows_behind_those_of_the_tables_are_zero() -> None:
    cache = Cache.random(num_kv_heads=1, head_dim=16)
    out = attend(cache, tables_of(forest([DraftTree.root(0)], [4], page_size=PAGE)), torch.ones(4, 1, 16))
    assert out[0].any()
    assert not out[1:].any()


def error(out: Tensor, reference: Tensor) -> float:
    return float((out.double() - reference.double()).norm() / reference.double().norm())


def hold_kernel_to_the_reference(tables: AttentionTables, plan: Any, window: int | None, softcap: float | None) -> None:
    """In the interpreter. Whatever no row may see is NaN."""
    heads, kv_heads, head_dim = 6, 2, 20
    tables = replace(tables, page_table_MP=tables.page_table_MP[:, :5].contiguous())
    cache = Cache.random(kv_heads, head_dim, 64, torch.float16)
    seen = torch.cat([history_entries(tables, row) for row in range(len(tables.positions_R))])
    options: dict[str, Any] = {"scale": head_dim**-0.5, "window": window, "softcap": softcap}
    q = queries(tables, heads, head_dim).half()
    expected = tree_attention_reference(q, cache.keys, cache.values, tables, **options)
    cache.forget(seen)
    out = kernel.tree_attention_triton(q, cache.keys, cache.values, tables, **options, plan=plan)
    assert error(out, expected) < 1e-2


PLANS = {
    "row": (1, 1, 1, False),
    "fused row": (1, 1, 1, True),
    "row, tiles in pairs": (1, 1, 1, False, True),
    "row, splits shared": (1, 1, 1, False, False, 4),
    "rows": (4, 1, 1, False),
    "fused rows": (4, 1, 1, True),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (70, 5.0)])
def test_the_kernel_attends_over_chunks_and_trees(
    plan: tuple[Any, ...], window: int | None, softcap: float | None, triton_interpreter: None
) -> None:
    bushy = DraftTree(np.arange(7), np.array([0, 0, 0, 1, 3, 4, 4]))
    f = forest([bushy, DraftTree.root(3), None], [259, 65, 67], surplus=1, page_size=64)
    tables = tables_of(f, {0: (253, 5), 2: (63, 4)})
    hold_kernel_to_the_reference(tables, Plan(*plan), window, softcap)


@pytest.mark.parametrize("start", [0, 100])
def test_the_kernel_never_reads_behind_a_chunks_last_key(start: int, triton_interpreter: None) -> None:
    hold_kernel_to_the_reference(chunk_tables(start, 40, 64), Plan(8, 1, 1, True), None, None)


@pytest.mark.parametrize(
    ("plan", "window"),
    [
        (None, None),
        ((1, 1, 1, False, True), None),
        ((1, 1, 1, False, False, 2), None),
        ((4, 1, 1, False), None),
        ((8, 1, 1, True), None),
        ((4, 1, 1, True), 70),
    ],
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_cannot_be_computed_reaches_only_those_who_see_it(
    plan: tuple[Any, ...] | None, window: int | None, value: float, triton_interpreter: None
) -> None:
    """A program's rows belong to several sequences, stand before and behind the bad key, or on other branches."""
    bushy = DraftTree(np.arange(4), np.array([0, 0, 0, 1]))
    f = forest([bushy, DraftTree.root(3), None, None], [130, 65, 71, 67], page_size=64)
    tables = tables_of(f, {0: (125, 4), 2: (66, 5), 3: (64, 3)})
    tables = replace(tables, page_table_MP=tables.page_table_MP[:, :3].contiguous())
    cache = Cache.random(1, 16, 64, torch.float16)
    q = queries(tables, 2, 16).half()
    chosen = Plan(*plan) if plan is not None else None
    histories = [history_entries(tables, row)[-(window or 999) :] for row in range(len(q))]

    def attended(keys: Tensor, values: Tensor) -> Tensor:
        found: Tensor = kernel.tree_attention_triton(q, keys, values, tables, scale=0.25, window=window, plan=chosen)
        return found

    whole = attended(cache.keys, cache.values)
    for row in (2, 5, tables.num_chunk + 1):  # of the first prompt, of the second, of a tree off its spine
        entry = int(histories[row][-1])
        spoilt = Cache(cache.keys.clone(), cache.values.clone())
        for pages in (spoilt.keys, spoilt.values) if value != value else (spoilt.values,):
            pages[entry // 64, :, entry % 64] = value
        found = attended(spoilt.keys, spoilt.values)
        sees = torch.tensor([bool((history == entry).any()) for history in histories])
        assert not found[sees].isfinite().any()
        assert torch.equal(found[~sees], whole[~sees])
