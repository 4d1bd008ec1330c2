"""DraftTree: the tokens of one draft tree on the host, as flat arrays; where a round's trees are tensors, see `tree_select`.

Node 0 is the root: the last emitted token, whose KV entry does not exist yet. Parents come before children. Siblings carry
different tokens, so at most one child can match the target's token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specdec.arrays import IntArray


@dataclass(frozen=True, slots=True)
class DraftTree:
    """A tree of `n` nodes, the root counted.

    tokens: int64 [n]. parents: int64 [n], `parents[0] == 0`, else `parents[i] < i`.
    """

    tokens: IntArray
    parents: IntArray

    def __len__(self) -> int:
        return len(self.tokens)

    @staticmethod
    def root(token: int) -> "DraftTree":
        """The tree of plain decoding: one node."""
        return DraftTree(np.array([token], np.int64), np.zeros(1, np.int64))

    @staticmethod
    def chain(root: int, drafts: Sequence[int] | IntArray) -> "DraftTree":
        """A tree that is one path below `root`."""
        tokens = np.array([root, *drafts], np.int64)
        return DraftTree(tokens, np.maximum(np.arange(len(tokens)) - 1, 0))

    def depths(self) -> IntArray:
        """int64 [n]; the root's is 0."""
        depths = [0]
        for parent in self.parents[1:].tolist():
            depths.append(depths[parent] + 1)
        return np.array(depths)

    def path(self, node: int) -> list[int]:
        """The nodes from the root to a node."""
        found = [node]
        while found[-1]:
            found.append(int(self.parents[found[-1]]))
        return found[::-1]

    def check(self) -> None:
        """Raise AssertionError where an invariant of the class does not hold."""
        n = len(self)
        assert n >= 1, "a tree has a root"
        assert len(self.parents) == n, "arrays of one length"
        assert self.parents[0] == 0, "the root is its own parent"
        assert ((self.parents >= 0) & (self.parents <= np.maximum(np.arange(n) - 1, 0))).all(), "parents first"
        edges = set(zip(self.parents[1:].tolist(), self.tokens[1:].tolist(), strict=True))
        assert len(edges) == n - 1, "siblings carry different tokens"
