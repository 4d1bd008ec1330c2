"""Time of the GPU kernels against the bytes they must read: `python -m specdec.bench.kernels [--stack | --small]`.

Every kernel is captured many times in one CUDA graph, each time over other weights, so that they come from memory and not
from the L2 cache; the figure is the median time of a replay over the number of calls in it. The ceiling is a device copy
measured in the same run. `--stack` times 48 whole decoder layers with random weights in one graph, `--small` the kernels around
them, see `specdec.bench.small_kernels`.
"""

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from specdec.bench import small_kernels
from specdec.bench.small_kernels import Sizes
from specdec.cache.rows import Rows
from specdec.draft.tree import DraftTree
from specdec.kernels.linear.kernel import linear_triton, rms_norm_triton
from specdec.kernels.moe.combine import combine_triton
from specdec.kernels.moe.kernel import experts_triton, moe_triton
from specdec.kernels.moe.routing import route_triton
from specdec.kernels.tree_attention.heads import heads_triton
from specdec.kernels.tree_attention.kernel import tree_attention_triton
from specdec.kernels.tree_select import MAX_NODES
from specdec.round.graphs import Recording
from specdec.round.probe import Part, ProbeRound
from specdec.round.rows import Entries

ROWS = (1, 2, 4, 8, 16, 32, 64)
COLD_BYTES = 400 << 20  # distinct weights of one graph: many times the L2
PAGE = 64
DEVICE, BF16 = "cuda", torch.bfloat16


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's sizes."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    experts_per_row: int
    inner: int
    vocabulary: int


SHAPES = {"qwen3-30b-a3b": Shape(48, 2048, 32, 4, 128, 128, 8, 768, 151_936)}


@dataclass(frozen=True, slots=True)
class Result:
    """One kernel at one row count."""

    kernel: str
    rows: int
    microseconds: float
    bytes_read: int

    def share(self, bytes_per_second: float) -> float:
        return self.bytes_read / (self.microseconds * 1e-6) / bytes_per_second


def replay_seconds(work: Callable[[], object], repeats: int = 20) -> float:
    """Median time of one replay of `work`, captured in a CUDA graph."""
    return Recording(work).seconds(repeats)


def copy_bandwidth() -> float:
    """Bytes per second of a 4 GiB device copy, bytes read and bytes written counted."""
    source = random(1 << 31)
    target = torch.empty_like(source)
    # a kernel: the copy engine that `copy_` uses in a graph reaches two thirds of this
    return 2 * source.nbytes / replay_seconds(lambda: torch.add(source, 0, out=target))


def random(*shape: int, scale: float = 1.0) -> Tensor:
    """bfloat16 on the GPU, normal with this deviation."""
    return torch.empty(shape, device=DEVICE, dtype=BF16).normal_(0, scale)


def random_experts(shape: Shape, rows: int) -> Tensor:
    """Uniformly random routing: int32 [rows, k], no expert twice in a row."""
    return torch.rand(rows, shape.experts, device=DEVICE).topk(shape.experts_per_row).indices.int()


def cycle(weights: list[Tensor], call: Callable[[Tensor], object]) -> Callable[[], None]:
    """One call over every weight in turn."""

    def work() -> None:
        for weight in weights:
            call(weight)

    return work


