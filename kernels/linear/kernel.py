"""Triton linear layer, bitwise the same row for any number of rows (bf16 or fp16 in, fp32 accumulation).

K is walked in order in accumulator chains whose number depends on K alone, so tile shapes never show in the bits.
Kernels are chained by programmatic dependent launch: each lets its successor start early, and may load its own weights
before it waits for its predecessor's output. Legend: M rows, N outputs, K inputs, S splits of K.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from specdec.kernels.launch import leave_room, overlaps, shared_memory
from specdec.kernels.tile_tables import Product, Tile, measured, remembered, row_bucket


@triton.jit
def chained_product(
    p_xs,
    p_ws,
    m_x,
    m_w,
    K: tl.constexpr,
    CHAINS: tl.constexpr,
    IN_TURN: tl.constexpr,
    WAIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    p_arrived=None,
    arrivals: tl.constexpr = 0,
):
    """float32 [BLOCK_M, BLOCK_N]: rows at `p_xs` times rows at `p_ws`, both [., K].

    K is cut into CHAINS equal parts, each one accumulator chain in order of k; the parts are added first to last. They run
    side by side, because a tensor core takes 33 cycles for a step of one chain, or IN_TURN, where the tile is large enough
    to hide that: the same bits. WAIT: x is written by the kernel before this one, or, where there is `p_arrived`, by programs
    of this one, until that counter is `arrivals`. Where rows are few, the first tile of weights is loaded before the wait.
    """
    if CHAINS == 4 and not IN_TURN:
        acc4 = _four_chains(p_xs, p_ws, m_x, m_w, K // 4, WAIT, BLOCK_M, BLOCK_N, BLOCK_K, STAGES, p_arrived, arrivals)
        even, odd = tl.split(tl.permute(tl.reshape(acc4, (2, 2, BLOCK_M, BLOCK_N)), (2, 3, 0, 1)))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        total = first + second + third + fourth
    else:
        if WAIT:
            _wait(p_arrived, arrivals)
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        # flattened: one pipeline of loads for all chains, which does not run dry between two
        for chain in tl.range(0, CHAINS, flatten=True):
            offset = chain * (K // CHAINS)
            acc = _one_chain(p_xs + offset, p_ws + offset, m_x, m_w, K // CHAINS, BLOCK_M, BLOCK_N, BLOCK_K, STAGES)
            # the select keeps the compiler from adding inside the product, which would be another order of addition
            total += tl.where(m_x[:, None], acc, 0.0)
    return total


@triton.jit
def _wait(p_arrived, arrivals: tl.constexpr):
    """For the kernel before this one; or until so many programs of this one have said that they are done."""
    if p_arrived is None:
        gdc_wait()
    else:
        while tl.atomic_add(p_arrived, 0, sem="acquire") < arrivals:
            pass
        tl.debug_barrier()


@triton.jit
def _four_chains(
    p_xs,
    p_ws,
    m_x,
    m_w,
    PART: tl.constexpr,
    WAIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    p_arrived,
    arrivals: tl.constexpr,
):
    """[4, BLOCK_M, BLOCK_N]: the four chains of `chained_product` side by side."""
    k = tl.arange(0, BLOCK_K)
    part = tl.arange(0, 4)[:, None, None] * PART
    p_x4 = p_xs[None, :, None] + part + k[None, None, :]
    p_w4 = p_ws[None, :, None] + part + k[None, None, :]
    m_x4 = m_x[None, :, None]
    m_w4 = m_w[None, :, None]
    acc4 = tl.zeros((4, BLOCK_M, BLOCK_N), tl.float32)
    # tiles outside the loop; many rows want the registers for more programs
    FIRST: tl.constexpr = BLOCK_K if BLOCK_K >= PART or (WAIT and BLOCK_M <= 8) else 0
    if FIRST:
        m_k = (k < PART)[None, None, :]
        b_w = tl.load(p_w4, m_w4 & m_k, other=0.0, eviction_policy="evict_first")
    if WAIT:
        _wait(p_arrived, arrivals)
    if FIRST:
        b_x = tl.load(p_x4, m_x4 & m_k, other=0.0)
        acc4 = tl.dot(b_x, tl.permute(b_w, (0, 2, 1)), acc4)
    if FIRST < PART:
        for start in tl.range(FIRST, PART, BLOCK_K, num_stages=STAGES):
            if PART % BLOCK_K:
                m_k = (start + k < PART)[None, None, :]
                b_x = tl.load(p_x4 + start, m_x4 & m_k, other=0.0)
                b_w = tl.load(p_w4 + start, m_w4 & m_k, other=0.0, eviction_policy="evict_first")
            else:
                b_x = tl.load(p_x4 + start, m_x4, other=0.0)
                b_w = tl.load(p_w4 + start, m_w4, other=0.0, eviction_policy="evict_first")
            acc4 = tl.dot(b_x, tl.permute(b_w, (0, 2, 1)), acc4)
    return acc4


@triton.jit
def _one_chain(
    p_xs,
    p_ws,
    m_x,
    m_w,
    PART: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """[BLOCK_M, BLOCK_N]: one accumulator chain over PART inputs."""
    k = tl.arange(0, BLOCK_K)
    p_x2 = p_xs[:, None] + k[None, :]
    p_w2 = p_ws[:, None] + k[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in tl.range(0, PART, BLOCK_K, num_stages=STAGES):
        if PART % BLOCK_K:
            m_k = (start + k < PART)[None, :]
            b_x = tl.load(p_x2 + start, m_x[:, None] & m_k, other=0.0)
            b_w = tl.load(p_w2 + start, m_w[:, None] & m_k, other=0.0, eviction_policy="evict_first")
        else:
            b_x = tl.load(p_x2 + start, m_x[:, None], other=0.0)
            b_w = tl.load(p_w2 + start, m_w[:, None], other=0.0, eviction_policy="evict_first")
        acc = tl.dot(b_x, b_w.T, acc)
    return acc


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
    STAGES: tl.constexpr,
    GROUP_N: tl.constexpr,
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

    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    p_xs = p_x + m.to(tl.int64) * stride_x + split * SPLIT_K
    p_ws = p_w + n.to(tl.int64) * K + split * SPLIT_K
    acc = chained_product(p_xs, p_ws, m < M, n < N, SPLIT_K, CHAINS, IN_TURN, PDL, BLOCK_M, BLOCK_N, BLOCK_K, STAGES)

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
def _embed_kernel(p_tokens, p_table, p_weight, p_stream, p_normed, eps, K: tl.constexpr, BLOCK: tl.constexpr):
    """One row per program. The round's tables are there for whoever starts after this kernel: it lets nobody start early."""
    k = tl.arange(0, BLOCK)
    m_k = k < K
    row = tl.program_id(0).to(tl.int64)
    b_weight = tl.load(p_weight + k, m_k, other=0.0).to(tl.float32)
    b_x = tl.load(p_table + tl.load(p_tokens + row) * K + k, m_k, other=0.0)
    tl.store(p_stream + row * K + k, b_x, m_k)
    tl.store(p_normed + row * K + k, normalised(b_x.to(tl.float32), b_weight, eps, K, p_normed.dtype.element_ty), m_k)


