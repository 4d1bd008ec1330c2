"""The rows of one round, as tensors: what the runner and the acceptance rules read.

Legend of shape suffixes: R rows, S sequences, D depth (max depth + 1), P pages of the longest sequence,
T tree rows only, V vocabulary.

A sequence's rows are a *chunk* (prompt tokens whose KV entries are still missing, a chain that is certain) followed
by a *tree*, either of which may be absent. All rows of one sequence are neighbours, sequences in the order of the round.
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specdec.arrays import IntArray
from specdec.draft.tree import DraftTree


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSpec:
    """What one sequence brings to the round, on the host.

    chunk: prompt tokens to compute, at positions [num_cached, num_cached + len(chunk)).
    tree: rooted at the position after the chunk; None while the prompt is not finished.
    pages: page ids that cover every position up to the tree's deepest node.
    scratch: KV slots, at least as many as the tree has nodes off its spine; see `TreeRows.slots_T`.
    """

    chunk: IntArray
    tree: DraftTree | None
    num_cached: int
    pages: IntArray
    scratch: IntArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """The rows of one sequence, on the host, for paths that walk sequence by sequence (the CPU's)."""

    row_start: int
    num_chunk: int
    num_tree: int
    num_spine: int  # leading tree rows that lie on one chain and whose slots are those of their positions
    base: int  # position of the tree's root; chunk rows lie below it
    pages: IntArray  # int64 [pages of this sequence]


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeRows:
    """The trees of a round as tensors: the input of every acceptance rule.

    Index spaces: a *tree row* t in [0, T) numbers the tree rows only; `rows_T[t]` is its row among all rows of the round.
    parents_T and ancestors_TD are tree rows.
    """

    tokens_T: Tensor  # int64
    parents_T: Tensor  # int64; a root is its own parent
    depths_T: Tensor  # int64; 0 at a root
    ranks_T: Tensor  # int64; place among the siblings
    positions_T: Tensor  # int64, absolute
    sequences_T: Tensor  # int64, index among the S sequences that have a tree
    ancestors_TD: Tensor  # int64; [t, d] is the row at depth d on t's path, t itself from its own depth on
    roots_S: Tensor  # int64, tree row of each root
    rows_T: Tensor  # int64, row among all rows of the round

    @property
    def num_sequences(self) -> int:
        return len(self.roots_S)


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundRows:
    """All rows of a round: the input of the runner, on the host. `tree` lies where the logits do."""

    tokens_R: Tensor  # int64
    positions_R: Tensor  # int64
    sequences_R: Tensor  # int64, index among all sequences of the round
    slots_R: Tensor  # int64, where this row's K and V are written: page * page_size + offset
    ancestor_slots_RD: (
        Tensor  # int64; [r, d]: slot of the row at depth d on r's path (tree rows; chunk rows hold their own slot)
    )
    bases_S: Tensor  # int64, position of each sequence's root (of the end of the chunk where there is no tree)
    starts_S: Tensor  # int64, first position of each sequence that this round computes
    page_table_SP: Tensor  # int64, padded with page 0
    segments: tuple[Segment, ...]
    tree: TreeRows | None

    @property
    def num_rows(self) -> int:
        return len(self.tokens_R)


def spine_length(tree: DraftTree) -> int:
    """How many leading nodes form a chain from the root: nodes 0..n-1 with parents[i] == i - 1."""
    if len(tree) == 1:
        return 1
    off = np.nonzero(tree.parents[1:] != np.arange(len(tree) - 1))[0]
    return int(off[0]) + 1 if len(off) else len(tree)


def build_rows(specs: SequenceOf[RowSpec], page_size: int, device: torch.device) -> RoundRows:
    """Lay the sequences' chunks and trees out as rows.

    Spine nodes write their K and V where their position lies, so that an accepted spine needs no copy; the other nodes
    write to scratch slots and are copied at commit.
    """
    tokens, positions, sequences, slots, paths, segments = [], [], [], [], [], []
    trees: list[tuple[DraftTree, int, int]] = []  # tree, first row, base
    row = 0
    for index, spec in enumerate(specs):
        num_chunk = len(spec.chunk)
        base = spec.num_cached + num_chunk
        place = np.arange(spec.num_cached, base)
        tokens.append(spec.chunk)
        positions.append(place)
        chunk_slots = _slots(place, spec.pages, page_size)
        slots.append(chunk_slots)
        paths.append(chunk_slots[:, None])
        num_tree = num_spine = 0
        if spec.tree is not None:
            num_tree, num_spine = len(spec.tree), spine_length(spec.tree)
            place = base + spec.tree.depths()
            node_slots = _slots(place, spec.pages, page_size)
            node_slots[num_spine:] = spec.scratch[: num_tree - num_spine]
            tokens.append(spec.tree.tokens)
            positions.append(place)
            slots.append(node_slots)
            paths.append(node_slots[spec.tree.ancestors()])
            trees.append((spec.tree, row + num_chunk, base))
        sequences.append(np.full(num_chunk + num_tree, index))
        segments.append(
            Segment(row_start=row, num_chunk=num_chunk, num_tree=num_tree, num_spine=num_spine, base=base, pages=spec.pages)
        )
        row += num_chunk + num_tree
    page_table = np.zeros((len(specs), max(len(s.pages) for s in specs)), np.int64)
    for index, spec in enumerate(specs):
        page_table[index, : len(spec.pages)] = spec.pages

    def host(array: IntArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.int64))

    return RoundRows(
        tokens_R=host(np.concatenate(tokens)),
        positions_R=host(np.concatenate(positions)),
        sequences_R=host(np.concatenate(sequences)),
        slots_R=host(np.concatenate(slots)),
        ancestor_slots_RD=host(_pad_paths(paths)),
        bases_S=host(np.array([s.base for s in segments])),
        starts_S=host(np.array([s.num_cached for s in specs])),
        page_table_SP=host(page_table),
        segments=tuple(segments),
        tree=tree_rows(trees, device) if trees else None,
    )


