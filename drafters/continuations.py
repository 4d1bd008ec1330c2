"""From a place in a suffix automaton to a tree of what may follow."""

from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import log

import numpy as np

from specdec.draft.tree import NO_DRAFTER, DraftTree
from specdec.drafters.automaton import ROOT, SEPARATOR, SuffixAutomaton

_TRUST = 0.6  # per matched token, fitted on greedy output of a 135M model over seven content types
_MAX_CHILDREN = 4  # of one context
_MAX_CONTEXTS = 2
_MIN_LEFT = 0.1  # probability left over that is worth asking a shorter context
_MIN_PATH = log(0.004)  # less likely paths are not worth a row on any machine


@dataclass(slots=True)
class TreeBuilder:
    """A DraftTree under construction, node by node, parents first."""

    root: int
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    log_q: list[float] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)

    def add(self, token: int, parent: int, log_q: float, rank: int) -> int:
        """Add a child of node `parent`; returns its node."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.log_q.append(log_q)
        self.ranks.append(rank)
        return len(self.tokens)

    def build(self, source: int) -> DraftTree | None:
        """The tree; None if it has nothing but its root."""
        n = len(self.tokens) + 1
        if n == 1:
            return None
        sources = np.full(n, source, np.int64)
        sources[0] = NO_DRAFTER
        return DraftTree(
            np.array([self.root, *self.tokens], np.int64),
            np.array([0, *self.parents], np.int64),
            np.array([0.0, *self.log_q]),
            np.array([0, *self.ranks], np.int64),
            sources,
        )


def expand(automaton: SuffixAutomaton, state: int, match: int, builder: TreeBuilder, max_nodes: int, max_depth: int) -> None:
    """Add the most likely continuations of `state` to an empty builder, best path first.

    Args:
        state, match: where the context stands in the automaton, and how many of its last tokens that place shares with it.
        max_nodes: of the tree, the root counted. max_depth: below the root.
    """
    # (-log of the path, state: breaks ties, parent, depth, token, match, log_q, rank)
    heap: list[tuple[float, int, int, int, int, int, float, int]] = []
    node = depth = 0
    path = 0.0
    for _ in range(max_nodes - 1):
        if depth < max_depth:
            for rank, (token, after, length, log_q) in enumerate(_children(automaton, state, match)):
                if path + log_q > _MIN_PATH:
                    heappush(heap, (-path - log_q, after, node, depth + 1, token, length, log_q, rank))
        if not heap:
            return
        cost, state, parent, depth, token, match, log_q, rank = heappop(heap)
        node, path = builder.add(token, parent, log_q, rank), -cost


def _children(automaton: SuffixAutomaton, state: int, match: int) -> list[tuple[int, int, int, float]]:
    """(token, state after it, match there, log q) of the tokens that may come next, most likely first.

    A context of `match` tokens is trusted the more the longer it is and the oftener it was seen; what it leaves over goes
    to the next shorter context, as in prediction by partial matching (Cleary and Witten, 1984).
    """
    counts, recent = automaton.counts, automaton.recent
    found: list[tuple[int, int, int, float]] = []
    left, contexts = 1.0, _MAX_CONTEXTS
    while match and contexts and left > _MIN_LEFT:
        edges = automaton.edges[state]
        if edges:  # none where the text ends
            if len(edges) == 1:
                ranked = list(edges.items())
                total = counts[ranked[0][1]]
            else:
                ranked = sorted(edges.items(), key=lambda edge: (counts[edge[1]], recent[edge[1]]), reverse=True)
                total = sum([counts[after] for _, after in ranked])
            trust = _TRUST * match * (1.0 + log(total))
            trust /= 1.0 + trust
            seen = [token for token, _, _, _ in found]
            for token, after in ranked[:_MAX_CHILDREN]:
                if token != SEPARATOR and token not in seen:
                    found.append((token, after, match + 1, log(left * trust * counts[after] / total)))
            left *= 1.0 - trust
            contexts -= 1
        state = automaton.links[state]
        match = automaton.lengths[state] if state != ROOT else 0
    return found
