"""Steady traffic: arrivals, the measured stretch, its figures, prompts, and the loop over an engine that follows a script."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from specdec.bench import suite
from specdec.bench.load import results
from specdec.bench.load.measures import Measures, Trace, measure
from specdec.bench.load.prompts import Question, RandomQuestions, SuiteQuestions
from specdec.bench.load.results import DRAFTED, PLAIN, Row
from specdec.bench.load.traffic import Closed, Limits, Open, Session, Window, poisson_times
from specdec.bench.statistics import tail
from specdec.errors import ConfigError


def test_poisson_arrivals_are_seeded_and_exponential() -> None:
    times = list(itertools.islice(poisson_times(4.0, 7), 4000))
    assert times == list(itertools.islice(poisson_times(4.0, 7), 4000))
    assert times != list(itertools.islice(poisson_times(4.0, 8), 4000))
    gaps = np.diff([0.0, *times])
    assert (gaps > 0).all()
    assert gaps.mean() == pytest.approx(0.25, rel=0.05)
    assert gaps.std() == pytest.approx(0.25, rel=0.1)
    assert (gaps > 0.25).mean() == pytest.approx(math.exp(-1), abs=0.03)


def test_a_closed_loop_replaces_what_ends_and_measures_after_the_warm_up() -> None:
    session = Session(Closed(3), Limits(warm_up=2, requests=2), available=100)
    session.begin(10.0)
    assert session.due(10.0) == [10.0] * 3
    session.see(11.0, ended=1)
    assert session.due(11.0) == [11.0]
    assert session.idle(11.0) is None
    session.see(12.0, ended=2)
    assert session.due(12.0) == [12.0]
    session.see(13.0, ended=3)
    assert not session.over
    session.see(14.0, ended=4)
    assert (session.over, session.window) == (True, Window(12.0, 14.0))


def test_seconds_end_the_stretch_too() -> None:
    session = Session(Closed(1), Limits(warm_up=0, requests=1000, seconds=5.0), available=1000)
    session.begin(1.0)
    session.see(5.9, ended=1)
    assert not session.over
    session.see(6.1, ended=1)
    assert session.window == Window(1.0, 6.1)


def test_an_open_loop_sends_what_has_arrived_whatever_has_ended() -> None:
    traffic = Open(2.0, seed=3)
    first, second, third = itertools.islice(poisson_times(2.0, 3), 3)
    session = Session(traffic, Limits(warm_up=0, requests=2), available=3)
    session.begin(0.0)
    assert session.idle(0.0) == first
    assert session.due(second) == [first, second]
    assert session.due(second) == []
    assert session.idle(second) == third - second


def test_an_open_loop_that_outruns_the_engine_ends_with_its_requests() -> None:
    session = Session(Open(1.0), Limits(warm_up=1, requests=50), available=3)
    session.begin(0.0)
    session.see(1.0, ended=1)
    assert len(session.due(100.0)) == 3
    session.see(100.0, ended=1)
    assert (session.over, session.window) == (True, Window(1.0, 100.0))
    never = Session(Open(1.0), Limits(warm_up=5, requests=50), available=3)
    never.begin(0.0)
    never.due(100.0)
    never.see(100.0, ended=1)
    assert (never.over, never.window) == (True, None)


def trace(due: float, arrivals: list[tuple[float, int]], ended: float | None, **fields: Any) -> Trace:
    return Trace(due=due, prompt_tokens=10, arrivals=arrivals, ended=ended, **fields)


def test_what_counts_is_what_comes_in_the_window() -> None:
    traces = [
        trace(0.0, [(1.0, 1), (4.0, 2), (6.0, 3)], 6.0, steps=3, accepted=3, cached_tokens=4),  # begun before it
        trace(5.5, [(7.0, 1), (8.0, 1), (12.0, 5)], 12.0, steps=9, accepted=9),  # ends after it
        trace(10.5, [(11.0, 1)], None),  # comes after it
    ]
    found = measure(traces, Window(5.0, 10.0))
    assert (found.seconds, found.requests) == (5.0, 1)
    assert found.output_tokens_per_second == (3 + 1 + 1) / 5.0
    assert found.requests_per_second == 1 / 5.0
    assert found.prompt_tokens_per_second == 10 / 5.0
    assert (found.first_token_seconds_p50, found.first_token_seconds_p99) == (1.5, 1.5)
    assert found.between_tokens_seconds_p50 == pytest.approx(2.0 / 3)  # three times 2/3, once 1
    assert found.between_tokens_seconds_p99 == pytest.approx(1.0, abs=0.02)
    assert found.acceptance_length == 2.0
    assert found.cached_prompt_share == 0.4
    assert found.mean_in_flight == pytest.approx((1.0 + 4.5) / 5.0)


def test_the_windows_edges_are_open_and_closed() -> None:
    found = measure([trace(0.0, [(1.0, 1), (2.0, 1)], 2.0)], Window(1.0, 2.0))
    assert found.output_tokens_per_second == 1.0
    assert found.first_token_seconds_p50 is None


def test_events_of_a_server_weigh_as_many_tokens_as_they_bring() -> None:
    found = measure([trace(0.0, [(1.0, 0), (2.0, 2)], 2.0, tokens_per_unit=1.5)], Window(0.0, 2.0))
    assert found.output_tokens_per_second == 1.5
    assert found.between_tokens_seconds_p50 == pytest.approx(1 / 3)
    assert found.first_token_seconds_p50 == 1.0


def test_percentiles_lie_between_values_and_count_them_as_often_as_told() -> None:
    found = tail([float(i) for i in range(101)])
    assert found is not None
    assert (found.p50, found.p99) == (50.0, 99.0)
    weighed = tail([1.0, 2.0], [3, 1])
    assert weighed is not None
    assert weighed.p50 == 1.0
    assert tail([]) is None


class Letters:
    """A tokenizer whose tokens are characters."""

    def __init__(self, has_chat_template: bool = True) -> None:
        self.has_chat_template = has_chat_template

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text]

    def chat(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None) -> list[int]:
        return self.encode("<" + messages[0]["content"])


PROMPTS = [suite.Prompt(id=name, content_type="chat", turns=(name, "more")) for name in ("one", "two", "x" * 200)]


def test_no_prompt_of_a_suite_comes_twice() -> None:
    questions = SuiteQuestions(PROMPTS, Letters(), room=100)
    asked = [questions.question(run, number).message for run in range(3) for number in range(6)]
    assert asked[:3] == ["one", "two", "(0.1) one"]
    assert len(set(asked)) == len(asked)
    assert bytes(questions.question(0, 0).prompt_ids) == b"<one"
    assert "2 prompts, 1 left out as too long" in questions.note
    assert questions.longest == (21, 21)  # with the longest tag
    assert SuiteQuestions(PROMPTS, Letters(), 100, nonce="7.").question(0, 0).message == "(7.0.0) one"
    with pytest.raises(ConfigError, match="No prompt has at most 5"):
        SuiteQuestions(PROMPTS, Letters(), room=5)


def test_without_a_template_prompts_are_tokens() -> None:
    assert SuiteQuestions(PROMPTS, Letters(has_chat_template=False), room=100).question(0, 1) == Question(tuple(b"two"))


def test_random_prompts_differ_and_come_back_with_their_seed() -> None:
    questions = RandomQuestions(8, 50, seed=1)
    asked = {questions.question(run, number).prompt_ids for run in range(3) for number in range(5)}
    assert len(asked) == 15
    assert all(len(ids) == 8 and max(ids) < 50 for ids in asked)
    assert RandomQuestions(8, 50, seed=1).question(2, 4) == questions.question(2, 4)


def measures(speed: float, **fields: Any) -> Measures:
    return replace(measure([trace(0.0, [(1.0, 1), (2.0, 1)], 2.0)], Window(0.0, 2.0)), output_tokens_per_second=speed, **fields)


def test_ratios_are_taken_within_repeats() -> None:
    rows = [
        Row("8 in flight", PLAIN, [measures(10.0), measures(1.0)]),
        Row("8 in flight", DRAFTED, [measures(20.0), measures(2.0)]),
        Row("8 in flight", DRAFTED, [measures(15.0), measures(1.5, acceptance_length=1.0)], "biases"),
    ]
    (level,) = results.summarise(rows)
    same = {"low": 2.0, "median": 2.0, "high": 2.0}
    assert level["tokens_per_second_ratios"]["drafted / plain"] == same
    assert level["tokens_per_second_ratios"]["drafted beside biases / drafted"]["median"] == 0.75
    assert level["contenders"]["plain"]["output_tokens_per_second"] == {"low": 1.0, "median": 5.5, "high": 10.0}
    assert level["contenders"]["drafted beside biases"]["acceptance_length"] is None
    for table in (results.speed_table, results.latency_table, results.ratio_table):
        header, cells = table([level])
        assert all(len(row) == len(header) for row in cells)
    assert results.speed_table([level])[1][0][:2] == ["8 in flight, plain", "5.50 (1.00..10.00)"]