def tree_rows(trees: SequenceOf[tuple[DraftTree, int, int]], device: torch.device) -> TreeRows:
    """Lay trees out as TreeRows. Each entry is (tree, its first row in the round, position of its root)."""
    starts = np.cumsum([0] + [len(tree) for tree, _, _ in trees[:-1]])
    depths = [tree.depths() for tree, _, _ in trees]
    together = np.concatenate
    tokens, parents, depth, ranks, positions, sequences, ancestors, roots, rows = move(
        [
            together([tree.tokens for tree, _, _ in trees]),
            together([tree.parents + start for (tree, _, _), start in zip(trees, starts, strict=True)]),
            together(depths),
            together([tree.ranks for tree, _, _ in trees]),
            together([base + depth for (_, _, base), depth in zip(trees, depths, strict=True)]),
            np.repeat(np.arange(len(trees)), [len(tree) for tree, _, _ in trees]),
            _pad_paths([tree.ancestors() + start for (tree, _, _), start in zip(trees, starts, strict=True)]),
            starts,
            together([np.arange(first, first + len(tree)) for tree, first, _ in trees]),
        ],
        device,
    )
    return TreeRows(
        tokens_T=tokens,
        parents_T=parents,
        depths_T=depth,
        ranks_T=ranks,
        positions_T=positions,
        sequences_T=sequences,
        ancestors_TD=ancestors,
        roots_S=roots,
        rows_T=rows,
    )


def move(arrays: SequenceOf[IntArray], device: torch.device) -> list[Tensor]:
    """The arrays as int64 tensors on `device`, in one transfer that the host does not wait for."""
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]).astype(np.int64, copy=False))
    if device.type == "cuda":
        flat = flat.pin_memory()
    parts = torch.split(flat.to(device, non_blocking=True), [array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def _slots(positions: IntArray, pages: IntArray, page_size: int) -> IntArray:
    return pages[positions // page_size] * page_size + positions % page_size


def _pad_paths(paths: list[IntArray]) -> IntArray:
    """Stack [n_i, D_i] tables to [sum n_i, max D_i]; a row's last entry is itself and fills the rest."""
    width = max(p.shape[1] for p in paths)
    out = np.empty((sum(len(p) for p in paths), width), np.int64)
    row = 0
    for p in paths:
        out[row : row + len(p), : p.shape[1]] = p
        out[row : row + len(p), p.shape[1] :] = p[:, -1:]
        row += len(p)
    return out
