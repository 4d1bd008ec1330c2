"""What speculation did for one request, round by round."""

from collections.abc import Sequence

import numpy as np

from specdec.arrays import IntArray
from specdec.request import SpeculationStats
from specdec.round.outcome import Outcome


def count_round(
    stats: SpeculationStats, outcome: Outcome, index: int, accepted: int, names: Sequence[str], sources: IntArray
) -> int:
    """Add one verified tree to a request's statistics; how many drafts it had.

    Args:
        stats: the request's.
        outcome: of the round.
        index: the request's place among its members.
        accepted: drafts that the request keeps.
        names, sources: of the drafters, and which of them each kind of candidate counts for.
    """
    drafted = int(outcome.drafted[index])
    stats.num_steps += 1
    _extend(stats.accepted_histogram, accepted + 1)
    stats.accepted_histogram[accepted] += 1
    if not drafted:
        return 0
    stats.num_draft_tokens += drafted
    stats.num_accepted_tokens += accepted
    parents, kinds = outcome.parents[index, 1 : drafted + 1].tolist(), outcome.kinds[index, 1 : drafted + 1]
    depths = [0]
    for parent in parents:
        depths.append(depths[parent] + 1)
    _extend(stats.drafted_by_depth, max(depths))
    _extend(stats.accepted_by_depth, max(depths))
    for level in range(max(depths)):
        stats.drafted_by_depth[level] += 1
        stats.accepted_by_depth[level] += level < accepted
    own = sources[kinds]
    kept = own[outcome.paths[index, 1 : accepted + 1] - 1]
    for counts, found in ((stats.drafted_by_drafter, own), (stats.accepted_by_drafter, kept)):
        for source, number in zip(*np.unique(found, return_counts=True), strict=True):
            counts[names[source]] = counts.get(names[source], 0) + int(number)
    return drafted


def _extend(counts: list[int], length: int) -> None:
    counts.extend([0] * (length - len(counts)))
