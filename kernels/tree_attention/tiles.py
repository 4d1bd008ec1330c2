"""Tree attention with batched matrix products over page-sized tiles: the CPU path, written for the machine.

For each sequence: scores of all its rows against the full tiles that they share, one product per (tile, kv head);
then the tail tiles, which hold chunk and tree positions. Rows on the spine read their tail from the pages; rows off it
read tiles gathered per leaf, each key in the lane of its absolute position, so that a row's products and sums are the
ones it would have had decoding alone. The exact maximum over all tiles, exp, and fixed-order sums over tiles follow.

A key that a row must not see has weight 0, but 0 times NaN is NaN. So where a result is not finite, it is computed again
without the values that are not: a row depends on what it sees alone, whatever else lies in its tiles.

Matrix products keep a row's bits when the row count is a multiple of some small number, which differs from machine to machine
(`row_block` finds it); every product is padded to that.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ROW_BLOCKS = (4, 8, 16, 32)
_PROBED_ROWS = 96  # more rows are computed as these are
MAX_SCORES = 1 << 24  # floats of one score buffer; more rows are done in blocks
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LeafGroup:
    """Rows off the spine that lie on the path to one leaf, and the tail tiles of that path."""

    rows: Tensor  # int64 [n], among the sequence's rows
    entries: Tensor  # int64 [tail tiles * page size], the leaf's own where no key lies


@dataclass(frozen=True)
class TilePlan:
    """How one sequence's rows read the cache; made once a round, used by every layer."""

    row_start: int
    num_rows: int
    num_chain: int  # leading rows that read all of their history from the pages
    num_full: int  # tiles that every row sees whole
    pages: Tensor  # int64 [tiles]
    first_page: int | None  # when the pages are neighbours: a view serves instead of a copy
    positions: Tensor  # int64 [num_rows]
    leaves: tuple[LeafGroup, ...]
    masks: dict[tuple[int, int, int, int | None], Tensor] = field(default_factory=dict)  # see `hidden`
    lanes: dict[tuple[int, ...], Tensor] = field(default_factory=dict)  # see `scaled`

    def hidden(self, block: slice, group: int, page_size: int, window: int | None) -> Tensor:
        """bool [tiles that may be hidden, 1, rows of the block * group, page size]: keys that a row must not see.

        Tiles below `num_full` are seen whole unless there is a window. The same for all layers, so it is kept.
        """
        key = (block.start, block.stop, group, window)
        if key not in self.masks:
            positions = self.positions[block].repeat_interleave(group)[:, None]
            first = 0 if window is not None else self.num_full
            keys = torch.arange(first * page_size, len(self.pages) * page_size, device=positions.device)
            keys = keys.view(-1, 1, 1, page_size)
            mask = keys > positions
            self.masks[key] = mask if window is None else mask | (keys <= positions - window)
        return self.masks[key]

    def scaled(self, q_RKGD: Tensor, scale: float) -> Tensor:
        """Queries times scale as float32 [kv heads, rows * group, head_dim], with rows of zeros up to a whole block.

        Every layer overwrites what the layer before was given.
        """
        rows, num_kv, group, head_dim = q_RKGD.shape
        key = (rows, num_kv, group, head_dim)
        if key not in self.lanes:
            count = rows * group
            self.lanes[key] = q_RKGD.new_zeros((num_kv, count + -count % row_block(head_dim), head_dim), dtype=torch.float32)
        lanes_KMD = self.lanes[key]
        used = lanes_KMD[:, : rows * group].view(num_kv, rows, group, head_dim)
        torch.mul(q_RKGD.transpose(0, 1).float(), scale, out=used)
        return lanes_KMD


