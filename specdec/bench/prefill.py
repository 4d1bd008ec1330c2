"""Time of reading a prompt on a GPU, part by part of a decoder layer: `python -m specdec.bench.prefill [--tokens 8192]`.

One sequence, random weights, uniformly random routing. Every part is captured once per layer in one CUDA graph, each time over
other weights; the figure is the median time of a replay over the number of layers. A prompt of several chunks adds up the times
of its chunks, each after the one before. FLOPs are those of the mathematics: rows that pad a tile count for nothing, and
attention is causal. The peak is a large torch.matmul of random bfloat16 in the same run.
"""

import argparse
import json
import platform
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
import triton
from torch import Tensor

from specdec.bench.kernels import SHAPES, Layer, Shape, attend, lay_out, random, random_experts, random_layer, replay_seconds
from specdec.cache.rows import Rows
from specdec.kernels.linear.kernel import linear_triton, rms_norm_triton
from specdec.kernels.moe.combine import combine_triton
from specdec.kernels.moe.kernel import experts_triton, moe_triton
from specdec.kernels.moe.routing import route_triton
from specdec.kernels.tree_attention.heads import heads_triton
from specdec.round import probe
from specdec.round.plan import chunk_bucket

QKV, HEADS, ATTENTION, OUTPUT = "qkv projection", "heads: norm, rope, KV write", "attention", "output projection"
NORM, ROUTER, EXPERTS, COMBINE = "norm", "router", "experts", "combine + norm"
DENSE = (QKV, OUTPUT)
LAYER = "whole layer"
_PEAK_SIZE = 8192
_REPEATS = 10

Work = Callable[[Layer], object]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens that one round reads after `context` cached ones."""

    context: int
    rows: int


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a layer over the whole prompt. flops: of its matrix products, 0 where there are none."""

    name: str
    microseconds: float
    flops: int

    @property
    def rate(self) -> float:
        """FLOP/s."""
        return self.flops / (self.microseconds * 1e-6)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a chunk brings to a layer, on one device.

    x, normed: [R, hidden]; qkv: [R, (heads + 2 * kv heads) * head_dim]; q: [R, heads, head_dim]; routes: int32 [R, k];
    weights: float32 [R, k]; parts: [R * k, hidden]; cos, sin: float32 [positions, head_dim / 2].
    """

    rows: Rows
    x: Tensor
    normed: Tensor
    qkv: Tensor
    q: Tensor
    routes: Tensor
    weights: Tensor
    parts: Tensor
    cos: Tensor
    sin: Tensor


def split(tokens: int, chunk: int) -> Iterator[Chunk]:
    """The rounds that read a prompt of `tokens` tokens."""
    for context in range(0, tokens, chunk):
        yield Chunk(context, min(chunk, tokens - context))


def flops(s: Shape, chunk: Chunk) -> dict[str, int]:
    """FLOPs of a layer's matrix products by part; a multiplication and an addition are two."""
    inner = s.heads * s.head_dim
    keys = chunk.rows * chunk.context + chunk.rows**2 // 2  # query and key pairs
    return {
        QKV: 2 * chunk.rows * (s.heads + 2 * s.kv_heads) * s.head_dim * s.hidden,
        ATTENTION: 4 * inner * keys,
        OUTPUT: 2 * chunk.rows * inner * s.hidden,
        ROUTER: 2 * chunk.rows * s.hidden * s.experts,
        EXPERTS: 2 * chunk.rows * s.experts_per_row * 3 * s.hidden * s.inner,
    }


def chunk_rows(chunk: Chunk, device: str) -> tuple[Rows, int]:
    """The rows of a round that reads one chunk of one sequence, as an engine on a GPU lays them out; and pages of the cache."""
    part = probe.Part(chunk.context, np.arange(chunk.rows), None)
    return lay_out([part], device, num_chunk=chunk_bucket(chunk.rows))


