"""Who runs, who waits, whose pages go: the scheduler without a model, its rounds settled at once or one round late."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from specdec.cache.marks import MarkBook
from specdec.engine.scheduler import Scheduler
from specdec.engine.sequence import NO_SLOT, Sequence, Turn
from specdec.request import Request, SamplingParams, SpeculationParams


@dataclass
class NoText:
    """Stands in for a TextStream where no text is made."""

    pushed: list[int] = field(default_factory=list)


def scheduler(**changed: Any) -> Scheduler:
    settings: dict[str, Any] = {
        "num_pages": 8,
        "page_size": 4,
        "max_batch": 4,
        "chunk_tokens": 32,
        "max_model_len": 64,
        "max_tree_rows": 256,
        "prefix_cache": False,
    }
    return Scheduler(**settings | changed)


def sequence(name: str, num_tokens: int, arrival: float = 0.0, first_token: int = 0, **asked: Any) -> Sequence:
    tokens = tuple(range(first_token, first_token + num_tokens))
    speculation = SpeculationParams(**asked.pop("speculation", {}))
    request = Request(
        request_id=name, prompt_ids=tokens, sampling=SamplingParams(**{"max_tokens": 60} | asked), speculation=speculation
    )
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


def enqueue(s: Scheduler, underway: bool = False, nodes: int = 1) -> list[Turn] | None:
    """The next round, with trees of so many nodes where that is allowed, as the engine enqueues it."""
    turns = s.schedule(underway)
    for turn in turns or []:
        grown = turn.sequence
        if turn.chunk:
            grown.num_enqueued = turn.first + turn.chunk
        if turn.most_nodes:
            grown.ahead += min(nodes, turn.most_nodes)
            grown.trees_underway += 1
    return turns


def settle(s: Scheduler, turns: list[Turn], nodes: int = 1, accepted: int = 0) -> None:
    """What the engine does when the outcome of a round is known."""
    for turn in turns:
        grown = turn.sequence
        if grown.epoch != turn.epoch:
            continue
        if turn.chunk:
            s.commit(grown, turn.first + turn.chunk)
        if turn.most_nodes:
            grown.ahead -= min(nodes, turn.most_nodes)
            grown.trees_underway -= 1
            grown.tokens += [7] * (accepted + 1)
            s.commit(grown, len(grown.tokens) - 1)
    s.check(underway=True)  # marks are settled by themselves


def run_round(s: Scheduler) -> list[tuple[str, int, bool]]:
    """A round that accepts nothing, settled at once."""
    turns = enqueue(s)
    assert turns is not None
    settle(s, turns)
    return [(turn.sequence.request_id, turn.chunk, turn.most_nodes > 0) for turn in turns]


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


def test_chunks_go_on_before_the_outcome_of_the_first_is_known() -> None:
    s = scheduler(chunk_tokens=3)
    s.add(sequence("a", 8))
    rounds = [enqueue(s, underway=number > 0) for number in range(4)]
    assert [[(turn.first, turn.chunk, turn.most_nodes) for turn in turns or []] for turns in rounds] == [
        [(0, 3, 0)],
        [(3, 3, 0)],
        [(6, 1, 1)],
        [(0, 0, rounds[3][0].most_nodes if rounds[3] else -1)],
    ]
    for turns in rounds:
        settle(s, turns or [])
    assert s.running[0].num_cached == 9, "two tokens came, and the last one is not cached yet"


def test_the_round_that_ends_a_prompt_brings_its_root_alone() -> None:
    s = scheduler()
    s.add(sequence("a", 5))
    turns = enqueue(s)
    assert turns is not None
    assert [(turn.chunk, turn.most_nodes) for turn in turns] == [(4, 1)]


@pytest.mark.parametrize(
    ("asked", "most"),
    [
        ({"max_tokens": 3}, 2),  # one token is underway
        ({"max_tokens": 60}, 25),  # positions left
        ({"speculation": {"enabled": False}}, 1),
        ({"speculation": {"max_nodes": 4}}, 4),
    ],
)
def test_a_tree_is_no_larger_than_what_may_come_of_it(asked: dict[str, Any], most: int) -> None:
    s = scheduler(max_model_len=30)
    s.add(sequence("a", 5, **asked))
    enqueue(s)
    turns = enqueue(s, underway=True)
    assert turns is not None
    assert [turn.most_nodes for turn in turns] == [most]


def test_who_has_all_that_he_asked_for_underway_sits_out() -> None:
    s = scheduler()
    s.add(sequence("a", 5, max_tokens=2))
    first, second = enqueue(s), enqueue(s, underway=True)
    assert first
    assert second
    assert enqueue(s, underway=True) == []
    settle(s, first)
    settle(s, second)
    assert len(s.running[0].tokens) == 7


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


def test_no_more_run_at_once_than_a_round_has_rows_for() -> None:
    s = scheduler(num_pages=30, max_batch=9, max_tree_rows=3)
    for number in range(5):
        s.add(sequence(str(number), 2, arrival=number))
    assert len(run_round(s)) == 3


def test_the_last_to_come_is_preempted_and_resumes_where_it_was() -> None:
    s = scheduler(num_pages=5)
    first, second = sequence("a", 7, arrival=1), sequence("b", 7, arrival=2)
    s.add(first)
    s.add(second)
    while s.num_preemptions == 0:
        run_round(s)
    assert names(s.running) == ["a"]
    assert names(list(s.waiting)) == ["b"]
    assert (second.num_cached, second.pages, second.slot) == (0, [], NO_SLOT)
    produced = list(second.tokens)
    s.remove(first)
    assert run_round(s) == [("b", len(produced) - 1, True)]
    assert second.tokens[:-1] == produced


def test_what_was_underway_for_a_sequence_that_left_is_void() -> None:
    s = scheduler(max_batch=1)
    a, b = sequence("a", 3), sequence("b", 3)
    s.add(a)
    s.add(b)
    turns = enqueue(s)
    assert turns is not None
    slot = a.slot
    s.remove(a)
    assert [turn.epoch == turn.sequence.epoch for turn in turns] == [False]
    later = enqueue(s, underway=True)
    settle(s, turns)
    assert a.tokens == [0, 1, 2]
    assert b.slot == slot, "the slot is another's by now"
    assert later is not None
    settle(s, later)
    assert len(b.tokens) == 4


def test_nobody_is_preempted_for_tokens_that_may_not_come() -> None:
    s = scheduler(num_pages=5)
    a, b = sequence("a", 7, arrival=1), sequence("b", 7, arrival=2)
    s.add(a)
    s.add(b)
    first = enqueue(s)
    assert first is not None
    settle(s, first)
    assert s.grow(a, 12), "the page that is left, for drafts"
    second = enqueue(s, nodes=5)
    assert second is not None
    assert enqueue(s, underway=True) is None, "b may need a page, and it has to be known first"
    settle(s, second, nodes=5)
    assert s.num_preemptions == 0


def test_pages_are_told_to_whom_they_were_given() -> None:
    s = scheduler()
    a = sequence("a", 4)
    s.add(a)
    run_round(s)
    assert s.take_new_pages() == ([], [], []), "those of an entrance are told with it"
    assert [(entered.request_id, mark) for entered, mark in s.admitted] == [("a", None)]
    run_round(s)
    assert len(a.pages) == 2
    assert s.take_new_pages() == ([a.slot], [1], a.pages[1:])
    assert s.take_new_pages() == ([], [], []), "once"


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


def test_pages_of_a_spoilt_prompt_are_not_found() -> None:
    s = scheduler(prefix_cache=True)
    s.add(sequence("a", 9))
    assert s.schedule(underway=False) is not None
    s.running[0].spoilt = True
    s.commit(s.running[0], 8)
    s.remove(s.running[0])
    s.add(sequence("b", 9))
    assert run_round(s) == [("b", 8, True)]


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
    assert s.schedule(underway=False) == []


def reading(s: Scheduler, name: str, length: int, first_token: int = 0) -> Turn:
    """The turn of a new sequence that reads its prompt."""
    s.add(sequence(name, length, arrival=float(len(s.running)), first_token=first_token))
    turns = enqueue(s)
    assert turns is not None
    turn = next(turn for turn in turns if turn.sequence.request_id == name)
    for turn_ in turns:
        settle(s, [turn_])
    return turn


def positions(turn: Turn) -> list[int]:
    return [position for position, _ in turn.marks]


def test_where_prefixes_need_a_state_only_one_that_has_it_is_reused() -> None:
    s = scheduler(num_pages=20, prefix_cache=True, marks=MarkBook(2))
    first = reading(s, "a", 10)
    assert (positions(first), first.chunk) == ([8], 9), "behind the last full page"
    second = reading(s, "b", 10)
    assert second.chunk == 9, "the state was not kept yet"
    s.settle_marks(first, kept=True)
    third = reading(s, "c", 10)
    assert (third.chunk, third.marks) == (1, ()), "what it would keep is there"
    assert s.admitted[-1] == (third.sequence, first.marks[0][1])
    assert third.sequence.num_prefix_hits == 8


def test_a_state_that_was_void_is_not_kept() -> None:
    s = scheduler(num_pages=20, prefix_cache=True, marks=MarkBook(1))
    first = reading(s, "a", 10)
    s.settle_marks(first, kept=False)
    second = reading(s, "b", 10)
    assert (second.chunk, second.marks) == (9, first.marks)


def test_without_room_for_states_no_prefix_is_reused() -> None:
    s = scheduler(num_pages=20, prefix_cache=True, marks=MarkBook(0))
    assert [reading(s, name, 10).chunk for name in ("a", "b")] == [9, 9]