@functools.cache
def row_block(head_dim: int) -> int:
    """The least row count at whose multiples this machine's batched products give a row the same bits."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, _PROBED_ROWS, head_dim, generator=generator)
    y = torch.randn(2, 3, head_dim, 64, generator=generator)
    weights = torch.randn(2, 3, _PROBED_ROWS, 64, generator=generator)
    products = ((x, y), (weights, y.transpose(2, 3).contiguous()), (x, y.transpose(2, 3).contiguous().transpose(2, 3)))
    whole = [torch.matmul(left, right) for left, right in products]
    for block in _ROW_BLOCKS[:-1]:
        if all(
            torch.equal(torch.matmul(left[:, :, start : start + count].contiguous(), right), out[:, :, start : start + count])
            for (left, right), out in zip(products, whole, strict=True)
            for count in range(block, _PROBED_ROWS, block)
            for start in {0, _PROBED_ROWS - count}
        ):
            return block
    return _ROW_BLOCKS[-1]


def plan_tiles(
    *,
    row_start: int,
    positions: IntArray,
    ancestor_entries: IntArray,
    num_chain: int | None,
    base: int,
    pages: IntArray,
    page_size: int,
    device: torch.device,
) -> TilePlan:
    """Plan the reads of one sequence.

    Args:
        row_start: its first row in the round.
        positions: [rows], absolute.
        ancestor_entries: [rows, D], entry of the ancestor at each depth; read for rows from `num_chain` on.
        num_chain: leading rows whose whole path lies at the entries of its positions; None: as the ancestors say.
        base: position of the tree's root.
        pages: page ids, at least up to the deepest position.
        page_size: tokens per page.
        device: of the tensors made.
    """
    if num_chain is None:
        num_chain = _chain_length(positions, ancestor_entries, base, pages, page_size)
    num_tiles = int(positions.max()) // page_size + 1
    num_full = int(positions.min()) // page_size
    pages = pages[:num_tiles]
    consecutive = bool((np.diff(pages) == 1).all())
    return TilePlan(
        row_start=row_start,
        num_rows=len(positions),
        num_chain=num_chain,
        num_full=num_full,
        pages=torch.from_numpy(pages).to(device),
        first_page=int(pages[0]) if consecutive else None,
        positions=torch.from_numpy(np.ascontiguousarray(positions)).to(device),
        leaves=_leaf_groups(positions, ancestor_entries, num_chain, base, pages, num_full, page_size, device),
    )


def _chain_length(positions: IntArray, ancestor_entries: IntArray, base: int, pages: IntArray, page_size: int) -> int:
    """Leading rows whose ancestors all lie where their positions do."""
    places = base + np.arange(ancestor_entries.shape[1])
    own = pages[np.minimum(places // page_size, len(pages) - 1)] * page_size + places % page_size
    on_spine = ((ancestor_entries == own) | (places > positions[:, None])).all(1)
    return int(on_spine.cumprod().sum())


def _leaf_groups(
    positions: IntArray,
    ancestor_entries: IntArray,
    num_chain: int,
    base: int,
    pages: IntArray,
    num_full: int,
    page_size: int,
    device: torch.device,
) -> tuple[LeafGroup, ...]:
    """Give every row off the spine to the deepest unclaimed path that passes through it."""
    groups = []
    depths = positions - base
    unclaimed = np.arange(len(positions)) >= num_chain
    start = num_full * page_size
    while unclaimed.any():
        candidates = np.nonzero(unclaimed)[0]
        leaf = candidates[depths[candidates].argmax()]
        path = ancestor_entries[leaf, : depths[leaf] + 1]
        own = ancestor_entries[candidates, depths[candidates]]  # a row's own entry tells whether it lies on the path
        rows = candidates[path[np.minimum(depths[candidates], depths[leaf])] == own]
        unclaimed[rows] = False
        before = np.arange(start, base)
        entries = np.full((len(pages) - num_full) * page_size, path[-1])
        entries[: base - start] = pages[before // page_size] * page_size + before % page_size
        entries[base - start : base - start + len(path)] = path
        groups.append(LeafGroup(torch.from_numpy(rows).to(device), torch.from_numpy(entries).to(device)))
    return tuple(groups)


def tree_attention_tiles(
    q_RHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    plans: Sequence[TilePlan],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """See `tree_attention`."""
    num_rows, num_heads, head_dim = q_RHD.shape
    num_kv = k_pages.shape[1]
    group = num_heads // num_kv
    q_RKGD = q_RHD.view(num_rows, num_kv, group, head_dim)

    def attend(clean: bool) -> Tensor:
        outs = [
            _sequence(rows, k_pages, v_pages, plan, block, scale, window, softcap, clean)
            for plan, block, rows in _blocks(q_RKGD, plans, num_heads * k_pages.shape[2])
        ]
        done = sum(plan.num_rows for plan in plans)
        if done < num_rows:
            outs.append(outs[0].new_zeros(num_rows - done, num_heads, head_dim))
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    out = attend(clean=False)
    if not math.isfinite(out.sum().item()):
        out = attend(clean=True)
    return out.to(q_RHD.dtype)


def _blocks(q_RKGD: Tensor, plans: Sequence[TilePlan], scores: int) -> Iterator[tuple[TilePlan, slice, Tensor]]:
    """Blocks of rows that are computed together, and their queries. scores: of a row and a tile."""
    for plan in plans:
        most_rows = max(_ROW_BLOCKS[-1], MAX_SCORES // (len(plan.pages) * scores))
        for block in _row_blocks(plan, most_rows):
            yield plan, block, q_RKGD[plan.row_start + block.start : plan.row_start + block.stop]


def _row_blocks(plan: TilePlan, most_rows: int) -> list[slice]:
    """Blocks of at most `most_rows` rows; the rows off the spine stay together."""
    if plan.num_rows <= most_rows or plan.num_chain <= most_rows:
        return [slice(0, plan.num_rows)]
    cuts = [*range(0, plan.num_chain, most_rows), plan.num_rows]
    return [slice(a, b) for a, b in pairwise(cuts)]


def _sequence(
    q_RKGD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    plan: TilePlan,
    block: slice,
    scale: float,
    window: int | None,
    softcap: float | None,
    clean: bool,
) -> Tensor:
    """Attention of the rows `block` of one sequence: float32 [rows, heads, head_dim]. clean: see `_weigh`."""
    rows, num_kv, group, head_dim = q_RKGD.shape
    page_size, num_tiles = k_pages.shape[2], len(plan.pages)
    k, v = _cached(k_pages, plan), _cached(v_pages, plan)  # [tiles, K, page, D]
    q_KMD = plan.scaled(q_RKGD, scale)
    in_block = block.stop - block.start
    chain = min(max(plan.num_chain - block.start, 0), in_block)
    if chain == in_block:
        scores = torch.matmul(q_KMD, k.transpose(2, 3))  # [tiles, K, M, page]
    else:
        scores = q_KMD.new_zeros(num_tiles, num_kv, q_KMD.shape[1], page_size)
        full = plan.num_full
        scores[:full] = torch.matmul(q_KMD, k[:full].transpose(2, 3))
        if chain:
            scores[full:, :, : chain * group] = _product(q_KMD[:, : chain * group], k[full:].transpose(2, 3), head_dim)
        tails = [_tail(k_pages, leaf, page_size) for leaf in plan.leaves]
        for leaf, tail in zip(plan.leaves, tails, strict=True):
            lanes = _lanes(leaf.rows - block.start, group)
            scores[full:, :, lanes] = _product(q_KMD[:, lanes], tail.transpose(2, 3), head_dim)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    hidden = plan.hidden(block, group, page_size, window)
    scores[-len(hidden) :, :, : hidden.shape[2]].masked_fill_(hidden, float("-inf"))
    top = scores.amax(-1, keepdim=True).amax(0)  # [K, M, 1]
    weights = scores.sub_(top).exp_()
    if chain == in_block:
        parts = _weigh(torch.matmul, weights, v, clean)  # [tiles, K, M, D]
    else:
        parts = q_KMD.new_zeros(num_tiles, num_kv, q_KMD.shape[1], head_dim)
        product = partial(_product, head_dim=head_dim)
        parts[:full] = _weigh(torch.matmul, weights[:full], v[:full], clean)
        if chain:
            parts[full:, :, : chain * group] = _weigh(product, weights[full:, :, : chain * group], v[full:], clean)
        for leaf in plan.leaves:
            lanes = _lanes(leaf.rows - block.start, group)
            parts[full:, :, lanes] = _weigh(product, weights[full:, :, lanes], _tail(v_pages, leaf, page_size), clean)
    # over tiles first: torch sums columns that do not fill a vector in another order, and here all columns do
    out = parts.sum(0) / weights.sum(0).sum(-1, keepdim=True)
    return out[:, : rows * group].view(num_kv, rows, group, head_dim).transpose(0, 1).reshape(rows, num_kv * group, head_dim)


def _weigh(product: Callable[[Tensor, Tensor], Tensor], weights: Tensor, values: Tensor, clean: bool) -> Tensor:
    """[tiles, K, M, D]: weights [tiles, K, M, page] times values [tiles, K, page, D]. clean: values that are not finite count
    where their weight is not 0 alone, with NaN."""
    if not clean:
        return product(weights, values)
    bad = ~values.isfinite()
    seen = ((weights > 0) & bad.any(-1)[..., None, :]).any(-1, keepdim=True)
    return product(weights, values.masked_fill(bad, 0.0)).masked_fill(seen, torch.nan)


def _cached(pages: Tensor, plan: TilePlan) -> Tensor:
    if plan.first_page is not None:
        return pages[plan.first_page : plan.first_page + len(plan.pages)]
    return pages.index_select(0, plan.pages)


def _tail(pages: Tensor, leaf: LeafGroup, page_size: int) -> Tensor:
    """The leaf's tail tiles: [tiles, K, page, D]."""
    gathered = pages[leaf.entries // page_size, :, leaf.entries % page_size]  # [tiles * page, K, D]
    return gathered.view(-1, page_size, *gathered.shape[1:]).transpose(1, 2)


def _lanes(rows: Tensor, group: int) -> Tensor:
    """Rows of a query matrix that hold the heads of `rows`."""
    return (rows[:, None] * group + torch.arange(group, device=rows.device)).view(-1)


def _product(x: Tensor, y: Tensor, head_dim: int) -> Tensor:
    """x @ y, x padded with rows of zeros so that its own keep their bits."""
    padded = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[-2] % row_block(head_dim)))
    return torch.matmul(padded, y)[..., : x.shape[-2], :]
