"""What rounds cost: interpolated, steady under outliers, never less for more rows."""

from collections.abc import Callable

import numpy as np
import pytest

from specdec.draft.cost import COST_BUCKETS, CostTable, context_bucket

MEASURED_ROWS = (1, 2, 4, 8, 16, 32, 64)


def cpu_like(rows: int) -> float:
    return 0.0135 + 0.0004 * rows


def measured(cost: Callable[[int], float] = cpu_like, context: int = 256) -> CostTable:
    table = CostTable()
    for rows in MEASURED_ROWS:
        table.observe(rows, rows, context, cost(rows))
    return table


def seconds(table: CostTable, rows: int, context: int = 256, distinct: float | None = None) -> float:
    return float(table.seconds(np.array([rows]), np.array([rows if distinct is None else distinct]), context)[0])


def test_before_any_measurement_every_round_costs_the_same() -> None:
    rows = np.array([1, 64, 5000])
    assert CostTable().seconds(rows, rows, 1).tolist() == [1.0, 1.0, 1.0]


def test_costs_interpolate_and_never_fall() -> None:
    table = CostTable()
    for rows in (1, 16, 64):
        table.observe(rows, rows, 100, cpu_like(rows))
    table.observe(8, 8, 100, 0.001)  # a clock that jumped
    many = np.arange(1, 200)
    found = table.seconds(many, many, 100)
    assert (np.diff(found) >= 0).all()
    assert found[31] == pytest.approx(cpu_like(32), rel=0.02)
    assert found[127] == pytest.approx(cpu_like(128), rel=0.05)


def test_few_rows_cost_what_the_bucket_costs_that_they_are_padded_to() -> None:
    table = measured()
    assert seconds(table, 5) == seconds(table, 6) < seconds(table, 7) == seconds(table, 8)


def test_a_context_without_measurements_borrows_the_nearest_shape() -> None:
    table = measured()
    table.observe(1, 1, 4096, 1.5 * cpu_like(1))
    assert seconds(table, 32, 4096) == pytest.approx(1.5 * cpu_like(32), rel=0.05)
    assert seconds(table, 32) == pytest.approx(cpu_like(32))


def test_one_outlier_moves_a_cost_little() -> None:
    table = CostTable()
    for _ in range(5):
        table.observe(1, 1, 100, 0.01)
    table.observe(1, 1, 100, 10.0)
    assert seconds(table, 1, 100) < 0.0111


def test_costs_follow_a_machine_that_changes() -> None:
    table = CostTable()
    for rows, spent in ((1, 1.0), (8, 2.0)):
        table.observe(rows, rows, 100, spent)
    assert seconds(table, 8, 100) == 2.0
    for _ in range(40):
        table.observe(8, 8, 100, 3.0)
    assert seconds(table, 8, 100) > 2.5


def test_drafting_is_counted_beside_the_rows() -> None:
    table = measured()
    assert table.drafting(1) == 0.0
    table.observe_drafting(1, 0.003)
    before = seconds(table, 4)
    for _ in range(50):
        table.observe(4, 4, 256, before + 0.003, drafted_for=1)
    assert seconds(table, 4) == pytest.approx(before)
    for _ in range(100):
        table.observe_drafting(1, 0.001)
    assert table.drafting(1) == pytest.approx(0.001, rel=0.01)
    table.observe_drafting(1, 1.0)
    assert table.drafting(1) == 0.001, "one that was kept waiting counts for nothing"
    table.observe_drafting(1, -1.0)
    assert table.drafting(1) == 0.001


def test_rounds_follow_each_other_as_fast_as_the_slower_of_host_and_device() -> None:
    table, rows = measured(), np.array([2, 16])
    table.observe_drafting(2, 0.003)
    for drafting, spent in ((False, 0.001), (True, 0.018)):
        for cold in (0.1, 0.1, 0.0, 0.0, 0.0):
            table.observe_host(2, drafting, spent + cold)
    assert table.without_drafting(2, 2, 256) == pytest.approx(cpu_like(2))
    assert table.with_drafting(rows, rows, 2, 256).tolist() == pytest.approx([0.018, cpu_like(16) + 0.003])
    assert table.trial(2, 2, 256) == pytest.approx(0.118), "the first rounds of a kind are dearer"
    before = table.host_version
    for _ in range(12):
        table.observe_host(2, False, 0.050)
    assert table.host_version == before + 1
    assert table.without_drafting(2, 2, 256) == 0.050
    assert table.plain(2, 256) == pytest.approx(cpu_like(2)), "what the device takes is another matter"
    assert table.without_drafting(1, 1, 256) == pytest.approx(cpu_like(1)), "nothing is known of one member"


