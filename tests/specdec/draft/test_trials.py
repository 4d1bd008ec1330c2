"""Drafters and plain rounds are tried, in a simulated engine, for as much of the time as that may take."""

import numpy as np
import pytest

from tests.specdec.draft.simulation import Engine, cpu_like, flat, make_planner, steep


@pytest.mark.parametrize(("dear", "pays"), [(0.050, False), (0.016, True)])
def test_what_the_host_takes_counts_where_it_is_slower_than_the_device(dear: float, pays: bool) -> None:
    """Two members: 0.014 s a plain round; drafting gives about four tokens each for 0.017 on the device."""
    engine = Engine(make_planner(cpu_like, 2), cpu_like, [0.8, 0.8], 0.0003, host=(0.010, dear)).run(800)
    drafted = np.mean([counts.sum() > 0 for counts in engine.drafted[-400:]])
    assert drafted > 0.9 if pays else drafted < 0.05
    assert engine.speed > 0.98 * 2 / cpu_like(2)


def test_rows_that_the_host_takes_as_long_for_are_free() -> None:
    engine = Engine(make_planner(steep), steep, [0.8]).run(200)
    few = np.mean(engine.drafted[-100:])
    engine.host = (0.100, 0.100)
    assert np.mean(engine.run(300).drafted[-100:]) > few + 2


@pytest.mark.parametrize("lead", [1.2, 3.0])
def test_plain_rounds_are_tried_for_a_hundredth_of_the_time_unless_drafting_pays_clearly(lead: float) -> None:
    engine = Engine(make_planner(flat), flat, [0.95]).run(100)
    engine.host = (0.030, 0.030 * 12 / lead)  # the planner counts on about so many tokens of a round
    engine.run(100)
    asked = [engine.round().drafting for _ in range(2000)]
    plain = trials([not drafts for drafts in asked])
    if lead > 2:
        assert sum(plain) < 10
    else:
        assert set(plain) == {4}
        assert len(plain) > 4
        assert sum(plain) * (1 - 1 / lead) < 0.015 * 2000


def test_where_the_host_becomes_faster_without_drafters_that_is_found_out() -> None:
    engine = Engine(make_planner(flat), flat, [0.6]).run(100)
    engine.host = (0.040, 0.060)
    engine.run(200)
    assert np.mean([counts.sum() > 0 for counts in engine.drafted[-100:]]) > 0.8
    engine.host = (0.020, 0.060)
    engine.run(1500)
    assert np.mean([counts.sum() > 0 for counts in engine.drafted[-200:]]) < 0.1


def trials(asked: list[bool]) -> list[int]:
    """Lengths of the runs of rounds in which drafters ran."""
    edges = np.flatnonzero(np.diff([False, *asked, False]))
    lengths: list[int] = (edges[1::2] - edges[::2]).tolist()
    return lengths


def test_where_drafting_does_not_pay_it_is_tried_for_a_hundredth_of_the_time() -> None:
    engine = Engine(make_planner(steep), steep, [0.0], 0.010)
    asked = [engine.round().drafting for _ in range(2000)]
    assert len(trials(asked)) > 4
    assert set(trials(asked)[1:]) == {2}
    assert sum(asked) * engine.drafting < 0.014 * engine.seconds


def test_a_new_sequence_is_tried_at_once_but_not_every_one() -> None:
    engine = Engine(make_planner(steep), steep, [0.0], 0.010).run(1000)
    asked = []
    for _ in range(20):
        engine.planner.enter(0, 0.0)
        asked += [engine.round().drafting for _ in range(30)]
    assert trials(asked)[0] == 2
    assert asked[0]
    assert sum(asked) * engine.drafting < 0.05 * len(asked) * steep(1)


def test_drafts_come_back_when_they_become_right() -> None:
    engine = Engine(make_planner(cpu_like, prior=0.7), cpu_like, [0.0], 0.0003).run(200)
    assert np.mean([counts.sum() for counts in engine.drafted[100:]]) < 0.5
    engine.chances = [0.99]
    engine.run(500)
    assert np.mean([counts.sum() for counts in engine.drafted[-100:]]) > 12