def time_linear(width: int, depth: int, rows: int) -> Result:
    """A linear layer of `width` outputs and `depth` inputs."""
    size = width * depth * 2
    weights = [random(width, depth, scale=depth**-0.5) for _ in range(max(2, COLD_BYTES // size))]
    x = random(rows, depth)
    seconds = replay_seconds(cycle(weights, lambda w: linear_triton(x, w))) / len(weights)
    return Result(f"linear {width}x{depth}", rows, seconds * 1e6, size)


def time_experts(shape: Shape, rows: int, layers: list[tuple[Tensor, Tensor]]) -> Result:
    """Gate, up and down of the experts that `rows` rows choose at random."""
    x = random(rows, shape.hidden)
    routes = [random_experts(shape, rows) for _ in range(8)]
    calls = [(layers[i % len(layers)], route) for i, route in enumerate(routes)]

    def work() -> None:
        for (gate_up, down), route in calls:
            experts_triton(x, route, gate_up, down)

    distinct = sum(int(route.flatten().bincount().count_nonzero()) for route in routes) / len(routes)
    seconds = replay_seconds(work) / len(calls)
    return Result("experts", rows, seconds * 1e6, int(distinct * 3 * shape.hidden * shape.inner * 2))


def time_small(shape: Shape, rows: int) -> list[Result]:
    """The kernels between the large ones: norm, router, combine."""
    x, norm = random(rows, shape.hidden), random(shape.hidden)
    router = [random(shape.experts, shape.hidden, scale=shape.hidden**-0.5) for _ in range(32)]
    parts = random(rows * shape.experts_per_row, shape.hidden)
    weights, _ = route_triton(x, router[0], shape.experts_per_row, True)
    works: dict[str, Callable[[Tensor], object]] = {
        "norm": lambda _: rms_norm_triton(x, norm, 1e-6),
        "route (2 kernels)": lambda w: route_triton(x, w, shape.experts_per_row, True),
        "combine + norm": lambda _: combine_triton(parts, weights, x, norm),
    }
    sizes = {"norm": x.nbytes, "route (2 kernels)": router[0].nbytes, "combine + norm": parts.nbytes + x.nbytes}
    return [Result(n, rows, replay_seconds(cycle(router, w)) / 32 * 1e6, sizes[n]) for n, w in works.items()]


def lay_out(parts: Sequence[Part], device: str, num_chunk: int | None = None, max_positions: int = 0) -> tuple[Rows, int]:
    """The rows of a round of some texts, and the pages of their caches, one for what nobody reads counted.

    max_positions: that the page tables hold, where it is more than needed.
    """
    each = max(part.base + part.num_nodes for part in parts) // PAGE + 1
    pages = len(parts) * each
    entries = Entries(PAGE, spare=pages * PAGE, scratch=pages * PAGE)
    rows, _ = ProbeRound.of(parts, entries, pages, torch.device(device), num_chunk).lay_out()
    table_MP = rows.attention.page_table_MP
    wide_MP = F.pad(table_MP, (0, max(max_positions // PAGE - table_MP.shape[1], 0)))
    return replace(rows, attention=replace(rows.attention, page_table_MP=wide_MP)), pages + 1


def chains(rows: int, sequences: int, context: int) -> list[Part]:
    """Rows / sequences tokens each after `context` cached positions: a chain, or where they are more, a prompt's."""
    tokens = np.arange(rows // sequences)
    if len(tokens) > MAX_NODES:
        return [Part(context, tokens, None)] * sequences
    return [Part(context, tokens[:0], DraftTree.chain(0, tokens[1:]))] * sequences


def attend(rows: Rows, q_RHD: Tensor, k_pages: Tensor, v_pages: Tensor) -> Tensor:
    """Attention of the rows over their pages."""
    return tree_attention_triton(q_RHD, k_pages, v_pages, rows.attention, scale=q_RHD.shape[-1] ** -0.5)


def time_attention(shape: Shape, rows: int, sequences: int, context: int, max_positions: int) -> Result:
    """`rows` nodes over `sequences` chains; the cache cycles over enough layers to miss the L2."""
    laid_out, pages = lay_out(chains(rows, sequences, context), DEVICE, max_positions=max_positions)
    pool = (pages, shape.kv_heads, PAGE, shape.head_dim)
    size = 2 * context * sequences * shape.kv_heads * shape.head_dim * 2
    pairs = [(random(*pool), random(*pool)) for _ in range(max(2, COLD_BYTES // size))]
    q = random(rows, shape.heads, shape.head_dim)

    def work() -> None:
        for k, v in pairs:
            attend(laid_out, q, k, v)

    name = f"attention {sequences}x{context} of {max_positions} (2 kernels)"
    return Result(name, rows, replay_seconds(work) / len(pairs) * 1e6, size)


@dataclass(frozen=True, slots=True)
class Layer:
    """Random weights and cache of one decoder layer."""

    norm: Tensor
    qkv: Tensor
    q_norm: Tensor
    k_norm: Tensor
    out: Tensor
    moe_norm: Tensor
    router: Tensor
    gate_up: Tensor
    down: Tensor
    k_pages: Tensor
    v_pages: Tensor


def random_layer(s: Shape, num_pages: int) -> Layer:
    """One layer with a cache of `num_pages` pages."""
    width = (s.heads + 2 * s.kv_heads) * s.head_dim
    return Layer(
        torch.ones(s.hidden, device=DEVICE, dtype=BF16),
        random(width, s.hidden, scale=s.hidden**-0.5),
        torch.ones(s.head_dim, device=DEVICE, dtype=BF16),
        torch.ones(s.head_dim, device=DEVICE, dtype=BF16),
        random(s.hidden, s.heads * s.head_dim, scale=(s.heads * s.head_dim) ** -0.5),
        torch.ones(s.hidden, device=DEVICE, dtype=BF16),
        random(s.experts, s.hidden, scale=s.hidden**-0.5),
        *random_expert_weights(s),
        random(num_pages, s.kv_heads, PAGE, s.head_dim),
        random(num_pages, s.kv_heads, PAGE, s.head_dim),
    )


def random_expert_weights(s: Shape) -> tuple[Tensor, Tensor]:
    """Gate and up together, and down, of all experts of a layer."""
    gate_up = random(s.experts, 2 * s.inner, s.hidden, scale=s.hidden**-0.5)
    return gate_up, random(s.experts, s.hidden, s.inner, scale=s.inner**-0.5)


@dataclass(frozen=True, slots=True)
class Stack:
    """A whole decoder with random weights and a cache of `context` positions."""

    shape: Shape
    context: int
    layers: list[Layer]
    embedding: Tensor
    head: Tensor
    norm: Tensor
    cos: Tensor
    sin: Tensor

    def round(self, tokens_R: Tensor, rows: Rows) -> Tensor:
        """Greedy choice of each row, [R]."""
        s = self.shape
        x = self.embedding[tokens_R]
        h = rms_norm_triton(x, self.layers[0].norm, 1e-6)
        norms_after = [layer.norm for layer in self.layers[1:]] + [self.norm]
        for layer, norm_after in zip(self.layers, norms_after, strict=True):
            qkv = linear_triton(h, layer.qkv)
            q = heads_triton(
                qkv,
                layer.q_norm,
                layer.k_norm,
                self.cos,
                self.sin,
                positions_R=rows.positions_R,
                entries_R=rows.entries_R,
                k_pages=layer.k_pages,
                v_pages=layer.v_pages,
            )
            attended = attend(rows, q, layer.k_pages, layer.v_pages)
            x = linear_triton(attended.view(len(x), -1), layer.out, residual=x)
            experts = layer.router, layer.gate_up, layer.down, s.experts_per_row
            x, h = moe_triton(x, *experts, True, norm_E=layer.moe_norm, next_norm_E=norm_after)
        return linear_triton(h, self.head).argmax(-1)


def random_stack(s: Shape, context: int, most_rows: int) -> Stack:
    """All layers, embedding and head, with room for so many rows after the context."""
    layers = [random_layer(s, (context + most_rows) // PAGE + 2) for _ in range(s.layers)]
    head = random(s.vocabulary, s.hidden, scale=s.hidden**-0.5)
    angle = torch.rand(context + most_rows, s.head_dim // 2, device=DEVICE) * 6
    embedding = random(s.vocabulary, s.hidden)
    return Stack(s, context, layers, embedding, head, layers[0].norm, angle.cos(), angle.sin())


def time_stack(stack: Stack, rows: int) -> Result:
    """All layers, final norm, head and greedy choice in one graph: a round of plain decoding (one row), or of a chain."""
    laid_out, _ = lay_out(chains(rows, 1, stack.context), DEVICE)
    tokens = torch.arange(rows, device=DEVICE) * 997 % stack.shape.vocabulary
    seconds = replay_seconds(lambda: stack.round(tokens, laid_out))
    name = f"stack of {stack.shape.layers} layers, context {stack.context}"
    return Result(name, rows, seconds * 1e6, stack_bytes(stack.shape, rows, stack.context))


def stack_bytes(s: Shape, rows: int, context: int) -> int:
    """Bytes that one round must read under uniformly random routing."""
    touched = s.experts * (1 - (1 - s.experts_per_row / s.experts) ** rows)
    attention = (s.heads + 2 * s.kv_heads) * s.head_dim * s.hidden + s.heads * s.head_dim * s.hidden
    cache = 2 * context * s.kv_heads * s.head_dim
    layer = attention + s.experts * s.hidden + touched * 3 * s.hidden * s.inner + cache
    return int(2 * (s.layers * layer + s.vocabulary * s.hidden))


def kernel_results(s: Shape, row_counts: tuple[int, ...]) -> list[Result]:
    """Every kernel alone, at each number of rows."""
    results = []
    width = (s.heads + 2 * s.kv_heads) * s.head_dim
    linears = [(width, s.hidden), (s.hidden, s.heads * s.head_dim), (s.vocabulary, s.hidden)]
    results += [time_linear(n, k, rows) for n, k in linears for rows in row_counts]
    for rows in row_counts:
        results += time_small(s, rows)
    results += [time_attention(s, rows, 1, 1024, 1280) for rows in row_counts]
    results += [time_attention(s, 1, 1, 1024, 32_768), time_attention(s, 1, 1, 32_000, 32_768)]
    results += [time_attention(s, 64, 64, 1024, 1280)]
    layers = [random_expert_weights(s) for _ in range(4)]
    return results + [time_experts(s, rows, layers) for rows in row_counts]


def show(results: Sequence[Result], ceiling: float) -> None:
    """Print a table of what was read, and how fast."""
    print(f"{'kernel':<44}{'rows':>5}{'us':>10}{'MB':>9}{'TB/s':>7}{'share':>7}")
    for r in results:
        rate = r.bytes_read / r.microseconds / 1e6
        print(f"{r.kernel:<44}{r.rows:>5}{r.microseconds:>10.2f}{r.bytes_read / 1e6:>9.1f}{rate:>7.2f}{r.share(ceiling):>7.1%}")


def main() -> None:
    """Entry point of `python -m specdec.bench.kernels`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen3-30b-a3b")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--stack", action="store_true", help="time whole decoder layers instead of single kernels")
    what.add_argument("--small", action="store_true", help="time the kernels around the layers, beside their references")
    parser.add_argument("--context", type=int, default=1024, help="cached positions, with --stack")
    args = parser.parse_args()
    torch.manual_seed(0)
    shape, rows = SHAPES[args.shape], tuple(args.rows)
    where = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    if args.small:
        small_kernels.show(small_kernels.measure(small_sizes(shape), torch.device(DEVICE)))
        print(json.dumps({"python": platform.python_version(), **where}))
        return
    ceiling = copy_bandwidth()
    if args.stack:
        stack = random_stack(shape, args.context, max(rows))
        results = [time_stack(stack, count) for count in rows]
    else:
        results = kernel_results(shape, rows)
    show(results, ceiling)
    print(json.dumps({"copy_bytes_per_second": ceiling, "python": platform.python_version(), **where}))


def small_sizes(shape: Shape) -> list[Sizes]:
    """Rounds that are met: one tree of several sizes, and many sequences that decode or bring a small tree each."""
    layers, width = shape.layers, (shape.kv_heads, shape.head_dim)
    return [
        Sizes(trees, nodes, shape.vocabulary, layers, *width) for trees, nodes in ((1, 2), (1, 8), (1, 32), (64, 4), (256, 1))
    ]


if __name__ == "__main__":
    main()
