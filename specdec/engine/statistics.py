"""What speculation did for one request, round by round, and where the engine stands."""

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
    parents, kinds, path = outcome.drafts[index]
    stats.num_draft_tokens += len(parents)
    stats.num_accepted_tokens += accepted
    depths = [0]
    for parent in parents:
        depths.append(depths[parent] + 1)
    deepest = max(depths)
    _extend(stats.drafted_by_depth, deepest)
    _extend(stats.accepted_by_depth, deepest)
    for level in range(deepest):
        stats.drafted_by_depth[level] += 1
    for level in range(accepted):
        stats.accepted_by_depth[level] += 1
    _count(stats.drafted_by_drafter, kinds, names)
    _count(stats.accepted_by_drafter, [kinds[node - 1] for node in path[1 : accepted + 1]], names)


def _count(counts: dict[str, int], kinds: Sequence[int], names: Sequence[str]) -> None:
    for kind in kinds:
        name = names[kind]
        counts[name] = counts.get(name, 0) + 1


def _extend(counts: list[int], length: int) -> None:
    counts.extend([0] * (length - len(counts)))