@triton.jit
def normalised(b_x, b_weight, eps, K: tl.constexpr, DTYPE: tl.constexpr):
    """RMS norm of one row held as a 1-d block; the order of the sum depends on the block's length and the warps alone."""
    return scaled(b_x, inverse_rms(b_x, eps, K), b_weight, DTYPE)


@triton.jit
def inverse_rms(b_x, eps, K: tl.constexpr):
    """1 / rms of one row held as a 1-d block."""
    return tl.rsqrt(tl.sum(b_x * b_x, 0) / K + eps)


@triton.jit
def scaled(b_x, inverse, b_weight, DTYPE: tl.constexpr):
    """The elementwise end of the norm."""
    return ((b_x * inverse).to(DTYPE).to(tl.float32) * b_weight).to(DTYPE)


def linear_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """`x @ weight.T (+ bias) (+ residual)`.

    x: [M, K], last dimension contiguous; weight: [N, K] contiguous, K a multiple of 8; bias: [N]; residual: [M, N]
    contiguous. Returns [M, N] in `out_dtype` (x's by default). `tile` replaces the table's choice.
    """
    num_rows, width = x.shape[0], weight.shape[0]
    out = x.new_empty((num_rows, width), dtype=out_dtype or x.dtype)
    _launch(x, weight, bias, residual, out, 1, tile or device_tile(num_rows, width, x.shape[1], x.device))
    return out


