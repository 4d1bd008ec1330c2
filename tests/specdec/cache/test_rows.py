"""Runs of rows: whatever they say is written comes to the entries that the rows name."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec.cache.rows import Runs

PAGE, SPARE_PAGE = 4, 9


@given(st.lists(st.integers(0, 9 * PAGE + 3), max_size=30))
def test_runs_write_every_row_to_its_entry_but_those_that_nobody_reads(entries: list[int]) -> None:
    written = []
    for first, end, page, offset in Runs.of(torch.tensor(entries, dtype=torch.int64), PAGE, SPARE_PAGE).runs:
        assert offset + end - first <= PAGE, "a run stays in its page"
        written += [(row, page * PAGE + offset + row - first) for row in range(first, end)]
    assert written == [(row, entry) for row, entry in enumerate(entries) if entry // PAGE != SPARE_PAGE]


def test_neighbours_are_one_run() -> None:
    entries = torch.tensor([6, 7, 8, 9, 10, 36, 12, 13, 2])
    assert Runs.of(entries, PAGE, SPARE_PAGE).runs == [(0, 2, 1, 2), (2, 5, 2, 0), (6, 8, 3, 0), (8, 9, 0, 2)]
