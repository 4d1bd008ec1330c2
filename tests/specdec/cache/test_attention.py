"""Keys and values of attention layers: written where rows say, read through trees, moved with accepted paths."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from specdec.cache.attention import AttentionCache
from specdec.cache.kinds import CacheRoom
from specdec.cache.rows import Rows
from specdec.draft.tree import DraftTree
from specdec.kernels.tree_rows import Texts, TreeRows
from specdec.kernels.tree_walk import Accepted
from specdec.models.base import AttentionSpec, Heads
from specdec.models.config import RopeConfig
from specdec.models.layers.rope import Rope
from specdec.round.rows import Entries
from tests.specdec.conftest import plan_of, rows_of

PAGE, NUM_PAGES, SCRATCH_PAGES = 16, 12, 2
CPU = torch.device("cpu")
ROOM = CacheRoom(
    num_pages=NUM_PAGES + SCRATCH_PAGES,
    page_size=PAGE,
    num_slots=2,
    num_marks=0,
    longest_path=8,
    dtype=torch.float32,
    device=CPU,
)
ENTRIES = Entries(PAGE, ROOM.spare_entry, NUM_PAGES * PAGE)
SPECS = [AttentionSpec(num_kv_heads=2, head_dim=8, window=window) for window in (None, 7)] + [
    AttentionSpec(num_kv_heads=1, head_dim=4)
]
ROPE = Rope(RopeConfig(theta=10_000.0), 8, 128, torch.float32, CPU)
HEADS = Heads(rope=ROPE, num_heads=4, num_kv_heads=2, head_dim=8)
TREE = DraftTree(np.array([3, 1, 2, 4, 5, 6]), np.array([0, 0, 0, 1, 2, 4]))


def texts(length: int) -> Texts:
    """Two sequences and the spare text."""
    pages = torch.tensor([[3, 7, 1, 5], [0, 2, 4, 6], [NUM_PAGES + SCRATCH_PAGES] * 4])
    return Texts(torch.ones(3, 80, dtype=torch.int32), torch.tensor([length, 9, 1]), pages)


def prompt(first: int, count: int) -> Rows:
    """Rows of the first sequence's prompt alone."""
    rows, _ = rows_of(texts(first + count + 1), plan_of([0], [(first, count)], [0], 4), [None], ENTRIES)
    return rows


def trees(length: int, tree: DraftTree, rows: int) -> tuple[Rows, TreeRows]:
    """A tree of the first sequence and a root of the second; `rows` tree rows in all, and a spare member."""
    plan = plan_of([0, 1], [(-1, 0), (-1, 0)], [len(tree), 1], 4)
    return rows_of(texts(length), plan, [tree, DraftTree.root(2)], ENTRIES, (3, 0, rows))


def qkv(count: int, seed: int) -> Tensor:
    return torch.randn(count, (4 + 2 + 2) * 8, generator=torch.Generator().manual_seed(seed))


def plain(qkv_RC: Tensor, positions: list[int], window: int | None) -> Tensor:
    """The last row attends over all rows, by the book."""
    q, k, v = HEADS.split(qkv_RC, ROPE.rotation(torch.tensor(positions)))
    k, v = (x.repeat_interleave(2, 1)[-window if window else 0 :] for x in (k, v))
    scores = torch.einsum("hd,nhd->hn", q[-1], k) * 8**-0.5
    return torch.einsum("hn,nhd->hd", scores.softmax(-1), v).flatten()


@pytest.mark.parametrize("layer", [0, 1])
def test_rows_of_prompts_and_trees_attend_over_their_own_history(layer: int) -> None:
    cache, window = AttentionCache(SPECS, ROOM), SPECS[layer].window
    history = qkv(20, 1)
    for first, count in ((0, 13), (13, 7)):
        out = cache.view(layer, prompt(first, count)).attend(history[first : first + count], HEADS)
        for row in range(count):
            seen = first + row + 1
            torch.testing.assert_close(out[row], plain(history[:seen], list(range(seen)), window))
    rows, _ = trees(21, TREE, 9)
    drafted = qkv(9, 2)
    out = cache.view(layer, rows).attend(drafted, HEADS)
    for node in range(len(TREE)):
        path = TREE.path(node)
        positions = [*range(20), *range(20, 20 + len(path))]
        torch.testing.assert_close(out[node], plain(torch.cat((history, drafted[path])), positions, window))


def test_what_repeats_a_row_is_written_nowhere() -> None:
    cache = AttentionCache(SPECS, ROOM)
    rows, _ = trees(21, TREE, 12)
    cache.view(0, rows).attend(qkv(12, 3), HEADS)
    keys, values = cache.layer(0)
    written = (keys.abs().sum((1, 3)) > 0).view(-1).nonzero()[:, 0].tolist()
    assert sorted(written) == sorted(set(rows.entries_R.tolist()) - {ROOM.spare_entry})
    assert not keys[ROOM.num_pages].any()
    assert not values[ROOM.num_pages].any()


def test_rows_of_padding_behind_the_tables_are_no_ones() -> None:
    cache = AttentionCache(SPECS, ROOM)
    rows = prompt(0, 3)
    padded = replace(rows, tokens_R=rows.tokens_R.repeat(2), positions_R=rows.positions_R.repeat(2))
    out = cache.view(0, padded).attend(qkv(6, 3), HEADS)
    assert out[:3].any()
    assert not out[3:].any()


def test_an_accepted_path_is_moved_in_every_layer() -> None:
    cache = AttentionCache(SPECS, ROOM)
    rows, of_trees = trees(21, TREE, 9)
    for layer in range(3):
        for number, store in enumerate(cache.layer(layer)):
            store.copy_(torch.randn(store.shape, generator=torch.Generator().manual_seed(2 * layer + number)))
    before = [[store.clone() for store in cache.layer(layer)] for layer in range(3)]
    path, size = [0, 2, 4, 5], int(of_trees.ancestors_TD.shape[1])
    kept = torch.zeros(3, size, dtype=torch.int64)
    kept[0] = torch.tensor(path + [5] * (size - len(path)))
    kept[1] = of_trees.trees_T.tolist().index(1)
    accepted = Accepted(
        torch.tensor([3, 0, 0]), kept, kept, torch.tensor([True, True, True]), torch.zeros(len(of_trees.tokens_T))
    )
    cache.move(rows, of_trees, accepted, torch.tensor([6, 3, 0]))
    sources = of_trees.entries_T[path]
    targets = [7 * PAGE + 20 - PAGE + depth for depth in range(4)]
    for layer in range(3):
        for old, new in zip(before[layer], cache.layer(layer), strict=True):
            for source, target in zip(sources.tolist(), targets, strict=True):
                moved = new[target // PAGE, :, target % PAGE]
                assert torch.equal(moved, old[source // PAGE, :, source % PAGE])
            assert int((old != new).any(1).any(-1).sum()) == 3, "the root lies where it belongs"
