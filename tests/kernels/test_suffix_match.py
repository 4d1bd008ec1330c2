"""Where the end of a text stood before, and what followed: held to a naive search and a trie by hand; and the kernel to the
reference."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from specdec.kernels.suffix_match import (
    LONGEST_MATCH,
    NUM_PLACES,
    SEPARATOR,
    Library,
    Origin,
    num_candidates,
    suffix_candidates,
)
from specdec.kernels.suffix_match.host import suffix_candidates_host
from specdec.kernels.suffix_match.reference import suffix_candidates_reference
from tests.kernels.conftest import moved

kernel = pytest.importorskip("specdec.kernels.suffix_match.kernel")

BRANCH = 4
# each label names its cell
LABELS = torch.arange(3 * 2 * (LONGEST_MATCH + 1) * 3 * 3).view(3, 2, LONGEST_MATCH + 1, 3, 3)


def library(
    texts: list[list[int]], references: list[list[int]] | None = None, corpus: list[int] | None = None, own: bool = True
) -> Library:
    """Behind the end of a text and of a reference lie tokens that would match."""

    def table(rows: list[list[int]], room: int) -> tuple[Tensor, Tensor]:
        values = torch.ones(len(rows), room, dtype=torch.int32)
        for row, tokens in zip(values, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        return values, torch.tensor([len(tokens) for tokens in rows])

    references = references or [[] for _ in texts]
    room = max(map(len, texts)) + 3
    return Library(
        *table(texts, room), *table(references, max(map(len, references))), torch.tensor(corpus or [], dtype=torch.int32), own
    )


@dataclass(frozen=True)
class Place:
    """Somewhere the text's end stood: how much of it, of which origin, and what followed."""

    matched: int
    origin: int
    ahead: tuple[int, ...]


def places(lib: Library, text: int, width: int) -> list[Place]:
    """All places in which a token of the text's end and what follows it stand, the best first."""
    words = lib.texts_SL[text, : int(lib.lengths_S[text])].tolist()
    reference = lib.references_SB[text, : int(lib.reference_lengths_S[text])].tolist()
    sources = [(Origin.CORPUS, lib.corpus_C.tolist()), (Origin.REFERENCE, reference)] + [(Origin.TEXT, words)] * lib.own
    found = []
    for order, (origin, tokens) in enumerate(sources):
        for place in range(1, len(tokens)):
            length = 0
            while length < min(LONGEST_MATCH, place, len(words)) and tokens[place - 1 - length] == words[-1 - length] >= 0:
                length += 1
            if length and tokens[place] >= 0:
                found.append(((length, order, place), Place(length, origin, ahead(tokens, place, width, origin))))
    return [place for _, place in sorted(found, key=lambda item: item[0], reverse=True)]