def test_what_the_host_took_long_ago_is_forgotten_while_it_is_only_tried() -> None:
    table = measured()
    for _ in range(11):
        table.observe_host(2, True, 1.0)
    known = []
    for _ in range(9):
        for drafting in (False, False, False, True, True):
            table.observe_host(2, drafting, 0.001)
        known.append(float(table.with_drafting(np.array([2]), np.array([2]), 2, 256)[0]) == 1.0)
    assert known == [True] * 7 + [False] * 2


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_what_repeated_rows_cost_is_learned(share: float) -> None:
    table = measured()
    assert seconds(table, 16, distinct=2) == pytest.approx(cpu_like(16)), "in full until it is known"
    spent = cpu_like(2) + share * (cpu_like(16) - cpu_like(2))
    for _ in range(80):
        table.observe(16, 2, 256, spent)
    assert seconds(table, 16, distinct=2) == pytest.approx(spent, rel=0.01)
    half = cpu_like(2) + 3.5 * 0.0004  # expected numbers of rows are not whole, and are not padded
    assert seconds(table, 16, distinct=5.5) == pytest.approx(half + share * (cpu_like(16) - half), rel=0.01)
    assert seconds(table, 16) == pytest.approx(cpu_like(16)), "rounds whose rows all differ cost what they did"


def test_a_shift_moves_every_round_alike() -> None:
    table = measured()
    before = [seconds(table, rows) for rows in (1, 8, 64)]
    table.shift(before[0] + 0.002, 256)
    assert [seconds(table, rows) for rows in (1, 8, 64)] == pytest.approx([cost + 0.002 for cost in before])


def test_contexts_are_told_apart_by_powers_of_two() -> None:
    found = [context_bucket(context) for context in (0, 1, 256, 257, 512, 513, 1024, 1025, 1 << 40)]
    assert found == [0, 0, 0, 1, 1, 2, 2, 3, 15]
    assert (np.diff(COST_BUCKETS) > 0).all()


def test_a_round_never_costs_nothing_however_long_drafting_takes_on_average() -> None:
    table = CostTable()
    table.observe_drafting(1, 1.0)
    for rows, distinct in ((1, 1), (8, 8), (8, 3), (1, 1), (8, 3)):
        table.observe(rows, distinct, 256, 0.01, drafted_for=1)
    assert seconds(table, 1) > 0
    assert seconds(table, 8, distinct=3) > 0


@pytest.mark.parametrize("seed", range(8))
def test_a_wider_round_is_never_held_to_be_cheaper_whatever_was_measured(seed: int) -> None:
    """Nor one in which fewer rows repeat others."""
    rng, table = np.random.default_rng(seed), measured()
    for _ in range(200):
        rows = int(rng.integers(2, 90))
        distinct = rows if rng.random() < 0.3 else int(rng.integers(1, rows))
        spent = cpu_like(distinct) + rng.random() * (cpu_like(rows) - cpu_like(distinct))
        table.observe(rows, distinct, int(rng.integers(1, 2000)), spent * rng.uniform(0.5, 2.0))
    many = np.arange(1, 300)
    for context in (100, 1000, 5000):
        for fewest in (1.0, 2.5, 17.0, 80.0):
            wide = many[many >= fewest]
            assert (np.diff(table.seconds(wide, np.full(len(wide), fewest), context)) >= -1e-12).all()
        for rows in (12, 64, 100, 299):
            differ = np.linspace(1.0, rows, 50)
            assert (np.diff(table.seconds(np.full(50, rows), differ, context)) >= -1e-12).all()


def test_what_repeated_rows_cost_is_borrowed_where_it_was_not_seen() -> None:
    """Else a round that nobody has tried looks as dear as if all of its rows differed, and so nobody ever tries it."""
    table = measured()
    for _ in range(60):
        table.observe(16, 2, 256, cpu_like(2) + 0.1 * (cpu_like(16) - cpu_like(2)))
    for rows in (4, 8, 32):
        assert seconds(table, rows, distinct=2) == pytest.approx(cpu_like(2) + 0.1 * (cpu_like(rows) - cpu_like(2)), rel=0.01)


def test_a_lasting_change_moves_a_cost_all_the_way_up_and_down() -> None:
    table = measured()
    for factor in (1.5, 0.8):
        for _ in range(150):
            for rows in MEASURED_ROWS:
                table.observe(rows, rows, 256, factor * cpu_like(rows))
        for rows in MEASURED_ROWS:
            assert seconds(table, rows) == pytest.approx(factor * cpu_like(rows), rel=0.03)


def test_an_outlier_moves_a_cost_little_in_either_direction() -> None:
    for clock, moved in ((1000.0, 0.101), (1e-6, 0.051)):
        table = measured()
        table.observe(8, 8, 256, clock)
        assert seconds(table, 8) == pytest.approx(cpu_like(8), rel=moved)
        assert seconds(table, 1) == pytest.approx(cpu_like(1), rel=0.001)
