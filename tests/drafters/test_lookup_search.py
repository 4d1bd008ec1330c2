"""Lookup drafts held to a plain search in lists, whoever comes and goes."""

import random
from collections.abc import Sequence

import pytest

from specdec.kernels.suffix_match import LONGEST_MATCH, NUM_PLACES
from tests.drafters.conftest import Gram
from tests.drafters.lookup_desk import ALL, WIDTH, Desk

BRANCH = 4


class PlainSearch:
    """What a drafter of all names promises, from lists: the longest end of a text that stands elsewhere, the latest place
    first; then the next longest."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._pending: list[int] = []
        self._corpus: list[int] = []

    def leave(self, output: Sequence[int]) -> None:
        if output:
            self._pending += [*output, -1]

    def prepare(self) -> None:
        self._corpus = [*self._corpus, *self._pending][-self._bound :]
        self._pending = []

    def paths(self, text: list[int], reference: list[int]) -> set[Gram]:
        sources = [text, reference, *reversed(self._answers())]
        found: dict[tuple[int, int], Gram] = {}
        for length in range(min(LONGEST_MATCH, len(text)), 0, -1):
            for number, source in enumerate(sources):
                for place in range(len(source) - 1, length - 1, -1):
                    if source[place - length : place] == text[-length:] and len(found) < NUM_PLACES:
                        endless = source[place:] * (WIDTH if number == 0 else 1)
                        found.setdefault((number, place), tuple(endless[: BRANCH if found else WIDTH]))
        return {ahead[:end] for ahead in found.values() for end in range(1, len(ahead) + 1)}

    def _answers(self) -> list[list[int]]:
        answers: list[list[int]] = [[]]
        for token in self._corpus:
            if token < 0:
                answers.append([])
            else:
                answers[-1].append(token)
        return answers


@pytest.mark.parametrize("seed", range(6))
def test_a_plain_search_finds_the_same_whoever_comes_and_goes(seed: int, few: int) -> None:
    rng, found, plain = random.Random(seed), Desk(*ALL, num_slots=3), PlainSearch(few)
    references: dict[int, list[int]] = {}

    def words(most: int) -> list[int]:
        return [rng.randrange(2 + seed) for _ in range(rng.randrange(most))]

    compared = 0
    for _ in range(60):
        slot = rng.randrange(3)
        if slot in references and rng.random() < 0.3:
            output = words(120) if rng.random() < 0.8 else []
            found.drafter.leave(slot, output)
            plain.leave(output)
            del references[slot]
        elif slot in references:
            found.grow(slot, [rng.randrange(2 + seed) for _ in range(rng.randrange(1, 9))])
        else:
            prompt, prediction = [*words(40), 0], words(40) if rng.random() < 0.5 else []
            found.enter(slot, prompt, prediction)
            references[slot] = [*prompt[-LONGEST_MATCH:], *prediction] if prediction else []
        plain.prepare()
        for known, reference in references.items():
            paths = found.paths(known)
            assert len(set(paths)) == len(paths), "no path twice"
            assert set(paths) == plain.paths(found.text(known), reference)
            compared += len(paths)
    assert compared > 500
