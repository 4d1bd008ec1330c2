"""Memory and time of loading a checkpoint: `python -m specdec.bench.loading [--layers 6 12]`.

Writes a checkpoint of a sparse shape with fewer layers, random bfloat16 in shards, loads it in a fresh process and deletes it.
Host memory is counted above what the process held after importing torch and starting CUDA: as all resident pages (the
kernel's own high-water mark, which mapped files add to) and as anonymous ones (sampled every 20 ms), which nobody can take
back. Two sizes show whether the peak grows with the model; the largest tensor is the least it can be. The files are read
right after they were written, as a rule from the page cache.
"""

import argparse
import json
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from specdec.bench.shapes import SHAPES
from specdec.models.loader import choose_device, load_model
from specdec.models.source import resolve

SHARD_BYTES = 4_000_000_000
_BLOCK_VALUES = 1 << 25  # drawn once: every tensor is cut from it
_SAMPLE_SECONDS = 0.02
_DEVIATION = 0.02
_STATUS = Path("/proc/self/status")

Shapes = list[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint on disk: bytes of its tensors, of the largest of them, and the number of its files."""

    bytes: int
    largest: int
    shards: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """What loading took. Host memory in bytes above the baseline; GPU memory in bytes, 0 without a GPU."""

    device: str
    seconds: float
    baseline: int
    peak_resident: int
    peak_anonymous: int
    gpu_kept: int
    gpu_peak: int


def tensor_shapes(fields: Mapping[str, Any]) -> Shapes:
    """Hugging Face's names and shapes of a qwen3_moe checkpoint, in the order of its layers."""
    hidden, vocabulary, head_dim = fields["hidden_size"], fields["vocab_size"], fields["head_dim"]
    queries, keys = fields["num_attention_heads"] * head_dim, fields["num_key_value_heads"] * head_dim
    inner = fields["moe_intermediate_size"]
    shapes: Shapes = [("model.embed_tokens.weight", (vocabulary, hidden))]
    for index in range(fields["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        shapes += [
            (f"{layer}.input_layernorm.weight", (hidden,)),
            (f"{layer}.self_attn.q_proj.weight", (queries, hidden)),
            (f"{layer}.self_attn.k_proj.weight", (keys, hidden)),
            (f"{layer}.self_attn.v_proj.weight", (keys, hidden)),
            (f"{layer}.self_attn.o_proj.weight", (hidden, queries)),
            (f"{layer}.self_attn.q_norm.weight", (head_dim,)),
            (f"{layer}.self_attn.k_norm.weight", (head_dim,)),
            (f"{layer}.post_attention_layernorm.weight", (hidden,)),
            (f"{layer}.mlp.gate.weight", (fields["num_experts"], hidden)),
        ]
        for expert in range(fields["num_experts"]):
            prefix = f"{layer}.mlp.experts.{expert}"
            shapes += [
                (f"{prefix}.gate_proj.weight", (inner, hidden)),
                (f"{prefix}.up_proj.weight", (inner, hidden)),
                (f"{prefix}.down_proj.weight", (hidden, inner)),
            ]
    shapes.append(("model.norm.weight", (hidden,)))
    return shapes if fields["tie_word_embeddings"] else [*shapes, ("lm_head.weight", (vocabulary, hidden))]


def num_bytes(shape: Sequence[int]) -> int:
    """Of a bfloat16 tensor."""
    size = 2
    for length in shape:
        size *= length
    return size


def shards(shapes: Shapes, shard_bytes: int) -> Iterator[Shapes]:
    """Neighbours together, up to `shard_bytes` or a single tensor that is larger."""
    shard: Shapes = []
    size = 0
    for name, shape in shapes:
        if shard and size + num_bytes(shape) > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append((name, shape))
        size += num_bytes(shape)
    if shard:
        yield shard


def write_checkpoint(folder: Path, fields: Mapping[str, Any], shard_bytes: int = SHARD_BYTES) -> Written:
    """A checkpoint of random values; never more than a block of them in memory.

    Args:
        folder: exists.
        fields: of config.json, model_type qwen3_moe.
        shard_bytes: of a file, about.
    """
    shapes = tensor_shapes(fields)
    values = min(_BLOCK_VALUES, max(num_bytes(shape) for _, shape in shapes))
    drawn = torch.empty(values, dtype=torch.bfloat16).normal_(0, _DEVIATION, generator=torch.Generator().manual_seed(0))
    block = drawn.view(torch.uint8).numpy()
    parts = list(shards(shapes, shard_bytes))
    weight_map: dict[str, str] = {}
    at = 0
    for number, part in enumerate(parts, 1):
        file_name = f"model-{number:05}-of-{len(parts):05}.safetensors"
        at = _write_shard(folder / file_name, part, block, at)
        weight_map |= {name: file_name for name, _ in part}
    total = sum(num_bytes(shape) for _, shape in shapes)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {**fields, "architectures": ["Qwen3MoeForCausalLM"], "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    return Written(total, max(num_bytes(shape) for _, shape in shapes), len(parts))


def _write_shard(path: Path, shapes: Shapes, block: "np.ndarray[Any, np.dtype[np.uint8]]", at: int) -> int:
    """One file, its bytes taken from `block` in a circle from `at` on; returns where the next one goes on."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, shape in shapes:
        end = begin + num_bytes(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors start aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        left = begin
        while left:
            piece = block[at : at + left]
            file.write(piece.data)
            left -= len(piece)
            at = (at + len(piece)) % len(block)
    return at


def host_memory() -> dict[str, int]:
    """Bytes of this process: `resident`, `anonymous` and `highest`, the most that was ever resident."""
    lines = (line.split() for line in _STATUS.read_text().splitlines())
    known = {words[0]: int(words[1]) * 1024 for words in lines if words[-1] == "kB"}
    resident = known["VmRSS:"]
    # sandboxed kernels tell less
    highest = known.get("VmHWM:", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return {"resident": resident, "anonymous": known.get("RssAnon:", resident), "highest": highest}


def _forget_highest() -> None:
    """Start the kernel's high-water mark anew, where it allows that; else what came before the baseline counts too."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


class MemoryWatch:
    """Samples this process's memory in a thread while the block runs; `peak_resident` and `peak_anonymous` in bytes."""

    def __init__(self) -> None:
        self.peak_resident = 0
        self.peak_anonymous = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        now = host_memory()
        self.peak_resident = max(self.peak_resident, now["resident"])
        self.peak_anonymous = max(self.peak_anonymous, now["anonymous"])


def load_watched(folder: Path, device: str) -> Loaded:
    """Load a checkpoint into this process, which should be a fresh one."""
    on = choose_device(device)
    gpu = on.type == "cuda"
    if gpu:
        torch.zeros(1, device=on)
        torch.cuda.synchronize(on)
    _forget_highest()
    before = host_memory()
    with MemoryWatch() as watch:
        started = time.perf_counter()
        model = load_model(resolve(str(folder)), dtype="bfloat16", device=device)
        if gpu:
            torch.cuda.synchronize(on)
        seconds = time.perf_counter() - started
    highest = max(watch.peak_resident, host_memory()["highest"])
    return Loaded(
        device=str(model.device),
        seconds=seconds,
        baseline=before["resident"],
        peak_resident=highest - before["resident"],
        peak_anonymous=watch.peak_anonymous - before["anonymous"],
        gpu_kept=torch.cuda.memory_allocated(on) if gpu else 0,
        gpu_peak=torch.cuda.max_memory_allocated(on) if gpu else 0,
    )


def load_in_fresh_process(folder: Path, device: str) -> Loaded:
    """`load_watched` in a process of its own."""
    command = [sys.executable, "-m", "specdec.bench.loading", "--load", str(folder), "--device", device]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Loaded(**json.loads(done.stdout.splitlines()[-1]))


def measure(
    fields: Mapping[str, Any], layers: int, parent: Path | None, device: str, shard_bytes: int = SHARD_BYTES
) -> tuple[Written, Loaded]:
    """Write a checkpoint of `layers` layers into a temporary folder below `parent`, load it, and delete it."""
    fields = {**fields, "num_hidden_layers": layers}
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="specdec-loading-", dir=parent) as name:
        needed, free = sum(num_bytes(shape) for _, shape in tensor_shapes(fields)), shutil.disk_usage(name).free
        if needed > free:
            raise SystemExit(f"{layers} layers need {needed / 1e9:.1f} GB, but {name} has {free / 1e9:.1f} GB left.")
        written = write_checkpoint(Path(name), fields, shard_bytes)
        return written, load_in_fresh_process(Path(name), device)


def show(found: dict[int, tuple[Written, Loaded]]) -> None:
    """Print a table, one line for each number of layers."""
    print(f"{'layers':>6}{'GB':>7}{'shards':>7}{'s':>7}{'GB/s':>7}", end="")
    print(f"{'resident MB':>13}{'anonymous MB':>14}{'largest MB':>12}{'GPU GB':>8}{'at peak':>8}")
    for layers, (written, loaded) in found.items():
        rate = written.bytes / loaded.seconds / 1e9
        print(f"{layers:>6}{written.bytes / 1e9:>7.2f}{written.shards:>7}{loaded.seconds:>7.1f}{rate:>7.2f}", end="")
        print(f"{loaded.peak_resident / 1e6:>13.1f}{loaded.peak_anonymous / 1e6:>14.1f}{written.largest / 1e6:>12.1f}", end="")
        print(f"{loaded.gpu_kept / 1e9:>8.2f}{loaded.gpu_peak / 1e9:>8.2f}")
    print("resident and anonymous: peaks of host memory above the baseline; largest: tensor of the checkpoint")
    if any(loaded.device == "cpu" for _, loaded in found.values()):
        print("the model is on the CPU: its weights are host memory too")


def main() -> None:
    """Entry point of `python -m specdec.bench.loading`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sparse = sorted(name for name, fields in SHAPES.items() if fields["model_type"] == "qwen3_moe")
    parser.add_argument("--shape", choices=sparse, default="qwen3-30b-a3b")
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 12], help="layers of each checkpoint, one after another")
    parser.add_argument("--folder", type=Path, help="where the checkpoints are written and deleted; the system's if not given")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index>")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)  # in the fresh process: this folder, and no more
    args = parser.parse_args()
    if args.load is not None:
        print(json.dumps(asdict(load_watched(args.load, args.device))))
        return
    found = {layers: measure(SHAPES[args.shape], layers, args.folder, args.device) for layers in args.layers}
    show(found)
    runs = [{"layers": n, "checkpoint": asdict(written), **asdict(loaded)} for n, (written, loaded) in found.items()]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    where = {"gpu": gpu, "torch": torch.__version__, "python": platform.python_version()}
    print(json.dumps({"shape": args.shape, "runs": runs, **where}))


if __name__ == "__main__":
    main()
