"""Where the end of a text stood before, held to a search by hand, on the CPU, in Triton's interpreter and on the GPU."""

import pytest
import torch
from torch import Tensor

from specdec.kernels.suffix_match import SEPARATOR, suffix_match
from specdec.kernels.suffix_match.reference import suffix_match_reference


def by_hand(text: list[int], corpus: list[int], longest: int) -> tuple[int, int]:
    """(place of what followed, length) of the longest match; the last of equal ones."""
    best = (0, len(corpus) + len(text))
    for start, words in ((0, corpus), (len(corpus), text)):
        for place in range(1, len(words)):
            length = 0
            while (
                length < min(longest, place, len(text))
                and words[place - 1 - length] == text[-1 - length]
                and text[-1 - length] != SEPARATOR
            ):
                length += 1
            if length:
                best = max(best, (length, start + place)) if best[0] else (length, start + place)
    return best[1], best[0]


def cases(rooms: tuple[int, ...] = (1, 2, 40, 1500)) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Histories, lengths and corpora of few different tokens, so that matches are long and many."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for room in rooms:
        for size in (0, 1, 30, 1100):
            history = torch.randint(SEPARATOR, 3, (4, room), generator=generator, dtype=torch.int32)
            lengths = torch.randint(1, room + 1, (4,), generator=generator)
            lengths[0], lengths[1] = room, 1
            history[2, lengths[2] :] = 0  # what lies behind the end looks like a match and is none
            corpus = torch.randint(SEPARATOR, 3, (size,), generator=generator, dtype=torch.int32)
            found.append((history, lengths, corpus))
    return found


@pytest.mark.parametrize("longest", [1, 5, 16])
def test_the_reference_finds_what_a_search_by_hand_finds(longest: int) -> None:
    for history, lengths, corpus in cases(rooms=(1, 2, 40, 300)):
        ends, matched = suffix_match(history, lengths, corpus, longest)
        for row in range(len(history)):
            text = history[row, : lengths[row]].tolist()
            assert (int(ends[row]), int(matched[row])) == by_hand(text, corpus.tolist(), longest)


def test_the_text_itself_comes_before_the_corpus_and_the_recent_before_the_old() -> None:
    history = torch.tensor([[5, 6, 7, 5, 6, 8, 5, 6]], dtype=torch.int32)
    lengths = torch.tensor([8])
    nothing = torch.zeros(0, dtype=torch.int32)
    assert [t.tolist() for t in suffix_match(history, lengths, nothing, 16)] == [[5], [2]]
    corpus = torch.tensor([5, 6, 9], dtype=torch.int32)
    assert [t.tolist() for t in suffix_match(history, lengths, corpus, 16)] == [[3 + 5], [2]]
    longer = torch.tensor([8, 5, 6, 9], dtype=torch.int32)
    assert [t.tolist() for t in suffix_match(history, lengths, longer, 16)] == [[3], [3]]


def agree(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(found, expected, strict=True))


def test_the_kernel_finds_what_the_reference_finds(triton_interpreter: None) -> None:
    kernel = pytest.importorskip("specdec.kernels.suffix_match.kernel")
    for longest in (1, 16):
        for history, lengths, corpus in cases():
            expected = suffix_match_reference(history, lengths, corpus, longest)
            assert agree(kernel.suffix_match_triton(history, lengths, corpus, longest), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernel_finds_the_same_on_the_gpu() -> None:
    for history, lengths, corpus in cases(rooms=(1, 2, 40, 1500, 40_000)):
        expected = suffix_match_reference(history, lengths, corpus, 16)
        assert agree(suffix_match(history.cuda(), lengths.cuda(), corpus.cuda(), 16), expected)
