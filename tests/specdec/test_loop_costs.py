"""What a round of the device loop is expected to take: measured where it was, else by the nearest that was."""

import pytest

from specdec.draft.cost import CostTable
from specdec.loop_costs import LoopCosts
from specdec.loop_members import LoopTime

CONTEXT = 100


def costs() -> LoopCosts:
    """Ten seconds for a row and one more for each other one, before anything is timed."""
    table = CostTable()
    for rows in (1, 2, 3, 4, 6, 8, 12, 16):
        table.observe(rows, CONTEXT, 9.0 + rows)
    return LoopCosts(table)


def test_before_a_round_was_timed_rows_that_differ_are_paid_for() -> None:
    assert costs().seconds(1, 8, 7.0, CONTEXT) == pytest.approx(17.0)
    assert costs().seconds(1, 8, 0.0, CONTEXT) == pytest.approx(10.0), "rows without a draft repeat others"
    assert costs().seconds(2, 4, 2.0, CONTEXT) == pytest.approx(13.0)


def test_between_rounds_with_drafts_and_without_the_time_is_what_is_expected_of_both() -> None:
    found = costs()
    found.observe(LoopTime(1, 4, 0, 1.0))
    found.observe(LoopTime(1, 4, 3, 4.0))
    assert [found.seconds(1, 4, drafts, CONTEXT) for drafts in (0.0, 1.5, 3.0)] == pytest.approx([1.0, 2.5, 4.0])


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (LoopTime(1, 4, 0, 1.0), 1.0 * 12 / 10),  # the same width, but without drafts
        (LoopTime(1, 4, 3, 2.6), 2.6 * 12 / 13),
        (LoopTime(1, 3, 2, 2.4), 2.4 * 12 / 12),  # another width
        (LoopTime(2, 4, 6, 5.0), 12.0),  # another number of sequences tells nothing
    ],
)
def test_what_was_not_timed_is_measured_by_what_is_most_like_it(time: LoopTime, expected: float) -> None:
    found = costs()
    found.observe(time)
    assert found.seconds(1, 4, 2.0, CONTEXT) == pytest.approx(expected)


def test_sequences_of_a_bucket_share_a_graph_and_so_their_times() -> None:
    found = costs()
    found.observe(LoopTime(17, 1, 0, 3.0))
    assert found.seconds(24, 1, 0.0, CONTEXT) == pytest.approx(3.0)
    assert found.seconds(16, 1, 0.0, CONTEXT) == pytest.approx(25.0)


def test_an_outlier_moves_little_and_a_lasting_change_all_the_way() -> None:
    found = costs()
    found.observe(LoopTime(1, 2, 1, 1.0))
    found.observe(LoopTime(1, 2, 1, 1000.0))
    assert found.seconds(1, 2, 1.0, CONTEXT) == pytest.approx(1.1)
    for _ in range(100):
        found.observe(LoopTime(1, 2, 1, 1.5))
    assert found.seconds(1, 2, 1.0, CONTEXT) == pytest.approx(1.5, rel=1e-3)
