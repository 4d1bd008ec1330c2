"""The tile path against the reference, and a row's bits against the same row decoded alone."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from specdec.draft.tree import DraftTree
from specdec.kernels.tree_attention import tree_attention, tree_attention_reference
from specdec.round.batch import RoundRows, RowSpec, build_rows
from specdec.round.runner import tile_plans

PAGE = 16
NUM_PAGES = 40
CPU = torch.device("cpu")


@dataclass
class Cache:
    """One layer's pages, and the keys and values of one sequence by position."""

    keys: Tensor
    values: Tensor

    @staticmethod
    def random(num_kv_heads: int, head_dim: int) -> "Cache":
        generator = torch.Generator().manual_seed(7)
        shape = (NUM_PAGES, num_kv_heads, PAGE, head_dim)
        return Cache(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))

    def put(self, entries: Tensor, keys_NKD: Tensor, values_NKD: Tensor) -> None:
        self.keys[entries // PAGE, :, entries % PAGE] = keys_NKD
        self.values[entries // PAGE, :, entries % PAGE] = values_NKD


def attend(cache: Cache, rows: RoundRows, q: Tensor, window: int | None = None, softcap: float | None = None) -> Tensor:
    plans = tile_plans(rows, PAGE)
    return tree_attention(q, cache.keys, cache.values, plans, scale=0.2, window=window, softcap=softcap)


def expected(cache: Cache, rows: RoundRows, q: Tensor, window: int | None = None, softcap: float | None = None) -> Tensor:
    return tree_attention_reference(
        q,
        cache.keys,
        cache.values,
        page_table_SP=rows.page_table_SP,
        sequences_R=rows.sequences_R,
        positions_R=rows.positions_R,
        bases_S=rows.bases_S,
        starts_S=rows.starts_S,
        ancestor_entries_RD=rows.ancestor_entries_RD,
        scale=0.2,
        window=window,
        softcap=softcap,
    )


def random_tree(num_nodes: int, seed: int, bushiness: int) -> DraftTree:
    """Parents among the last `bushiness` nodes, so that 1 gives a chain."""
    rng = np.random.default_rng(seed)
    parents = np.array([0, *(rng.integers(max(0, i - bushiness), i) for i in range(1, num_nodes))])
    zeros = np.zeros(num_nodes, np.int64)
    return DraftTree(np.arange(num_nodes), parents, np.zeros(num_nodes), zeros, zeros)


def spec(tree: DraftTree | None, num_cached: int, chunk: int = 0, first_page: int = 3, gap: int = 1) -> RowSpec:
    """A sequence whose pages are `gap` apart; scratch lies in the pages from 32 on."""
    nodes = len(tree) if tree is not None else 0
    count = (num_cached + chunk + nodes) // PAGE + 1
    pages = first_page + gap * np.arange(count)
    return RowSpec(
        chunk=np.arange(chunk), tree=tree, num_cached=num_cached, pages=pages, scratch=np.arange(32 * PAGE, 40 * PAGE)
    )


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 64), (4, 4, 80), (8, 1, 16), (2, 2, 96)])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (20, None), (None, 5.0)])
def test_equals_the_reference(heads: int, kv_heads: int, head_dim: int, window: int | None, softcap: float | None) -> None:
    cache = Cache.random(kv_heads, head_dim)
    specs = [
        spec(random_tree(13, 1, 4), num_cached=29),
        spec(DraftTree.root(1), num_cached=0, first_page=8),
        spec(None, num_cached=5, chunk=30, first_page=10, gap=2),
        spec(DraftTree.chain(1, [2, 3, 4], 0), num_cached=17, chunk=18, first_page=18),
    ]
    rows = build_rows(specs, PAGE, CPU)
    q = torch.randn(rows.num_rows, heads, head_dim, generator=torch.Generator().manual_seed(1))
    got = attend(cache, rows, q, window, softcap)
    torch.testing.assert_close(got, expected(cache, rows, q, window, softcap), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("base", [0, 1, 14, 15, 16, 17, 31, 32, 47])
@pytest.mark.parametrize("bushiness", [1, 3, 12])
def test_a_row_of_a_tree_has_the_bits_it_has_alone(base: int, bushiness: int) -> None:
    tree = random_tree(24, seed=base, bushiness=bushiness)
    cache = Cache.random(num_kv_heads=3, head_dim=64)
    rows = build_rows([spec(tree, num_cached=base)], PAGE, CPU)
    generator = torch.Generator().manual_seed(base)
    q, k, v = (torch.randn(len(tree), heads, 64, generator=generator) for heads in (9, 3, 3))
    cache.put(rows.entries_R, k, v)
    together = attend(cache, rows, q)
    for node, path in enumerate(tree.ancestors()):
        path = path[: int(tree.depths()[node]) + 1]
        alone = Cache(cache.keys.clone(), cache.values.clone())
        one = build_rows([spec(DraftTree.root(0), num_cached=base + len(path) - 1)], PAGE, CPU)
        pages = torch.from_numpy(spec(None, base, len(path)).pages)
        places = base + torch.arange(len(path))
        alone.put(pages[places // PAGE] * PAGE + places % PAGE, k[path], v[path])
        assert torch.equal(attend(alone, one, q[node : node + 1])[0], together[node]), f"node {node}"


def test_a_prompt_has_the_same_bits_in_chunks_of_any_size() -> None:
    cache = Cache.random(num_kv_heads=2, head_dim=32)
    length = 75
    q = torch.randn(length, 4, 32, generator=torch.Generator().manual_seed(3))
    whole = attend(cache, build_rows([spec(None, 0, length)], PAGE, CPU), q)
    for size in (1, 7, 16, 33):
        parts = [
            attend(cache, build_rows([spec(None, start, min(size, length - start))], PAGE, CPU), q[start : start + size])
            for start in range(0, length, size)
        ]
        assert torch.equal(torch.cat(parts), whole), f"chunks of {size}"


def test_blocks_of_rows_and_scattered_pages_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache.random(num_kv_heads=2, head_dim=32)
    whole_spec = spec(random_tree(20, 2, 5), num_cached=6, chunk=50)
    rows = build_rows([whole_spec], PAGE, CPU)
    q = torch.randn(rows.num_rows, 4, 32, generator=torch.Generator().manual_seed(3))
    whole = attend(cache, rows, q)
    monkeypatch.setattr("specdec.kernels.tree_attention.tiles.MAX_SCORES", 1)
    assert torch.equal(attend(cache, rows, q), whole)
    monkeypatch.undo()
    scattered = spec(whole_spec.tree, num_cached=6, chunk=50, first_page=1, gap=3)
    moved = Cache(cache.keys.clone(), cache.values.clone())
    for old, new in zip(whole_spec.pages, scattered.pages, strict=True):
        moved.keys[new], moved.values[new] = cache.keys[old], cache.values[old]
    assert torch.equal(attend(moved, build_rows([scattered], PAGE, CPU), q), whole)


def test_rows_beyond_the_plans_are_zero() -> None:
    cache = Cache.random(num_kv_heads=1, head_dim=16)
    rows = build_rows([spec(DraftTree.root(0), num_cached=3)], PAGE, CPU)
    out = attend(cache, rows, torch.ones(4, 1, 16))
    assert out[0].any()
    assert not out[1:].any()
