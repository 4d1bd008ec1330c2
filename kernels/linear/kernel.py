"""Triton linear layer, bitwise the same row for any number of rows (bf16 or fp16 in, fp32 accumulation).

K is walked in order in accumulator chains whose number depends on K alone, so tile shapes never show in the bits.
Kernels are chained by programmatic dependent launch: each lets its successor start early, and asks for its own weights
(into L2) before it waits for its predecessor's output. Legend: M rows, N outputs, K inputs, S splits of K.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

IN_TURN_ROWS = 64  # above, tiles are large enough to run accumulator chains one after the other
PREFETCH_LIMIT = 64 << 10  # bytes per program
PREFETCH_WEIGHT = 32 << 20  # bytes; larger weights would push one another out of L2


@dataclass(frozen=True, slots=True)
class Tile:
    """Shape of one program's work: speed only, never bits. stages: loads in flight, in tiles of BLOCK_K."""

    m: int
    n: int
    k: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int | bool]:
        return {
            "BLOCK_M": self.m,
            "BLOCK_N": self.n,
            "BLOCK_K": self.k,
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": False,
        }


@triton.jit
def prefetch_l2(p_start, num_bytes, LIMIT: tl.constexpr, THREADS: tl.constexpr):
    """Ask for the first min(num_bytes, LIMIT) bytes at `p_start` (16-byte aligned) in L2; returns at once."""
    CHUNK: tl.constexpr = LIMIT // THREADS
    offset = tl.arange(0, THREADS) * CHUNK
    size = tl.minimum(tl.maximum(num_bytes - offset, 0), CHUNK) // 16 * 16
    address = p_start.to(tl.int64, bitcast=True) + tl.where(size > 0, offset, 0)
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [address, tl.maximum(size, 16).to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def chained_product(
    p_xs,
    p_ws,
    m_x,
    m_w,
    K: tl.constexpr,
    CHAINS: tl.constexpr,
    IN_TURN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """float32 [BLOCK_M, BLOCK_N]: rows at `p_xs` times rows at `p_ws`, both [., K].

    K is cut into CHAINS equal parts, each one accumulator chain in order of k; the parts are added first to last. They run
    side by side, because a tensor core takes 33 cycles for a step of one chain, or IN_TURN, where the tile is large enough
    to hide that: the same bits.
    """
    PART: tl.constexpr = K // CHAINS
    k = tl.arange(0, BLOCK_K)
    if CHAINS == 4 and not IN_TURN:
        part = tl.arange(0, 4)[:, None, None] * PART
        p_x4 = p_xs[None, :, None] + part + k[None, None, :]
        p_w4 = p_ws[None, :, None] + part + k[None, None, :]
        acc4 = tl.zeros((4, BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, PART, BLOCK_K):
            m_x4 = m_x[None, :, None]
            m_w4 = m_w[None, :, None]
            if PART % BLOCK_K:
                m_x4 = m_x4 & (start + k < PART)[None, None, :]
                m_w4 = m_w4 & (start + k < PART)[None, None, :]
            b_x = tl.load(p_x4 + start, m_x4, other=0.0)
            b_w = tl.load(p_w4 + start, m_w4, other=0.0, eviction_policy="evict_first")
            acc4 = tl.dot(b_x, tl.permute(b_w, (0, 2, 1)), acc4)
        even, odd = tl.split(tl.permute(tl.reshape(acc4, (2, 2, BLOCK_M, BLOCK_N)), (2, 3, 0, 1)))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        return first + second + third + fourth
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for chain in range(CHAINS):
        p_x2 = p_xs[:, None] + (chain * PART + k)[None, :]
        p_w2 = p_ws[:, None] + (chain * PART + k)[None, :]
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, PART, BLOCK_K):
            m_x2 = m_x[:, None]
            m_w2 = m_w[:, None]
            if PART % BLOCK_K:
                m_x2 = m_x2 & (start + k < PART)[None, :]
                m_w2 = m_w2 & (start + k < PART)[None, :]
            b_x = tl.load(p_x2 + start, m_x2, other=0.0)
            b_w = tl.load(p_w2 + start, m_w2, other=0.0, eviction_policy="evict_first")
            acc = tl.dot(b_x, b_w.T, acc)
        total += acc
    return total


@triton.jit
def _linear_kernel(
    p_x,
    p_w,
    p_bias,
    p_residual,
    p_out,
    M,
    N,
    K: tl.constexpr,
    stride_x,
    SPLIT_K: tl.constexpr,
    CHAINS: tl.constexpr,
    IN_TURN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_N: tl.constexpr,
    PREFETCH: tl.constexpr,
    THREADS: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[split, m, n] = sum over this split's k of x[m, k] w[n, k]; grid (tiles of M times tiles of N, splits)."""
    split = tl.program_id(1)
    # neighbours in time share weights: GROUP_N column tiles for all row tiles, then the next GROUP_N
    num_m = tl.cdiv(M, BLOCK_M)
    num_n = tl.cdiv(N, BLOCK_N)
    group = tl.program_id(0) // (num_m * GROUP_N)
    width = tl.minimum(num_n - group * GROUP_N, GROUP_N)
    within = tl.program_id(0) % (num_m * GROUP_N)
    tile_n = group * GROUP_N + within % width
    tile_m = within // width

    if PDL:
        gdc_launch_dependents()
        if PREFETCH > 0:
            first = tile_n.to(tl.int64) * BLOCK_N
            rows = tl.minimum(N - first, BLOCK_N)
            prefetch_l2(p_w + first * K, rows * K * 2, PREFETCH, THREADS)
        gdc_wait()

    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    p_xs = p_x + m.to(tl.int64) * stride_x + split * SPLIT_K
    p_ws = p_w + n.to(tl.int64) * K + split * SPLIT_K
    acc = chained_product(p_xs, p_ws, m < M, n < N, SPLIT_K, CHAINS, IN_TURN, BLOCK_M, BLOCK_N, BLOCK_K)

    m_rows = m < M
    m_columns = n < N
    m_out = m_rows[:, None] & m_columns[None, :]
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    if HAS_BIAS:
        acc += tl.load(p_bias + n, m_columns, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        # rounded before the sum, as the unfused layer does
        acc = acc.to(p_x.dtype.element_ty).to(tl.float32)
        acc += tl.load(p_residual + at, m_out, other=0.0).to(tl.float32)
    tl.store(p_out + split.to(tl.int64) * M * N + at, acc.to(p_out.dtype.element_ty), m_out)


@triton.jit
def _norm_kernel(p_x, p_weight, p_out, eps, K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """One row per program: out = x / rms(x) * weight, rounded before the weight as Llama's norm is."""
    if PDL:
        gdc_launch_dependents()
    k = tl.arange(0, BLOCK)
    m_k = k < K
    b_weight = tl.load(p_weight + k, m_k, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    at = tl.program_id(0).to(tl.int64) * K + k
    b_x = tl.load(p_x + at, m_k, other=0.0).to(tl.float32)
    tl.store(p_out + at, normalised(b_x, b_weight, eps, K, p_out.dtype.element_ty), m_k)


@triton.jit
def normalised(b_x, b_weight, eps, K: tl.constexpr, DTYPE: tl.constexpr):
    """RMS norm of one row held as a 1-d block; the order of the sum depends on the block's length and the warps alone."""
    inverse = tl.rsqrt(tl.sum(b_x * b_x, 0) / K + eps)
    return ((b_x * inverse).to(DTYPE).to(tl.float32) * b_weight).to(DTYPE)


def linear_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    pdl: bool = True,
    tile: Tile | None = None,
) -> Tensor:
    """`x @ weight.T (+ bias) (+ residual)`.

    x: [M, K], last dimension contiguous; weight: [N, K] contiguous, K a multiple of 8; bias: [N]; residual: [M, N]
    contiguous. Returns [M, N] in `out_dtype` (x's by default). `tile` replaces the table's choice.
    """
    num_rows, width = x.shape[0], weight.shape[0]
    out = x.new_empty((num_rows, width), dtype=out_dtype or x.dtype)
    _launch(x, weight, bias, residual, out, 1, pdl, tile or choose_tile(num_rows, width, x.shape[1]))
    return out


def linear_splits_triton(x: Tensor, weight: Tensor, num_splits: int, *, pdl: bool = True, tile: Tile | None = None) -> Tensor:
    """Partial products over `num_splits` equal parts of K: float32 [num_splits, M, N], to be added in order by the reader.

    For layers with too few outputs to fill a GPU, the router above all.
    """
    num_rows, width = x.shape[0], weight.shape[0]
    out = x.new_empty((num_splits, num_rows, width), dtype=torch.float32)
    few = Tile(min(64, triton.next_power_of_2(num_rows)), 16, min(256, x.shape[1] // num_splits), 4, 2)
    _launch(x, weight, None, None, out, num_splits, pdl, tile or few)
    return out


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float, *, pdl: bool = True) -> Tensor:
    """RMS norm over the last dimension of contiguous x [M, K]; weight: [K]. Returns [M, K] in x's dtype."""
    out = torch.empty_like(x)
    width = x.shape[1]
    block = triton.next_power_of_2(width)
    options = {"num_warps": norm_warps(block), "enable_fp_fusion": False, "launch_pdl": pdl}
    _norm_kernel[(len(x),)](x, weight, out, eps, width, block, PDL=pdl, **options)
    return out


def norm_warps(block: int) -> int:
    """Warps of a program that holds one row of `block` values; part of the norm's bits, so one rule for all callers."""
    return max(1, min(8, block // 256))


def num_chains(depth: int) -> int:
    """Accumulator chains of a product over `depth`: part of its bits, so a function of depth alone."""
    return 4 if depth % 32 == 0 else 1


def choose_tile(num_rows: int, width: int, depth: int) -> Tile:
    """The tile for x [num_rows, depth] and `width` outputs."""
    if num_rows > IN_TURN_ROWS:
        return Tile(128, 128, 64, 8, 3) if num_rows > 256 and width >= 1024 else Tile(64, 64, 64, 4, 4)
    m = triton.next_power_of_2(num_rows)
    if width * depth <= 1 << 20:
        return Tile(m, 16, 64, 4, 4)
    return Tile(m, 16 if width < 4096 else 32, 64, 4, 5 if m <= 16 else 3)


def _launch(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor, splits: int, pdl: bool, tile: Tile
) -> None:
    num_rows, depth = x.shape
    width = weight.shape[0]
    assert depth % splits == 0, "splits of K are equal"
    grid = (triton.cdiv(num_rows, tile.m) * triton.cdiv(width, tile.n), splits)
    wants_prefetch = splits == 1 and num_rows <= IN_TURN_ROWS and weight.nbytes <= PREFETCH_WEIGHT
    _linear_kernel[grid](
        x,
        weight,
        bias,
        residual,
        out,
        num_rows,
        width,
        depth,
        x.stride(0),
        SPLIT_K=depth // splits,
        CHAINS=num_chains(depth) if splits == 1 else 1,
        IN_TURN=num_rows > IN_TURN_ROWS,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        GROUP_N=8,
        PREFETCH=PREFETCH_LIMIT if wants_prefetch else 0,
        THREADS=tile.warps * 32,
        PDL=pdl,
        launch_pdl=pdl,
        **tile.options,
    )
