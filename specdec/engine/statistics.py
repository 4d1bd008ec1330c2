"""What speculation did for one request, round by round, and where the engine stands."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from specdec.request import SpeculationStats
from specdec.round.outcome import Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStatus:
    """A glance at the engine."""

    num_running: int
    num_waiting: int
    pages_used: int
    pages_total: int
    num_rounds: int
    num_preemptions: int


def count_step(stats: SpeculationStats, accepted: int) -> None:
    """Add one verified tree, of whatever size, to a request's statistics."""
    stats.num_steps += 1
    if accepted >= len(stats.accepted_histogram):
        _extend(stats.accepted_histogram, accepted + 1)
    stats.accepted_histogram[accepted] += 1


def count_drafts(stats: SpeculationStats, outcome: Outcome, index: int, accepted: int, names: Sequence[str]) -> None:
    """Add the drafts of one verified tree to a request's statistics.

    Args:
        stats: the request's.
        outcome: of the round.
        index: the request's place among its members.
        accepted: drafts that the request keeps.
        names: which drafter each kind of candidate counts for.
    """
    drafted = int(outcome.drafted[index])
    stats.num_draft_tokens += drafted
    stats.num_accepted_tokens += accepted
    parents, kinds = outcome.parents[index, : drafted + 1].tolist(), outcome.kinds[index, : drafted + 1].tolist()
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    deepest = max(depths)
    _extend(stats.drafted_by_depth, deepest)
    _extend(stats.accepted_by_depth, deepest)
    for level in range(deepest):
        stats.drafted_by_depth[level] += 1
        stats.accepted_by_depth[level] += level < accepted
    _add(stats.drafted_by_drafter, kinds[1:], names)
    if accepted:
        _add(stats.accepted_by_drafter, [kinds[node] for node in outcome.paths[index, 1 : accepted + 1].tolist()], names)


def _add(counts: dict[str, int], kinds: Sequence[int], names: Sequence[str]) -> None:
    for kind, number in Counter(kinds).items():
        counts[names[kind]] = counts.get(names[kind], 0) + number


def _extend(counts: list[int], length: int) -> None:
    counts.extend([0] * (length - len(counts)))
