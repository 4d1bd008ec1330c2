"""Where the scheduler keeps states for prefixes, and what becomes of the marks."""

from typing import Any, cast

from specdec.cache.marks import MarkBook
from specdec.engine.scheduler import Scheduler
from specdec.engine.sequence import Sequence, Turn
from specdec.request import Request, SamplingParams

PAGE = 16
TEXT = tuple(range(100, 180))


def scheduler(num_marks: int | None = 4, **fields: Any) -> Scheduler:
    sizes = {
        "num_pages": 20,
        "page_size": PAGE,
        "max_batch": 4,
        "chunk_tokens": 1000,
        "max_model_len": 500,
        "max_tree_rows": 64,
    }
    marks = None if num_marks is None else MarkBook(num_marks)
    return Scheduler(**{**sizes, "prefix_cache": True, "marks": marks} | fields)


def sequence(*tokens: int) -> Sequence:
    request = Request(request_id=str(tokens), prompt_ids=tokens, sampling=SamplingParams(max_tokens=200))
    nothing = cast(Any, None)
    return Sequence(request=request, sink=nothing, stop_ids=frozenset(), stream=nothing, tokens=list(tokens), arrival=0.0)


def read(books: Scheduler, *tokens: int, kept: bool = True) -> tuple[Turn, Sequence]:
    """A prompt comes, is read in one round, and goes."""
    books.add(one := sequence(*tokens))
    (turn,) = books.schedule(underway=False) or []
    books.check(underway=True)
    books.commit(one, turn.first + turn.chunk)
    books.settle_marks(turn, kept)
    books.remove(one)
    books.check()
    return turn, one


def positions(turn: Turn) -> list[int]:
    return [position for position, _ in turn.marks]


def test_two_prompts_that_part_keep_a_state_there_for_the_third() -> None:
    books = scheduler()
    read(books, *TEXT[:40])
    turn, second = read(books, *TEXT[:20], *range(30))
    assert (second.num_prefix_hits, positions(turn)) == (0, [16, 48])
    turn, third = read(books, *TEXT[:20], *range(50, 60))
    assert (third.num_prefix_hits, turn.first) == (16, 16)


def test_a_void_turn_keeps_nothing_and_gives_its_marks_back() -> None:
    books = scheduler(num_marks=1)
    for _ in range(3):
        turn, _ = read(books, *TEXT[:40], kept=False)
        assert (turn.first, positions(turn)) == (0, [32])
        books.settle_marks(turn, kept=False)  # twice does not count
        books.check()


def test_a_page_that_is_forgotten_takes_its_state_with_it() -> None:
    """The same tokens may come again."""
    books = scheduler(num_marks=2, num_pages=5)
    read(books, *TEXT[:40])
    if (held := books.pages.allocate(5)) is not None:
        books.pages.release(held.tolist())
    read(books, *TEXT[:40], kept=False)  # the pages are known again, the state is not
    assert read(books, *TEXT[:40])[0].first == 0
