"""What is counted of a round's drafts: by depth and by drafter, for each request."""

from types import SimpleNamespace
from typing import cast

import numpy as np

from specdec.engine.statistics import count_drafts, drafts_of
from specdec.request import SpeculationStats
from specdec.round.outcome import Outcome


def test_drafts_count_for_their_drafters_and_trees_by_depth() -> None:
    """A tree of 1, 2 below the root and 3, 4 below 1, of which 1 and 4 are accepted; a second member without drafts."""
    outcome = SimpleNamespace(
        drafted=np.array([4, 0]),
        parents=np.array([[0, 0, 0, 1, 1, -1], [0, -1, -1, -1, -1, -1]]),
        kinds=np.array([[-1, 5, 0, 5, 6, -1], [-1] * 6]),
        paths=np.array([[0, 1, 4, 0, 0, 0], [0] * 6]),
    )
    sources_X = np.array([0, 0, 0, 0, 0, 1, 2])
    found = drafts_of(cast(Outcome, outcome), sources_X)
    assert [list(each) for each in found] == [[[0, 0, 1, 1], [1, 0, 1, 2], [0, 1, 4, 0, 0]], [[], [], [0] * 5]]
    stats = SpeculationStats()
    for accepted in (2, 1):
        count_drafts(stats, found[0], accepted, ("a", "b", "c"))
    assert (stats.num_draft_tokens, stats.num_accepted_tokens) == (8, 3)
    assert (stats.drafted_by_depth, stats.accepted_by_depth) == ([2, 2], [2, 1])
    assert stats.drafted_by_drafter == {"a": 2, "b": 4, "c": 2}
    assert stats.accepted_by_drafter == {"b": 2, "c": 1}