def ahead(tokens: list[int], place: int, width: int, origin: int) -> tuple[int, ...]:
    """What follows, up to a border; the text itself goes on with its period."""
    following = tokens[place:]
    if origin == Origin.TEXT:
        following = following * (width // len(following) + 1)
    following = following[:width]
    return tuple(following[: following.index(SEPARATOR)] if SEPARATOR in following else following)


def by_hand(lib: Library, text: int, width: int, shift: int) -> dict[tuple[int, ...], int]:
    """The label of every path that is offered, in the order in which they are found."""
    best = places(lib, text, width)[:NUM_PLACES]
    labels: dict[tuple[int, ...], int] = {}
    for rank, place in enumerate(best):
        for depth in range(len(place.ahead) if rank == 0 else min(len(place.ahead), BRANCH)):
            path, token = place.ahead[:depth], place.ahead[depth]
            proposals = [other.ahead[depth] for other in best if other.ahead[:depth] == path and len(other.ahead) > depth]
            agree, others = proposals.count(token), len(proposals) - proposals.count(token)
            evidence = min(place.matched + depth, LONGEST_MATCH)
            label = LABELS[place.origin, int(proposals[0] != token), evidence, min(agree - 1, 2), min(others, 2)]
            labels.setdefault((*path, token), int(label) + shift)
    return labels


def offered(found: tuple[Tensor, Tensor, Tensor], row: int) -> dict[tuple[int, ...], int]:
    """The same of what `suffix_candidates` gave; parents come before children, no path twice."""
    tokens, parents, labels = (values[row].tolist() for values in found)
    paths: list[tuple[int, ...]] = []
    kept: dict[tuple[int, ...], int] = {}
    for candidate, (token, parent, label) in enumerate(zip(tokens, parents, labels, strict=True)):
        assert -1 <= parent < candidate or token < 0
        paths.append((*(paths[parent] if 0 <= parent < candidate else ()), token))
        if token >= 0:
            assert paths[-1] not in kept
            kept[paths[-1]] = label
    return kept


def random_library(seed: int, sizes: tuple[int, int, int] = (40, 25, 60), own: bool = True) -> Library:
    """Few different tokens, so that matches are long, many, and of all origins."""
    generator = torch.Generator().manual_seed(seed)

    def words(size: int, low: int = 0) -> list[int]:
        length = int(torch.randint(0, size + 1, (1,), generator=generator))
        return torch.randint(low, 3, (length,), generator=generator).tolist()

    texts = [[1], [2, 2, 2, 2, 2], *([1, *words(sizes[0])] for _ in range(3)), [*words(sizes[0], SEPARATOR), 2]]
    references: list[list[int]] = [[], [2], *(words(sizes[1], SEPARATOR) for _ in range(4))]
    return library(texts, references, words(sizes[2], SEPARATOR), own)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("width", [1, 3, 4, 9])
def test_candidates_are_those_of_a_naive_search(width: int, own: bool) -> None:
    for seed in range(12):
        lib = random_library(seed, own=own)
        texts_M = torch.tensor([4, 0, 1, 5, 3, 2])
        shifts = torch.arange(6) * 10_000
        found = suffix_candidates(lib, texts_M, LABELS, shifts, width=width)
        assert all(values.shape == (6, num_candidates(width)) for values in found)
        for row, text in enumerate(texts_M.tolist()):
            assert offered(found, row) == by_hand(lib, text, width, int(shifts[text])), (seed, text)


def first_path(lib: Library, width: int = 4) -> list[int]:
    """What the best place of the first text offers."""
    tokens, _, _ = suffix_candidates(lib, torch.tensor([0]), LABELS, torch.zeros(1, dtype=torch.int64), width=width)
    return tokens[0, :width].tolist()


def test_the_longer_match_wins_then_the_text_itself_and_the_recent() -> None:
    text = [5, 6, 7, 5, 6, 8, 5, 6]
    assert first_path(library([text])) == [8, 5, 6, 8]
    assert first_path(library([text], [[5, 6, 9]], [5, 6, 9])) == [8, 5, 6, 8]
    assert first_path(library([text], [[5, 6, 9]], [8, 5, 6, 11])) == [11, -1, -1, -1]
    assert first_path(library([[5, 6]], [[5, 6, 9]], [5, 6, 11])) == [9, -1, -1, -1]
    assert first_path(library([text], own=False, corpus=[6, 1, 2, 6, 3])) == [3, -1, -1, -1]


def test_a_text_that_repeats_itself_goes_on_with_its_period() -> None:
    assert first_path(library([[1, 5, 6, 5, 6, 5, 6]]), 6) == [5, 6, 5, 6, 5, 6]
    assert first_path(library([[9, 9]]), 5) == [9] * 5


def test_nothing_is_matched_or_copied_across_a_border() -> None:
    corpus = [4, SEPARATOR, 6, 7, SEPARATOR, 8, 5, 6, SEPARATOR, 3]
    assert first_path(library([[4, 5, 6]], corpus=corpus)) == [7, -1, -1, -1]
    assert first_path(library([[4, SEPARATOR]], corpus=corpus)) == [-1] * 4


def test_what_lies_behind_an_end_is_not_there() -> None:
    lib = library([[2, 3, 1]], [[2, 3]], [0, 2])
    assert lib.texts_SL[0, 3] == 1, "behind the text stands what would match"
    assert first_path(lib) == [-1] * 4


def test_paths_that_agree_are_one_and_branch_where_they_part() -> None:
    lib = library([[1]], corpus=[1, 2, 3, 4, 5, 6, SEPARATOR, 1, 2, 3, 7, SEPARATOR, 1, 2, 8, SEPARATOR])
    found = suffix_candidates(lib, torch.tensor([0]), LABELS, torch.zeros(1, dtype=torch.int64), width=5)
    assert list(offered(found, 0)) == [(2,), (2, 8), (2, 3), (2, 3, 7), (2, 3, 4), (2, 3, 4, 5)]
    parents = found[1][0].tolist()
    assert (parents[6], parents[7], parents[11]) == (0, 6, 6), "below the first place that has the same path"


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("width", [1, 3, 4, 9])
def test_the_reference_offers_what_the_cpu_offers(width: int, own: bool) -> None:
    for seed in range(12, 24):
        lib, texts_M, shifts = random_library(seed, own=own), torch.tensor([4, 0, 1, 5, 3, 2]), torch.arange(6) * 10_000
        search = (suffix_candidates_host, suffix_candidates_reference)
        found, expected = (each(lib, texts_M, LABELS, shifts, width=width) for each in search)
        assert torch.equal(found[0], expected[0])
        there = expected[0] >= 0
        assert all(torch.equal(mine[there], theirs[there]) for mine, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("sizes", [(40, 25, 60), (1500, 0, 0), (30, 1100, 1030), (30, 0, 2100)])
def test_the_kernel_offers_what_the_reference_offers(
    sizes: tuple[int, int, int], own: bool, kernel_device: torch.device
) -> None:
    for seed, width in ((1, 1), (2, 5), (3, 8)):
        lib, texts_M = random_library(seed, sizes, own), torch.tensor([5, 0, 1, 4, 3])
        shifts = torch.arange(6) * 10_000
        arguments = moved((lib, texts_M, LABELS, shifts), kernel_device)
        found = tuple(values.cpu() for values in kernel.suffix_candidates_triton(*arguments, width=width))
        expected = suffix_candidates_reference(lib, texts_M, LABELS, shifts, width=width)
        assert torch.equal(found[0], expected[0])
        there = expected[0] >= 0
        for mine, theirs in zip(found[1:], expected[1:], strict=True):
            assert torch.equal(mine[there], theirs[there])
        for values in (found, expected):  # of what is not there, whoever reads it reads within bounds
            assert ((values[1] >= -1) & (values[1] < torch.arange(values[1].shape[1]))).all()
            labels = values[2] - shifts[texts_M, None]
            assert ((labels >= 0) & (labels < LABELS.numel())).all()
