"""DraftTree: the tokens a drafter proposes for one sequence, as flat arrays.

Node 0 is the root: the last emitted token, whose KV entry does not exist yet. Parents come before
children. Siblings carry different tokens, so at most one child can match the target's token.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specdec.arrays import FloatArray, IntArray

NO_DRAFTER = -1  # `source` of a root
# of trees that are only a root, which rounds with many plain sequences ask for thousands of times a second
_NO_DEPTH = np.zeros(1, np.int64)
_NO_ANCESTORS = np.zeros((1, 1), np.int64)
_NO_DEPTH.setflags(write=False)
_NO_ANCESTORS.setflags(write=False)


@dataclass(frozen=True, slots=True)
class DraftTree:
    """A tree of `n` nodes, the root counted.

    tokens: int64 [n]. parents: int64 [n], `parents[0] == 0`, else `parents[i] < i`.
    log_q: float64 [n], the drafter's log-probability of the node given its parent; NaN where it has none; 0 at the root.
    ranks: int64 [n], place among its siblings in its drafter's order, from 0.
    sources: int64 [n], index of the drafter in the engine's list; NO_DRAFTER at the root.
    """

    tokens: IntArray
    parents: IntArray
    log_q: FloatArray
    ranks: IntArray
    sources: IntArray

    def __len__(self) -> int:
        return len(self.tokens)

    @staticmethod
    def root(token: int) -> "DraftTree":
        """The tree of plain decoding: one node."""
        zero = np.zeros(1, np.int64)
        return DraftTree(np.array([token], np.int64), zero, np.zeros(1), zero, np.full(1, NO_DRAFTER, np.int64))

    @staticmethod
    def chain(root: int, drafts: "list[int] | IntArray", source: int, log_q: FloatArray | None = None) -> "DraftTree":
        """A tree that is one path below `root`."""
        n = len(drafts) + 1
        tokens = np.empty(n, np.int64)
        tokens[0], tokens[1:] = root, drafts
        sources = np.full(n, source, np.int64)
        sources[0] = NO_DRAFTER
        logs = np.full(n, np.nan)
        logs[1:] = np.nan if log_q is None else log_q
        logs[0] = 0.0
        return DraftTree(tokens, np.maximum(np.arange(n) - 1, 0), logs, np.zeros(n, np.int64), sources)

    def depths(self) -> IntArray:
        """int64 [n]; the root's is 0."""
        if len(self) == 1:
            return _NO_DEPTH
        depth = np.zeros(len(self), np.int64)
        above = self.parents
        while above.any():
            depth += above > 0
            above = self.parents[above]
        depth[1:] += 1
        return depth

    def ancestors(self) -> IntArray:
        """int64 [n, max depth + 1]; entry d is the node at depth d on the way to this node, itself from its own depth on."""
        if len(self) == 1:
            return _NO_ANCESTORS
        depth = self.depths()
        max_depth = int(depth.max())
        climbed = [np.arange(len(self))]  # climbed[k][i]: k steps above i
        for _ in range(max_depth):
            climbed.append(self.parents[climbed[-1]])
        steps_up = np.maximum(depth[:, None] - np.arange(max_depth + 1), 0)
        ancestors: IntArray = np.stack(climbed)[steps_up, np.arange(len(self))[:, None]]
        return ancestors

    def is_chain(self) -> bool:
        """Whether every node but the last has exactly one child."""
        return bool((self.parents[1:] == np.arange(len(self) - 1)).all())

    def select(self, keep: npt.NDArray[np.bool_]) -> "DraftTree":
        """The nodes marked in `keep` ([n], closed under parents, the root kept), in the same order."""
        new_index = np.cumsum(keep) - 1
        return DraftTree(
            self.tokens[keep], new_index[self.parents[keep]], self.log_q[keep], self.ranks[keep], self.sources[keep]
        )

    def check(self) -> None:
        """Raise AssertionError where an invariant of the class does not hold."""
        n = len(self)
        assert n >= 1, "a tree has a root"
        assert all(len(a) == n for a in (self.parents, self.log_q, self.ranks, self.sources)), "arrays of one length"
        assert self.parents[0] == 0, "the root is its own parent"
        assert ((self.parents >= 0) & (self.parents <= np.maximum(np.arange(n) - 1, 0))).all(), "parents first"
        edges = set(zip(self.parents[1:].tolist(), self.tokens[1:].tolist(), strict=True))
        assert len(edges) == n - 1, "siblings carry different tokens"
        assert not (self.log_q[1:] > 1e-9).any(), "log_q is at most 0"


def merge(trees: list[DraftTree]) -> DraftTree:
    """One tree with every path of `trees` (same root); a shared path is kept once, under the first tree's values.

    Raises AssertionError when the roots differ.
    """
    if len(trees) == 1:
        return trees[0]
    index: dict[tuple[int, int], int] = {}
    columns: list[tuple[int, int, float, int, int]] = []
    for tree in trees:
        assert tree.tokens[0] == trees[0].tokens[0], "merged trees share their root"
        here = [0] * len(tree)
        rows = zip(*(a.tolist() for a in (tree.tokens, tree.parents, tree.log_q, tree.ranks, tree.sources)), strict=True)
        for node, (token, parent, log_q, rank, source) in enumerate(rows):
            if node == 0:
                if not columns:
                    columns.append((token, 0, log_q, rank, source))
                continue
            key = (here[parent], token)
            if key not in index:
                index[key] = len(columns)
                columns.append((token, here[parent], log_q, rank, source))
            here[node] = index[key]
    tokens, parents, log_q, ranks, sources = zip(*columns, strict=True)
    return DraftTree(
        np.array(tokens, np.int64),
        np.array(parents, np.int64),
        np.array(log_q),
        np.array(ranks, np.int64),
        np.array(sources, np.int64),
    )
