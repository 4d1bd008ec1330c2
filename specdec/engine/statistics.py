"""What speculation did for one request, round by round, and where the engine stands."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from specdec.arrays import IntArray
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


class MemberDrafts(NamedTuple):
    """Of a member's drafts in order: their parents, and which drafter each counts for; and the nodes of the kept path."""

    parents: list[int]
    sources: list[int]
    path: list[int]


def drafts_of(outcome: Outcome, sources_X: IntArray) -> list[MemberDrafts]:
    """Of each member of a round. sources_X: int64, the drafter that each kind of candidate counts for."""
    most = int(outcome.drafted.max(initial=0)) + 1
    columns = (outcome.parents[:, 1:most], sources_X[outcome.kinds[:, 1:most]], outcome.paths[:, :most])
    rows = zip(outcome.drafted.tolist(), *(column.tolist() for column in columns), strict=True)
    return [MemberDrafts(parents[:count], sources[:count], path) for count, parents, sources, path in rows]


def count_drafts(stats: SpeculationStats, drafts: MemberDrafts, accepted: int, names: Sequence[str]) -> None:
    """Add the drafts of one verified tree to a request's statistics.

    Args:
        stats: the request's.
        drafts: the tree's.
        accepted: drafts that the request keeps.
        names: of the drafters.
    """
    parents, sources, path = drafts
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
    _count(stats.drafted_by_drafter, sources, names)
    if accepted:
        _count(stats.accepted_by_drafter, [sources[node - 1] for node in path[1 : accepted + 1]], names)


def _count(counts: dict[str, int], sources: list[int], names: Sequence[str]) -> None:
    for source, name in enumerate(names):
        if number := sources.count(source):
            counts[name] = counts.get(name, 0) + number


def _extend(counts: list[int], length: int) -> None:
    counts.extend([0] * (length - len(counts)))
