"""States kept for prefixes: the longest prefix that has one, the oldest makes room."""

from hypothesis import given
from hypothesis import strategies as st

from specdec.cache.marks import MarkBook

DIGESTS = [bytes([number]) for number in range(6)]


def kept(book: MarkBook, digest: bytes) -> int:
    mark = book.take()
    assert mark is not None
    book.settle(mark, digest)
    return mark


def test_the_longest_prefix_with_a_state_is_found() -> None:
    book = MarkBook(4)
    assert book.longest(DIGESTS) == (0, None)
    second, fourth = kept(book, DIGESTS[1]), kept(book, DIGESTS[3])
    assert book.longest(DIGESTS) == (4, fourth)
    assert book.longest(DIGESTS[:3]) == (2, second)
    assert book.longest(DIGESTS[:1]) == (0, None)


def test_the_state_used_longest_ago_makes_room() -> None:
    book = MarkBook(2)
    first, second = kept(book, DIGESTS[0]), kept(book, DIGESTS[1])
    book.longest(DIGESTS[:1])
    assert book.take() == second
    assert book.longest(DIGESTS[:2]) == (1, first), "it was looked for since"


def test_without_room_nothing_is_kept() -> None:
    assert MarkBook(0).take() is None


def test_a_prefix_that_has_a_state_keeps_it() -> None:
    book = MarkBook(2)
    first = kept(book, DIGESTS[0])
    second = kept(book, DIGESTS[0])
    assert book.longest(DIGESTS[:1]) == (1, first)
    assert book.take() == second, "the later one is free again"


@given(st.lists(st.sampled_from(["take", "keep", "give back"]), max_size=40), st.integers(0, 3))
def test_no_mark_is_lost_or_given_twice(steps: list[str], size: int) -> None:
    book, taken, number = MarkBook(size), list[int](), 0
    for step in steps:
        if step == "take":
            mark = book.take()
            if mark is not None:
                assert mark not in taken
                taken.append(mark)
            else:
                assert len(taken) == size
        elif taken and step == "keep":
            number += 1
            book.settle(taken.pop(), DIGESTS[number % len(DIGESTS)])
        elif taken:
            book.settle(taken.pop(), None)
        book.check(underway=bool(taken))
    for _ in range(size - len(taken)):
        mark = book.take()
        assert mark is not None
        assert mark not in taken
        taken.append(mark)
    assert sorted(taken) == list(range(size))
