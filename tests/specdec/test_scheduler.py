"""Who runs, who waits, whose pages go: the scheduler without a model."""

from dataclasses import dataclass, field

from specdec.engine.scheduler import Scheduler
from specdec.engine.sequence import Sequence
from specdec.request import Request, SamplingParams


@dataclass
class NoText:
    """Stands in for a TextStream where no text is made."""

    pushed: list[int] = field(default_factory=list)


def scheduler(num_pages: int = 8, max_batch: int = 4, chunk_tokens: int = 32, prefix_cache: bool = False) -> Scheduler:
    return Scheduler(
        num_pages=num_pages, page_size=4, max_batch=max_batch, chunk_tokens=chunk_tokens, prefix_cache=prefix_cache
    )


def sequence(name: str, num_tokens: int, arrival: float = 0.0, first_token: int = 0) -> Sequence:
    tokens = tuple(range(first_token, first_token + num_tokens))
    request = Request(request_id=name, prompt_ids=tokens, sampling=SamplingParams(max_tokens=64))
    return Sequence(
        request=request,
        sink=lambda _output: None,
        stop_ids=frozenset(),
        stream=NoText(),  # type: ignore[arg-type]
        tokens=list(tokens),
        arrival=arrival,
    )


def names(sequences: "list[Sequence]") -> list[str]:
    return [s.request_id for s in sequences]


def run_round(s: Scheduler) -> list[tuple[str, int, bool]]:
    """Schedule, and do what an engine does that accepts nothing."""
    turns = s.schedule()
    for turn in turns:
        grown = turn.sequence
        cached = grown.num_cached + turn.num_chunk
        if turn.has_tree:
            grown.tokens.append(7)
            cached += 1
        s.commit(grown, cached)
    s.check()
    return [(turn.sequence.request_id, turn.num_chunk, turn.has_tree) for turn in turns]


def test_a_prompt_is_cut_into_chunks_that_share_the_budget() -> None:
    s = scheduler(chunk_tokens=5)
    s.add(sequence("a", 8, arrival=1))
    s.add(sequence("b", 4, arrival=2))
    assert run_round(s) == [("a", 5, False)]
    assert run_round(s) == [("a", 2, True), ("b", 3, True)]
    assert run_round(s) == [("a", 0, True), ("b", 0, True)]


def test_a_single_token_prompt_needs_no_chunk() -> None:
    s = scheduler()
    s.add(sequence("a", 1))
    assert run_round(s) == [("a", 0, True)]


def test_those_that_do_not_fit_wait_for_pages_and_for_a_place() -> None:
    s = scheduler(num_pages=4, max_batch=2)
    for number, (name, length) in enumerate([("a", 8), ("b", 9), ("c", 1)]):
        s.add(sequence(name, length, arrival=number))
    run_round(s)
    assert names(s.running) == ["a"], "b needs three pages, and c does not overtake it"
    s.remove(s.running[0])
    run_round(s)
    assert names(s.running) == ["b"], "one page is left, and it is b's to grow into"
    s.remove(s.running[0])
    run_round(s)
    assert names(s.running) == ["c"]


def test_the_last_to_come_is_preempted_and_resumes_where_it_was() -> None:
    s = scheduler(num_pages=5)
    first, second = sequence("a", 7, arrival=1), sequence("b", 7, arrival=2)
    s.add(first)
    s.add(second)
    while s.num_preemptions == 0:
        run_round(s)
    assert names(s.running) == ["a"]
    assert names(list(s.waiting)) == ["b"]
    assert second.num_cached == 0
    assert not second.pages
    produced = list(second.tokens)
    s.remove(first)
    assert run_round(s) == [("b", len(produced) - 1, True)]
    assert second.tokens[:-1] == produced


def test_a_shared_beginning_is_not_computed_again() -> None:
    s = scheduler(num_pages=12, prefix_cache=True)
    s.add(sequence("a", 9))
    assert run_round(s) == [("a", 8, True)]
    s.add(sequence("b", 9, arrival=1))
    s.add(sequence("c", 9, arrival=2, first_token=50))
    assert run_round(s) == [("a", 0, True), ("b", 0, True), ("c", 8, True)]
    a, b, c = s.running
    assert b.pages[:2] == a.pages[:2]
    assert b.num_prefix_hits == 8
    assert c.num_prefix_hits == 0
    s.remove(a)
    s.check()
    rest = s.pages.allocate(s.pages.num_available)
    assert rest is not None
    assert b.pages[0] not in rest


def test_finished_pages_serve_later_prompts_until_they_are_needed() -> None:
    s = scheduler(num_pages=4, prefix_cache=True)
    s.add(sequence("a", 9))
    run_round(s)
    s.remove(s.running[0])
    s.add(sequence("b", 9))
    assert run_round(s) == [("b", 0, True)]
    s.remove(s.running[0])
    s.add(sequence("other", 16, first_token=100))
    run_round(s)
    s.remove(s.running[0])
    s.add(sequence("c", 9))
    assert run_round(s) == [("c", 8, True)], "the other prompt took the pages"


def test_growth_beyond_the_pool_is_refused_and_changes_nothing() -> None:
    s = scheduler(num_pages=2)
    s.add(sequence("a", 5))
    run_round(s)
    a = s.running[0]
    before = list(a.pages)
    assert not s.grow(a, 9)
    assert a.pages == before
    assert s.grow(a, 8)


def test_a_waiting_sequence_can_leave() -> None:
    s = scheduler(max_batch=1)
    a, b = sequence("a", 3), sequence("b", 3)
    s.add(a)
    s.add(b)
    run_round(s)
    s.remove(b)
    s.remove(a)
    s.check()
    assert s.pages.num_held == 0
    assert s.schedule() == []
