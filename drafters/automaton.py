"""A suffix automaton over token ids, grown online, and the continuations that it knows.

The automaton of a text is the smallest machine that reads exactly the text's substrings (Blumer et al., 1985). Each state
stands for the substrings that end at the same places; it knows how often and how lately those occurred. The longest
suffix of the text that occurred before is one link away from the last state, so "what followed the last time" is a lookup.
"""

from collections.abc import Iterable, Sequence

ROOT = 0
SEPARATOR = -1  # between texts that must not run into each other; no token has this id
_MAX_COUNTED = 32  # states updated per token: bounds the time on periodic text, whose link chains are long


class SuffixAutomaton:
    """All substrings of one or more texts, with counts.

    State s reads its substrings of up to `lengths[s]` tokens; `links[s]` reads the next shorter ones; `edges[s]` maps a
    token to the state after it; `counts[s]` is how often they occurred and `recent[s]` when they last did (in tokens fed).
    """

    __slots__ = ("counts", "edges", "last", "lengths", "links", "num_tokens", "recent")

    def __init__(self) -> None:
        self.lengths = [0]
        self.links = [-1]
        self.edges: list[dict[int, int]] = [{}]
        self.counts = [0]
        self.recent = [0]
        self.last = ROOT
        self.num_tokens = 0

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens to the text; amortised constant time each."""
        lengths, links, edges, counts, recent = self.lengths, self.links, self.edges, self.counts, self.recent
        last, now = self.last, self.num_tokens
        for token in tokens:
            now += 1
            new = len(lengths)
            lengths.append(lengths[last] + 1)
            links.append(ROOT)
            edges.append({})
            counts.append(0)
            recent.append(0)
            state = last
            while state >= 0 and token not in edges[state]:
                edges[state][token] = new
                state = links[state]
            if state >= 0:
                after = edges[state][token]
                links[new] = after if lengths[after] == lengths[state] + 1 else self._split(state, token, after)
            last = state = new
            for _ in range(_MAX_COUNTED):
                counts[state] += 1
                recent[state] = now
                state = links[state]
                if state <= ROOT:
                    break
        self.last, self.num_tokens = last, now

    def _split(self, state: int, token: int, after: int) -> int:
        """Give the substrings of `after` that are no longer than `state` and `token` a state of their own."""
        lengths, links, edges = self.lengths, self.links, self.edges
        shorter = len(lengths)
        lengths.append(lengths[state] + 1)
        links.append(links[after])
        edges.append(edges[after].copy())
        self.counts.append(self.counts[after])
        self.recent.append(self.recent[after])
        links[after] = shorter
        while state >= 0 and edges[state].get(token) == after:
            edges[state][token] = shorter
            state = links[state]
        return shorter

    def repeated_suffix(self) -> tuple[int, int]:
        """(state, length) of the longest suffix of the text that also occurred before; (ROOT, 0) if none did."""
        state = max(self.links[self.last], ROOT)
        return state, self.lengths[state]

    def follow(self, state: int, length: int, tokens: Sequence[int]) -> tuple[int, int]:
        """Advance a match of another text against this one.

        Args:
            state: the state that the match stood in, ROOT at first.
            length: tokens matched so far.
            tokens: what follows in the other text.

        Returns:
            (state, length) of a longest suffix of the other text that occurs here.
        """
        lengths, links, edges = self.lengths, self.links, self.edges
        for token in tokens:
            # the automaton may have grown since: a split moves the shorter substrings to the link
            while state and length <= lengths[links[state]]:
                state = links[state]
            while state and token not in edges[state]:
                state = links[state]
                length = lengths[state]
            after = edges[state].get(token)
            if after is None:
                length = 0
            else:
                state, length = after, length + 1
        while state and length <= lengths[links[state]]:
            state = links[state]
        return state, length
