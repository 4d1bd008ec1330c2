"""The loading bench on the CPU: a checkpoint of a few hundred kilobytes, written, loaded in a fresh process, deleted."""

import json
import mmap
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open

from specdec.bench import loading
from specdec.bench.loading import Loaded, MemoryWatch, Written, measure, num_bytes, shards, tensor_shapes, write_checkpoint
from specdec.bench.shapes import SHAPES
from specdec.models.loader import load_model
from specdec.models.source import resolve

TINY: dict[str, Any] = {
    **SHAPES["qwen3-30b-a3b"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 256,
    "max_position_embeddings": 128,
}


def test_the_shape_has_the_parameters_of_its_name() -> None:
    total = sum(num_bytes(shape) for _, shape in tensor_shapes(SHAPES["qwen3-30b-a3b"])) // 2
    assert total == 30_532_122_624


def test_shards_hold_all_tensors_in_order() -> None:
    shapes = tensor_shapes(TINY)
    found = list(shards(shapes, 50_000))
    assert [tensor for shard in found for tensor in shard] == shapes
    assert all(sum(num_bytes(shape) for _, shape in shard) <= 50_000 for shard in found)
    assert [len(shard) for shard in shards(shapes, 1)] == [1] * len(shapes)


def test_a_written_checkpoint_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_BLOCK_VALUES", 10_000)  # most tensors cross its end
    written = write_checkpoint(tmp_path, TINY, shard_bytes=60_000)
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert written == Written(sum(num_bytes(shape) for _, shape in tensor_shapes(TINY)), 256 * 64 * 2, len(files))
    assert len(files) > 3
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == written.bytes
    found = {}
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                found[name] = file.get_tensor(name)
                assert index["weight_map"][name] == path.name
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == dict(tensor_shapes(TINY))
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    head = found["lm_head.weight"].float()
    assert 0.019 < head.std() < 0.021
    assert not torch.equal(head, found["model.embed_tokens.weight"].float())
    model = load_model(resolve(str(tmp_path)), dtype="float32", device="cpu")  # refuses tensors that have no place
    assert (model.config.family, model.config.num_layers) == ("qwen3_moe", 2)


def test_memory_that_comes_and_goes_is_seen() -> None:
    size = 64 << 20
    before = loading.host_memory()
    with MemoryWatch() as watch:
        # pages of its own: the heap may still hold as much that another test gave back
        held = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        torch.frombuffer(held, dtype=torch.uint8).fill_(1)
        watch._ended.wait(0.1)
    assert watch.peak_anonymous - before["anonymous"] > size * 0.9
    assert watch.peak_resident >= watch.peak_anonymous


def test_write_load_report_and_delete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "SHAPES", {"qwen3-30b-a3b": TINY})
    folder = tmp_path / "made"
    monkeypatch.setattr(sys, "argv", ["loading", "--layers", "1", "3", "--folder", str(folder), "--device", "cpu"])
    loading.main()
    assert not list(folder.iterdir())
    lines = capfd.readouterr().out.splitlines()
    data = json.loads(lines[-1])
    assert [run["layers"] for run in data["runs"]] == [1, 3]
    assert [run["checkpoint"]["shards"] for run in data["runs"]] == [1, 1]
    for run in data["runs"]:
        assert run["device"] == "cpu"
        assert run["seconds"] > 0
        assert run["baseline"] > 50e6, "torch alone is more"
        assert run["peak_resident"] >= run["peak_anonymous"] >= 0
        assert run["gpu_kept"] == run["gpu_peak"] == 0
    assert "its weights are host memory too" in lines[-2]


def test_a_full_disk_is_told_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(SystemExit, match=r"2 layers need 0\.\d GB"):
        measure(TINY, 2, tmp_path, "cpu")
    assert not list(tmp_path.iterdir())


def test_a_failed_load_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, device: str) -> Loaded:
        assert (folder / "config.json").is_file()
        raise RuntimeError("no load")

    monkeypatch.setattr(loading, "load_in_fresh_process", fail)
    with pytest.raises(RuntimeError, match="no load"):
        measure(TINY, 1, tmp_path, "cpu")
    assert not list(tmp_path.iterdir())
