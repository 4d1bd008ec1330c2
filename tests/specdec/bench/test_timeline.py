"""The time line of rounds: what a profiler's trace comes to."""

import json
from pathlib import Path

import pytest

from specdec.bench.timeline import Kernel, read_trace, summarise


def rounds(count: int) -> list[Kernel]:
    """Each 100 us long: 3 of idle, `a` until 50 overlapped by `b` until 60, a gap of 5, the commit."""
    found = []
    for index in range(count):
        start = 100.0 * index
        found += [Kernel("a", start + 3, start + 50), Kernel("b", start + 40, start + 60), Kernel("b", start + 50, start + 80)]
        found.append(Kernel("_commit_kernel", start + 85, start + 100))
    return found


def test_a_kernel_is_charged_from_the_end_of_the_one_before_it() -> None:
    timeline = summarise(rounds(6))
    assert timeline.round == 100
    assert timeline.charged == {"a": (1, 47), "b": (2, 30), "_commit_kernel": (1, 15)}
    assert timeline.idle == 8
    assert set(timeline.gaps) == {5}


def test_only_rounds_of_the_commonest_kind_are_told() -> None:
    kernels = rounds(6)
    odd = [Kernel("c", 600, 900), Kernel("_commit_kernel", 940, 1000)]  # a prompt, say
    after = [Kernel(k.name, k.start + 1000, k.end + 1000) for k in rounds(1)]
    timeline = summarise([*kernels, *odd, *after])
    assert timeline.rounds == (5, 6)
    assert timeline.round == 100
    assert set(timeline.charged) == {"a", "b", "_commit_kernel"}
    assert max(timeline.gaps) == 40


def test_a_trace_is_read_in_order_of_ends(tmp_path: Path) -> None:
    events = [
        {"cat": "kernel", "name": "late", "ts": 10, "dur": 5.5},
        {"cat": "cpu_op", "name": "not on the GPU", "ts": 0, "dur": 100},
        {"cat": "gpu_memcpy", "name": "early", "ts": 1, "dur": 2},
        {"name": "no category"},
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": events}))
    assert [(kernel.name, kernel.end) for kernel in read_trace(path)] == [("early", 3.0), ("late", pytest.approx(15.5))]