def random_inputs(s: Shape, chunk: Chunk) -> Inputs:
    """Random inputs of every part, as many rows as the round computes, padding included."""
    laid_out, _ = chunk_rows(chunk, "cuda")
    rows = laid_out.num_rows
    x, normed, router = random(rows, s.hidden), random(rows, s.hidden), random(s.experts, s.hidden, scale=s.hidden**-0.5)
    angle = torch.rand(chunk.context + chunk.rows, s.head_dim // 2, device="cuda") * 6
    return Inputs(
        rows=laid_out,
        x=x,
        normed=normed,
        qkv=random(rows, (s.heads + 2 * s.kv_heads) * s.head_dim),
        q=random(rows, s.heads, s.head_dim),
        routes=random_experts(s, rows),
        weights=route_triton(normed, router, s.experts_per_row, True)[0],
        parts=random(rows * s.experts_per_row, s.hidden),
        cos=angle.cos(),
        sin=angle.sin(),
    )


def project_heads(i: Inputs, layer: Layer, qkv: Tensor) -> Tensor:
    """Queries [R, heads, head_dim]; keys and values are in the layer's pages afterwards."""
    return heads_triton(
        qkv,
        layer.q_norm,
        layer.k_norm,
        i.cos,
        i.sin,
        positions_R=i.rows.positions_R,
        entries_R=i.rows.entries_R,
        k_pages=layer.k_pages,
        v_pages=layer.v_pages,
    )


def run_layer(s: Shape, i: Inputs, layer: Layer) -> tuple[Tensor, Tensor]:
    """The residual stream after the layer, and that behind the next norm, [R, hidden] each, as the model runs it."""
    q = project_heads(i, layer, linear_triton(i.normed, layer.qkv))
    attended = attend(i.rows, q, layer.k_pages, layer.v_pages).view(len(q), -1)
    x = linear_triton(attended, layer.out, residual=i.x)
    experts = layer.router, layer.gate_up, layer.down, s.experts_per_row
    return moe_triton(x, *experts, True, norm_E=layer.moe_norm, next_norm_E=layer.norm)


def works(s: Shape, i: Inputs) -> dict[str, Work]:
    """Each part of a layer alone, in order, then all of them in one go."""
    attended = i.q.view(len(i.q), -1)
    return {
        QKV: lambda layer: linear_triton(i.normed, layer.qkv),
        HEADS: lambda layer: project_heads(i, layer, i.qkv),
        ATTENTION: lambda layer: attend(i.rows, i.q, layer.k_pages, layer.v_pages),
        OUTPUT: lambda layer: linear_triton(attended, layer.out, residual=i.x),
        NORM: lambda layer: rms_norm_triton(i.x, layer.moe_norm, 1e-6),
        ROUTER: lambda layer: route_triton(i.normed, layer.router, s.experts_per_row, True),
        EXPERTS: lambda layer: experts_triton(i.normed, i.routes, layer.gate_up, layer.down),
        COMBINE: lambda layer: combine_triton(i.parts, i.weights, i.x, layer.norm),
        LAYER: lambda layer: run_layer(s, i, layer),
    }


def over_layers(layers: list[Layer], work: Work) -> Callable[[], None]:
    """One call on every layer in turn."""

    def call() -> None:
        for layer in layers:
            work(layer)

    return call


def measure(s: Shape, tokens: int, chunk: int, num_layers: int) -> list[Part]:
    """The parts of a layer and the whole layer, each summed over the chunks of the prompt."""
    _, pages = chunk_rows(Chunk(0, tokens), "cpu")
    layers = [random_layer(s, pages) for _ in range(num_layers)]
    seconds: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for piece in split(tokens, chunk):
        found = flops(s, piece)
        for name, work in works(s, random_inputs(s, piece)).items():
            seconds[name] += replay_seconds(over_layers(layers, work), _REPEATS) / num_layers
            counts[name] += sum(found.values()) if name == LAYER else found.get(name, 0)
    return [Part(name, taken * 1e6, counts[name]) for name, taken in seconds.items()]


def matrix_peak() -> float:
    """bfloat16 FLOP/s of a product of two square matrices."""
    left, right = random(_PEAK_SIZE, _PEAK_SIZE), random(_PEAK_SIZE, _PEAK_SIZE)
    out = torch.empty_like(left)
    return 2 * _PEAK_SIZE**3 / replay_seconds(lambda: torch.matmul(left, right, out=out))


def together(name: str, parts: list[Part], of: tuple[str, ...]) -> Part:
    """Several parts as one: their FLOPs over their summed time."""
    mine = [part for part in parts if part.name in of]
    return Part(name, sum(part.microseconds for part in mine), sum(part.flops for part in mine))


def summary(parts: list[Part], peak: float, tokens: int, layers: int) -> dict[str, float]:
    """Shares of the peak; milliseconds of a layer, by its parts and in one go; tokens per second of `layers` such layers."""
    named = {part.name: part for part in parts}
    whole = named[LAYER]
    return {
        "dense_share": together("dense", parts, DENSE).rate / peak,
        "experts_share": named[EXPERTS].rate / peak,
        "attention_share": named[ATTENTION].rate / peak,
        "layer_share": whole.rate / peak,
        "parts_ms": sum(part.microseconds for part in parts if part is not whole) / 1e3,
        "layer_ms": whole.microseconds / 1e3,
        "tokens_per_second": tokens / (whole.microseconds * 1e-6 * layers),
    }


def show(parts: list[Part], found: dict[str, float], peak: float, layers: int) -> None:
    """Print the table and the lines below it."""
    print(f"peak: {peak / 1e12:.0f} TFLOP/s, torch.matmul of {_PEAK_SIZE}x{_PEAK_SIZE}x{_PEAK_SIZE} bfloat16\n")
    print(f"{'part':<32}{'us':>10}{'GFLOP':>10}{'TFLOP/s':>9}{'share':>8}")
    for part in parts:
        products = f"{part.flops / 1e9:>10.1f}{part.rate / 1e12:>9.1f}{part.rate / peak:>8.1%}" if part.flops else ""
        print(f"{part.name:<32}{part.microseconds:>10.1f}{products}")
    print(f"\ndense part (qkv and output projection): {found['dense_share']:.1%} of the peak")
    print(f"experts: {found['experts_share']:.1%} of the peak")
    print(f"attention: {found['attention_share']:.1%} of the peak")
    print(f"layer: {found['layer_ms']:.3f} ms in one go, {found['parts_ms']:.3f} ms by its parts")
    print(f"{layers} layers: {found['tokens_per_second']:.0f} tokens/s, embedding and head left out")


def main() -> None:
    """Entry point of `python -m specdec.bench.prefill`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen3-30b-a3b")
    parser.add_argument("--tokens", type=int, default=8192, help="of the prompt")
    parser.add_argument("--chunk", type=int, default=8192, help="tokens of the prompt that one round reads")
    parser.add_argument("--layers", type=int, default=8, help="layers whose weights are used in turn")
    args = parser.parse_args()
    if min(args.tokens, args.chunk, args.layers) < 1:
        parser.error("--tokens, --chunk and --layers must be 1 or more")
    torch.manual_seed(0)
    shape, chunk = SHAPES[args.shape], min(args.chunk, args.tokens)
    with torch.inference_mode():
        peak = matrix_peak()
        parts = measure(shape, args.tokens, chunk, args.layers)
    found = summary(parts, peak, args.tokens, shape.layers)
    print(f"{args.shape}, {args.tokens} prompt tokens in chunks of {chunk}, {torch.cuda.get_device_name()}")
    show(parts, found, peak, shape.layers)
    where = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    setting = {"shape": args.shape, "tokens": args.tokens, "chunk": chunk, "layers_in_turn": args.layers}
    figures = {"peak_flops_per_second": peak, **found, "parts": [asdict(part) for part in parts]}
    print(json.dumps({**setting, **figures, "python": platform.python_version(), **where}))


if __name__ == "__main__":
    main()
