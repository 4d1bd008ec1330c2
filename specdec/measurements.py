"""What was measured when a model was started, kept for its next start: the self-test, and what rounds cost.

A file for each model on each machine, JSON, in the cache folder. Its name is a digest of all that the measurements depend on,
so that another model, dtype, number of threads, version or machine finds nothing and measures. A file that is missing,
damaged or cannot be written is no fault: what it would have said is measured.
"""

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from specdec.kernels.linear.exact_rows import ExactRows, Trial, recall, trials
from specdec.machine import fingerprint
from specdec.models.source import cache_folder
from specdec.progress import Progress
from specdec.round.probe import Probe, RoundCost, measure_costs
from specdec.round.selftest import SelfTest, check_rows

_log = logging.getLogger(__name__)

_COST_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_COST_CONTEXTS = (128, 1024)
_FORM = 1  # of the files
_MOST_FILES = 64  # the oldest go; they are a few kilobytes each, and a machine rarely serves as many models
_WORTH_SECONDS = 2.0  # what took less to measure is measured again: no start is noticeably quicker for it


_Kept = TypeVar("_Kept")


@dataclass(frozen=True, slots=True)
class Measurements:
    """measured_at: when, in seconds since 1970."""

    self_test: SelfTest
    costs: tuple[RoundCost, ...]
    measured_at: float

    def costs_of(self, wanted: Sequence[tuple[int, int]]) -> tuple[RoundCost, ...] | None:
        """The costs of rounds by (rows, context), None where one of them was not measured."""
        known = {(cost.rows, cost.context): cost for cost in self.costs}
        return tuple(known[pair] for pair in wanted) if all(pair in known for pair in wanted) else None


def rounds_to_time(most_rows: int, longest: int) -> list[tuple[int, int]]:
    """(rows, context) of the rounds that a planner wants to know. longest: most positions of a sequence."""
    rows = [count for count in _COST_ROWS if count <= most_rows]
    return [(count, context) for context in _COST_CONTEXTS if context <= longest - max(rows) for count in rows]


def measure(probe: Probe, wanted: Sequence[tuple[int, int]], path: Path | None, anew: bool, progress: Progress) -> Measurements:
    """The self-test, which sets the row multiple, and what rounds cost: as an earlier start found them, or measured now.

    Args:
        probe: with room for `specdec.round.selftest.MOST_POSITIONS`.
        wanted: (rows, context) of the rounds.
        path: where they are kept; None: nowhere.
        anew: whatever is kept.
        progress: shows what is measured.
    """
    kept = None if anew else read(path)
    if kept is not None and (costs := kept.costs_of(wanted)) is not None:
        probe.forward.row_multiple = kept.self_test.row_multiple
        return replace(kept, costs=costs)
    started = time.monotonic()
    found = Measurements(_tested(probe, progress), _measured_costs(probe, wanted, progress), time.time())
    write(path, found, time.monotonic() - started)
    return found


def path_for(identity: str, dtype: torch.dtype, device: torch.device, page_size: int) -> Path | None:
    """Where the measurements of a model lie. identity: of its files. None where there is no folder to keep them in."""
    return _named("model", [identity, str(dtype), str(device), str(page_size), *fingerprint(device)])


def _named(kind: str, facts: list[str]) -> Path | None:
    digest = hashlib.sha256(json.dumps([_FORM, *facts]).encode()).hexdigest()
    try:
        return folder() / f"{kind}-{digest[:32]}.json"
    except (OSError, RuntimeError):  # there is no home
        return None


def folder() -> Path:
    """Where all of them lie."""
    return cache_folder() / "measurements"


def read(path: Path | None) -> Measurements | None:
    """What is kept there, None where it is nothing that can be relied on."""
    return _usable(path, _parsed)


def write(path: Path | None, found: Measurements, seconds: float) -> None:
    """Keep what took so many seconds to measure, where that is worth it and possible."""
    if not found.self_test.exact:
        return
    costs = [[cost.rows, cost.context, cost.seconds] for cost in found.costs]
    data = {"row_multiple": found.self_test.row_multiple, "measured_at": found.measured_at, "costs": costs}
    _store(path, data, seconds)


@contextmanager
def kept_trials(anew: bool) -> Iterator[None]:
    """While weights are packed: which numbers of rows keep their bits is known from earlier starts, and kept for later ones.
    See `specdec.kernels.linear.exact_rows`."""
    path = _named("rows", [*fingerprint(torch.device("cpu"))])
    if not anew and (known := _usable(path, _parsed_trials)):
        recall(known)
    before, started = trials(), time.monotonic()
    yield
    if (found := trials()) != before:
        data = [
            [features, inputs, str(dtype), layout, threads, rows.least, rows.sizes]
            for (features, inputs, dtype, layout, threads), rows in found.items()
        ]
        _store(path, data, time.monotonic() - started)


def _usable(path: Path | None, parse: Callable[[Any], _Kept]) -> _Kept | None:
    """The content of a file that is whole, as `parse` understands it."""
    try:
        return None if path is None else parse(_whole(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        _log.info("The measurements in %s cannot be used (%s); measuring again.", path, error)
        return None


def _whole(content: bytes) -> Any:
    digest, _, body = content.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError("the file is damaged")
    return json.loads(body)


def _store(path: Path | None, data: object, seconds: float) -> None:
    if path is None or seconds < _WORTH_SECONDS:
        return
    body = json.dumps(data).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as out:
            out.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        os.replace(out.name, path)
        _forget_oldest(path.parent)
    except OSError as error:
        _log.info("What was measured cannot be kept in %s (%s); the next start measures again.", path.parent, error)


def _parsed(data: Any) -> Measurements:
    costs = tuple(RoundCost(rows, context, seconds) for rows, context, seconds in data["costs"])
    return Measurements(SelfTest(data["row_multiple"], True), costs, data["measured_at"])


def _parsed_trials(data: Any) -> dict[Trial, ExactRows]:
    dtypes = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16)}
    return {
        (features, inputs, dtypes[dtype], layout, threads): ExactRows(least, tuple(sizes))
        for features, inputs, dtype, layout, threads, least, sizes in data
    }


def _tested(probe: Probe, progress: Progress) -> SelfTest:
    with progress.task("Checking that rows keep their bits", 1) as advance:
        found = check_rows(probe, probe.forward.model.config.vocab_size)
        advance(1)
    if not found.exact:
        _log.warning(
            "On this machine %s: speculation may change tokens whose logits nearly tie. Please report this processor.",
            found.failure,
        )
    return found


def _measured_costs(probe: Probe, wanted: Sequence[tuple[int, int]], progress: Progress) -> tuple[RoundCost, ...]:
    if not wanted:
        return ()
    costs = []
    with progress.task("Measuring what a round costs", len(wanted)) as advance:
        for cost in measure_costs(probe, wanted):
            costs.append(cost)
            advance(1)
    probe.forget()
    return tuple(costs)


def _forget_oldest(where: Path) -> None:
    files = sorted(where.iterdir(), key=lambda path: path.stat().st_mtime)
    for path in files[:-_MOST_FILES]:
        path.unlink(missing_ok=True)
