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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from specdec.machine import fingerprint
from specdec.models.source import cache_folder
from specdec.progress import Progress
from specdec.round.probe import Probe, RoundCost, measure_costs
from specdec.round.selftest import ROW_MULTIPLES, SelfTest, check_rows

_log = logging.getLogger(__name__)

_FORM = 1  # of the files
_MOST_FILES = 64  # the oldest go; they are a few kilobytes each, and a machine rarely serves as many models
_WORTH_SECONDS = 2.0  # what took less to measure is measured again: no start is noticeably quicker for it


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
    facts = [f"form {_FORM}", f"model {identity}", str(dtype), str(device), f"page {page_size}", *fingerprint(device)]
    try:
        return folder() / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.json"
    except (OSError, RuntimeError):  # there is no home
        return None


def folder() -> Path:
    """Where all of them lie."""
    return cache_folder() / "measurements"


def read(path: Path | None) -> Measurements | None:
    """What is kept there, None where it is nothing that can be relied on."""
    if path is None:
        return None
    try:
        return _parsed(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        _log.info("The measurements in %s cannot be used (%s); measuring again.", path, error)
        return None


def write(path: Path | None, found: Measurements, seconds: float) -> None:
    """Keep what took so many seconds to measure, where that is worth it and possible."""
    if path is None or not found.self_test.exact or seconds < _WORTH_SECONDS:
        return
    data = {
        "row_multiple": found.self_test.row_multiple,
        "measured_at": found.measured_at,
        "costs": [[cost.rows, cost.context, cost.seconds] for cost in found.costs],
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as out:
            out.write(json.dumps(data))
        os.replace(out.name, path)
        _forget_oldest(path.parent)
    except OSError as error:
        _log.info("What was measured cannot be kept in %s (%s); the next start measures again.", path.parent, error)


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


def _parsed(data: Any) -> Measurements:
    """Raises ValueError, TypeError or KeyError where this is not what `write` writes."""
    multiple, measured_at = data["row_multiple"], float(data["measured_at"])
    costs = tuple(RoundCost(int(rows), int(context), float(seconds)) for rows, context, seconds in data["costs"])
    if multiple not in ROW_MULTIPLES or not all(cost.rows > 0 and 0 < cost.seconds < 3600 for cost in costs):
        raise ValueError("values that nothing measures")
    if not 0 < measured_at <= time.time() + 86400:
        raise ValueError("a time that is not yet")
    return Measurements(SelfTest(multiple, True), costs, measured_at)


def _forget_oldest(where: Path) -> None:
    files = sorted(where.iterdir(), key=lambda path: path.stat().st_mtime)
    for path in files[:-_MOST_FILES]:
        path.unlink(missing_ok=True)