def linear_splits_triton(x: Tensor, weight: Tensor, num_splits: int, *, tile: Tile | None = None) -> Tensor:
    """Partial products over `num_splits` equal parts of K: float32 [num_splits, M, N], to be added in order by the reader.

    For layers with too few outputs to fill a GPU, the router above all.
    """
    num_rows, width = x.shape[0], weight.shape[0]
    out = x.new_empty((num_splits, num_rows, width), dtype=torch.float32)
    few = Tile(min(64, triton.next_power_of_2(num_rows)), 16, min(256, x.shape[1] // num_splits), 4, 2)
    _launch(x, weight, None, None, out, num_splits, tile or few)
    return out


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the last dimension of contiguous x [M, K]; weight: [K]. Returns [M, K] in x's dtype."""
    out = torch.empty_like(x)
    width = x.shape[1]
    block = triton.next_power_of_2(width)
    pdl = overlaps(x.device)
    options = {"num_warps": norm_warps(block), "enable_fp_fusion": False, "launch_pdl": pdl}
    _norm_kernel[(len(x),)](x, weight, out, eps, width, block, PDL=pdl, **options)
    return out


def embed_and_norm_triton(tokens_R: Tensor, table_VE: Tensor, weight_E: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The rows' embeddings, and their RMS norm: [R, E] each; everything contiguous."""
    num_rows, width = len(tokens_R), table_VE.shape[1]
    stream = table_VE.new_empty((num_rows, width))
    normed = torch.empty_like(stream)
    block = triton.next_power_of_2(width)
    options = {"num_warps": norm_warps(block), "enable_fp_fusion": False}
    _embed_kernel[(num_rows,)](tokens_R, table_VE, weight_E, stream, normed, eps, width, block, **options)
    return stream, normed


def norm_warps(block: int) -> int:
    """Warps of a program that holds one row of `block` values; part of the norm's bits, so one rule for all callers."""
    return max(1, min(8, block // 256))


def num_chains(depth: int) -> int:
    """Accumulator chains of a product over `depth`: part of its bits, so a function of depth alone."""
    return 4 if depth % 32 == 0 else 1


def choose_tile(num_rows: int, width: int, depth: int) -> Tile:
    """The tile for x [num_rows, depth] and `width` outputs."""
    m, part = triton.next_power_of_2(num_rows), depth // num_chains(depth)
    if m <= 128 and (tile := _narrow_tile(m, width, max(16, triton.next_power_of_2(part)))) is not None:
        return tile
    if num_rows > 256 and width >= 1024:
        return Tile(128, 128, 128, 8, 3, True) if depth >= 4096 else Tile(128, 128, 64, 8, 4, True)
    if num_rows > 64:
        if width < 1 << 12:  # too few tiles to fill the device
            return Tile(32, 64, 64, 4, 4) if num_rows <= 128 else Tile(64, 64, 128, 4, 4, True)
        if num_rows > 128:
            return Tile(128, 128, 64, 8, 4, True)
        return Tile(64, 64, 64, 4, 5, True) if width < 1 << 16 else Tile(128, 64, 64, 8, 4, True)
    if width <= 8192 and ((m == 1 and part <= 1024) or (m <= 4 and part == 1024)):
        # one wave of programs that hold all of their weights in registers before the predecessor has ended
        return Tile(m, 16 if width > 4096 and part <= 512 else 8, max(16, triton.next_power_of_2(part)), 4, 1)
    if width >= 1 << 16:
        few = Tile(m, 16, 128, 4, 4) if m <= 16 else Tile(32, 32, 64, 4, 3)
        return few if m <= 32 else Tile(64, 64, 64, 4, 5, True)
    if m == 64 and width >= 4096 and depth % 512 == 0:
        return Tile(64, 64, 128, 4, 4, True)
    if m == 64:
        return Tile(32, 32, 64 if depth < 4096 else 128, 4, 3)
    if m <= 8:
        return Tile(m, 8, 128, 4, 4)
    if m <= 32 and depth >= 4096:
        return Tile(m, 16, 128, 4, 5 if m <= 16 else 4)
    return Tile(m, 16, 64, 4, 6 if m <= 16 else 4)


def _narrow_tile(m: int, width: int, part: int) -> Tile | None:
    """Of layers with so few inputs that a program holds all of its weights at once. Fitted on SmolLM2's products on an H200.

    m, part: rows, and inputs of an accumulator chain, as powers of two.
    """
    if part > 512 or (part == 512 and width > 1024):
        return None
    if part == 512:
        if m <= 4:
            return Tile(m, 16, part, 4, 1)
        return Tile(16, 16, part, 8, 1) if m <= 32 else Tile(16, 16, 128, 4, 4)
    if width >= 1 << 15:
        if m < 8 or (m == 8 and width >= 1 << 16):
            return Tile(m, 16, part, 4, 1)
        if m > 64 or width >= 1 << 16:
            return None
        return Tile(64, 32, 64, 4, 2) if m == 64 else Tile(max(m, 16), 64, 64, 4, 3)
    if m <= 16:
        return Tile(m, 32 if width >= 2048 else 16, part, 4, 1)
    if width >= 2048:
        return Tile(32, 32, part, 4, 1) if m <= 64 and width <= 4096 else None
    return Tile(16, 32, part, 4, 1)


@remembered
def device_tile(num_rows: int, width: int, depth: int, device: torch.device) -> Tile:
    """The measured tile, else `choose_tile`'s, fitted to the device."""
    tile = measured(Product("linear", row_bucket(num_rows), width, depth), device)
    return (tile or choose_tile(num_rows, width, depth)).fitted(*shared_memory(device))


def _launch(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor, splits: int, tile: Tile
) -> None:
    num_rows, depth = x.shape
    width = weight.shape[0]
    assert depth % splits == 0, "splits of K are equal"
    pdl = overlaps(x.device)
    grid = (triton.cdiv(num_rows, tile.m) * triton.cdiv(width, tile.n), splits)
    kernel = _linear_kernel[grid](
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
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        GROUP_N=8,
        PDL=pdl,
        launch_pdl=pdl,
        **tile.options,
    )
    if pdl and num_rows == 1:
        leave_room(kernel)
