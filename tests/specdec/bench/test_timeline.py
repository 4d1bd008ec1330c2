"""The time line of rounds: what a profiler's trace comes to, and what is printed."""

import json
import re
import sys
from pathlib import Path

import pytest

from specdec.bench import timeline
from specdec.bench.host_time import ACCEPT, COMMIT, DRAFT, DRAW, FORWARD, LAY_OUT, OBSERVE, TELL
from specdec.bench.timeline import Kernel, read_trace, show_kernels, stages_of, summarise

KERNELS = Path(__file__).parents[3] / "kernels"
UPLOAD, TORCH = "Memcpy HtoD (Pinned -> Device)", "void at::native::elementwise_kernel<128, 4>"


def rounds(count: int) -> list[Kernel]:
    """Each 100 us long: 3 of idle, `a` until 50 overlapped by `_rows_kernel` until 60 and 80, a gap of 5, the commit."""
    found = []
    for index in range(count):
        start = 100.0 * index
        rows = [Kernel("_rows_kernel", start + 40, start + 60), Kernel("_embed_kernel", start + 50, start + 80)]
        found += [Kernel("a", start + 3, start + 50), *rows, Kernel("_commit_kernel", start + 85, start + 100)]
    return found


def test_a_kernel_is_charged_from_the_end_of_the_one_before_it() -> None:
    found = summarise(rounds(6))
    assert found.round == 100
    assert found.charged == {
        (DRAFT, "a"): (1, 47),
        (LAY_OUT, "_rows_kernel"): (1, 10),
        (FORWARD, "_embed_kernel"): (1, 20),
        (COMMIT, "_commit_kernel"): (1, 15),
    }
    assert found.stages == {DRAFT: 47, LAY_OUT: 10, FORWARD: 20, COMMIT: 15}
    assert found.idle == 8
    assert set(found.gaps) == {5}


def test_only_rounds_of_the_commonest_kind_are_told() -> None:
    kernels = rounds(6)
    odd = [Kernel("c", 600, 900), Kernel("_commit_kernel", 940, 1000)]  # a prompt, say
    after = [Kernel(k.name, k.start + 1000, k.end + 1000) for k in rounds(1)]
    found = summarise([*kernels, *odd, *after])
    assert found.rounds == (5, 6)
    assert found.round == 100
    assert {name for _, name in found.charged} == {"a", "_rows_kernel", "_embed_kernel", "_commit_kernel"}
    assert max(found.gaps) == 40


def test_too_few_rounds_are_said() -> None:
    with pytest.raises(ValueError, match="fewer than three rounds"):
        summarise(rounds(2))


def staged(*parts: tuple[str, list[str]]) -> None:
    """The kernels of each part belong to its stage."""
    names = [name for _, kernels in parts for name in kernels]
    assert stages_of(names) == [stage for stage, kernels in parts for _ in kernels]


FORWARD_KERNELS = ["_embed_kernel", "_linear_kernel", "attend_row_kernel", TORCH, "_linear_kernel"]


def test_stages_of_a_round_with_lookup_drafts() -> None:
    staged(
        (timeline._UPLOAD, [UPLOAD]),
        (DRAFT, ["_chunk_kernel", "_text_kernel", "_select_kernel"]),
        (LAY_OUT, ["_rows_kernel", TORCH]),
        (FORWARD, FORWARD_KERNELS),
        (DRAW, ["_edit_kernel", "_chunk_kernel", "_row_kernel"]),
        (ACCEPT, ["_walk_kernel"]),
        (COMMIT, ["_move_kernel", "_commit_kernel"]),
    )


def test_stages_of_a_round_with_a_draft_model_and_logprobs() -> None:
    staged(
        (DRAFT, [TORCH, *FORWARD_KERNELS, "_sum_kernel", TORCH, "_select_kernel"]),
        (LAY_OUT, ["_rows_kernel"]),
        (FORWARD, FORWARD_KERNELS),
        (DRAW, [TORCH, "_bound_kernel", "_search_kernel"]),
        (ACCEPT, ["_walk_kernel"]),
        (OBSERVE, [TORCH]),
        (TELL, ["_tell_kernel", "_tell_kernel"]),
        (OBSERVE, FORWARD_KERNELS),
        (COMMIT, ["_commit_kernel"]),
    )


def test_stages_of_rounds_that_lack_some() -> None:
    staged((LAY_OUT, ["_rows_kernel"]), (FORWARD, FORWARD_KERNELS))  # a prompt that goes on
    staged(  # a rule that walks in PyTorch
        (LAY_OUT, ["_rows_kernel"]), (FORWARD, FORWARD_KERNELS), (DRAW, [TORCH, TORCH]), (COMMIT, ["_commit_kernel"])
    )


def test_the_kernels_that_stages_are_told_by_exist() -> None:
    text = "\n".join(path.read_text() for path in KERNELS.rglob("*.py"))
    defined = set(re.findall(r"^def (\w+_kernel)\(", text, re.MULTILINE))
    named = {timeline.ROWS_KERNEL, timeline.EMBED_KERNEL, timeline.WALK_KERNEL, timeline.TELL_KERNEL, timeline.MOVE_KERNEL}
    assert named | {timeline.LAST_KERNEL} | timeline.MODEL_KERNELS <= defined
    of_models = {
        name
        for folder in ("linear", "moe", "swiglu", "tree_attention")
        for path in (KERNELS / folder).glob("*.py")
        for name in re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.MULTILINE)
    }
    assert of_models == timeline.MODEL_KERNELS, "a model's new kernel belongs to the forward pass"


def test_kernels_are_shown_below_their_stage(capsys: pytest.CaptureFixture[str]) -> None:
    show_kernels(summarise(rounds(6)))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:4] == ["100", "us", "a", "round;"]
    assert lines[2] == ["draft", "1", "47.0"]
    assert lines[3] == ["a", "1", "47.0", "47.00"]
    assert lines[-1][:2] == ["idle", "8.0;"]


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


def test_the_host_is_shown_on_any_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--shape", "tiny", "--device", "cpu", "--dtype", "float32", "--prompt", "8", "--tokens", "10"]
    monkeypatch.setattr(sys, "argv", ["timeline", *options, "--streams", "1", "3", "--drafter", "none", "ngram"])
    timeline.main()
    lines = capsys.readouterr().out.splitlines()
    data = json.loads(lines[-1])
    assert [(found["drafter"], found["streams"]) for found in data["results"]] == [
        ("none", 1), ("none", 3), ("ngram", 1), ("ngram", 3),
    ]  # fmt: skip
    for found in data["results"]:
        assert found["rounds"] >= 5
        assert 0 < found["busy"] < found["whole"]
        assert (DRAFT in found["device"]) == (found["drafter"] == "ngram")
    header = next(line.split() for line in lines if line.startswith("us of a round"))
    assert header[-2:] == ["1", "3"]
    assert sum(line.startswith("the host, in all") for line in lines) == 2
