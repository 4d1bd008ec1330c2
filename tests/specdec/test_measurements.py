"""What was measured is kept for the next start, and never believed where anything it depends on has changed."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from specdec import assemble, machine, measurements
from specdec.config import EngineConfig
from specdec.kernels import linear
from specdec.kernels.linear import exact_rows
from specdec.progress import Advance
from specdec.round.probe import RoundCost
from specdec.round.selftest import SelfTest

CPU = torch.device("cpu")
TASKS = ["Checking that rows keep their bits", "Measuring what a round costs"]


class Shown:
    """See `specdec.progress.Progress`: which tasks there were."""

    def __init__(self) -> None:
        self.tasks: list[str] = []

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Advance]:
        self.tasks.append(description)
        yield lambda _: None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("specdec.measurements.folder", lambda: tmp_path / "kept")
    monkeypatch.setattr("specdec.measurements._WORTH_SECONDS", 0.0)
    return tmp_path / "kept"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured in earnest."""
    monkeypatch.setattr("specdec.measurements.check_rows", lambda *_: SelfTest(1, True))
    monkeypatch.setattr("specdec.measurements.measure_costs", lambda _, wanted: [RoundCost(r, c, 0.1) for r, c in wanted])


@pytest.fixture
def config(tiny_checkpoint: Callable[..., Path]) -> EngineConfig:
    return EngineConfig(model=str(tiny_checkpoint("llama")), dtype="float32", cache_gb=0.02, max_tree_nodes=4, max_batch=4)


def start(config: EngineConfig) -> tuple[assemble.Assembled, list[str]]:
    """An engine, and what was measured for it."""
    shown = Shown()
    built = assemble.build(config, shown)
    return built, [task for task in shown.tasks if task in TASKS]


def test_the_second_start_measures_nothing(folder: Path, config: EngineConfig) -> None:
    first, measured = start(config)
    assert measured == TASKS
    again, measured = start(config)
    assert measured == []
    assert (again.self_test, again.costs, again.measured_at) == (first.self_test, first.costs, first.measured_at)
    assert again.engine._planner.costs.plain(1, 128) == first.engine._planner.costs.plain(1, 128)
    anew, measured = start(replace(config, measure_anew=True))
    assert measured == TASKS
    assert anew.measured_at > first.measured_at
    assert start(config)[0].measured_at == anew.measured_at, "what was measured last is kept"


def test_more_rows_than_are_known_are_measured(quick: None, folder: Path, config: EngineConfig) -> None:
    start(config)
    wider, measured = start(replace(config, max_tree_nodes=8))
    assert measured == TASKS
    assert max(cost.rows for cost in wider.costs) == 8
    narrow, measured = start(config)
    assert (measured, max(cost.rows for cost in narrow.costs)) == ([], 4)
    assert start(replace(config, drafters=()))[1] == []


def test_other_files_are_another_model(quick: None, folder: Path, config: EngineConfig, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in Path(config.model).iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    moved = replace(config, model=str(copy))
    for _ in range(2):
        assert start(moved)[1] == TASKS
        os.utime(copy / "model.safetensors", ns=(1, 1))
        assert start(moved)[1] == TASKS
        assert start(moved)[1] == []
        (copy / "config.json").write_text(json.dumps(json.loads((copy / "config.json").read_text()) | {"note": "new"}))
        os.utime(copy / "model.safetensors", ns=(2, 2))


def _with_digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, "one character", "its end", "another form", "folder"]
)
def test_a_damaged_file_is_no_fault(quick: None, folder: Path, config: EngineConfig, damage: bytes | str) -> None:
    start(config)
    path = next(folder.glob("model-*"))
    content = path.read_bytes()
    damaged = {
        "one character": content.replace(b'"row_multiple": 1', b'"row_multiple": 4'),
        "its end": content[:-5],
        "another form": _with_digest(b'{"costs": 3}'),
    }
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(damage if isinstance(damage, bytes) else damaged[damage])
    built, measured = start(config)
    assert (measured, built.self_test.exact) == (TASKS, True)
    assert start(config)[1] == ([] if damage != "folder" else TASKS)


def test_a_folder_that_cannot_be_written_is_no_fault(
    quick: None, config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specdec.measurements._WORTH_SECONDS", 0.0)
    for place in ("/dev/null/kept", "/proc/kept"):
        monkeypatch.setattr("specdec.measurements.folder", lambda place=place: Path(place))
        assert start(config)[1] == TASKS


def test_no_home_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("specdec.measurements.folder", homeless)
    assert measurements.path_for("model", torch.float32, CPU, 64) is None


def test_whatever_it_depends_on_makes_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def name(identity: str = "a", dtype: torch.dtype = torch.float32, page_size: int = 64) -> object:
        return measurements.path_for(identity, dtype, CPU, page_size)

    plain, threads = name(), torch.get_num_threads()
    assert name() == plain
    others = {name("b"), name(dtype=torch.bfloat16), name(page_size=32)}
    try:
        torch.set_num_threads(threads + 1)
        others.add(name())
    finally:
        torch.set_num_threads(threads)
    for target, value in (("specdec.machine.__version__", "9"), ("torch.__version__", "9.9")):
        with monkeypatch.context() as patched:
            patched.setattr(target, value)
            others.add(name())
    for variable in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"):
        with monkeypatch.context() as patched:
            patched.setenv(variable, "DEFAULT")
            others.add(name())
    with monkeypatch.context() as patched:
        patched.setattr(machine, "cpu_name", lambda: "another")
        others.add(name())
    assert len(others | {plain}) == 10


@pytest.mark.skipif(not linear._onednn_computes(torch.float32), reason="any number of rows is exact without oneDNN")
def test_which_rows_are_exact_is_known_the_next_time(
    folder: Path, config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tried(anew: bool = False) -> int:
        """Shapes that are tried while the model is loaded in a process that knows none."""
        with monkeypatch.context() as fresh:
            fresh.setattr(exact_rows, "_found", {})
            trial = Mock(wraps=exact_rows._try)
            fresh.setattr(exact_rows, "_try", trial)
            assemble.load(replace(config, measure_anew=anew))
            found.append(exact_rows.trials())
        return trial.call_count

    found: list[object] = []
    many = tried()
    assert many
    assert [tried(), tried(anew=True), tried()] == [0, many, 0]
    assert all(each == found[0] for each in found)
    (path,) = folder.glob("rows-*")
    path.write_bytes(path.read_bytes()[:-2])
    assert tried() == many


def test_what_took_no_time_or_is_not_exact_is_not_kept(folder: Path) -> None:
    found = measurements.Measurements(SelfTest(1, True), (), 1.0)
    path = folder / "one.json"
    measurements.write(path, replace(found, self_test=SelfTest(16, False, "rows differ")), 100.0)
    measurements.write(path, found, -1.0)
    assert not folder.exists()
    measurements.write(path, found, 1.0)
    assert measurements.read(path) == found


def test_old_files_go(folder: Path) -> None:
    found = measurements.Measurements(SelfTest(1, True), (), 1.0)
    for number in range(70):
        measurements.write(folder / f"{number}.json", found, 1.0)
        os.utime(folder / f"{number}.json", (number, number))
    kept = {int(path.stem) for path in folder.iterdir()}
    assert len(kept) == 64
    assert min(kept) == 6
