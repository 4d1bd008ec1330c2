"""The suffix automaton against brute force."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from specdec.drafters.automaton import ROOT, SuffixAutomaton

texts = st.lists(st.integers(0, 2), min_size=1, max_size=30)


def read(automaton: SuffixAutomaton, tokens: list[int]) -> int | None:
    state = ROOT
    for token in tokens:
        if token not in automaton.edges[state]:
            return None
        state = automaton.edges[state][token]
    return state


def substrings(text: list[int]) -> Counter[tuple[int, ...]]:
    n = len(text)
    return Counter(tuple(text[i:j]) for i in range(n) for j in range(i + 1, n + 1))


@given(texts)
def test_reads_exactly_the_substrings_with_their_counts(text: list[int]) -> None:
    automaton = SuffixAutomaton()
    automaton.extend(text)
    found = substrings(text)
    for part, count in found.items():
        state = read(automaton, list(part))
        assert state is not None
        assert automaton.counts[state] == count
        latest = max(end for end in range(1, len(text) + 1) if tuple(text[max(end - len(part), 0) : end]) == part)
        assert automaton.recent[state] == latest
        for token in range(3):
            assert (token in automaton.edges[state]) == ((*part, token) in found)


def longest_repeated(text: list[int]) -> int:
    n = len(text)
    return max((k for k in range(n) if any(text[i : i + k] == text[n - k :] for i in range(n - k))), default=0)


@given(texts)
def test_repeated_suffix_is_the_longest_that_occurred_before(text: list[int]) -> None:
    automaton = SuffixAutomaton()
    for end in range(1, len(text) + 1):
        automaton.extend(text[end - 1 : end])
        state, length = automaton.repeated_suffix()
        assert length == longest_repeated(text[:end])
        assert state == read(automaton, text[end - length : end])


@given(texts, texts, texts)
def test_follow_finds_the_longest_common_suffix_even_while_the_text_grows(
    first: list[int], later: list[int], other: list[int]
) -> None:
    automaton = SuffixAutomaton()
    automaton.extend(first)
    state, length = automaton.follow(ROOT, 0, other)
    known = set(substrings(first))
    assert length == max((k for k in range(1, len(other) + 1) if tuple(other[-k:]) in known), default=0)
    automaton.extend(later)
    state, length = automaton.follow(state, length, [])
    assert state == (read(automaton, other[-length:]) if length else ROOT)
