"""Linear layers and norms whose output row depends on that row alone: the same bits at any number of rows, in any slot.

Legend of shape suffixes: R rows, N output features, K input features.
"""

import functools
import platform
from dataclasses import dataclass
from enum import Enum
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PackedWeight", "embed_and_norm", "least_rows", "linear", "pack", "rms_norm", "uses_triton"]

# from this many rows on, and at its multiples, F.linear gives a row the same bits on the CPU
_TORCH_ROWS = 16
# with AMX, oneDNN cuts K by the number of rows. So products have one of these, as far as a row's bits are the same at all of
# them, which is tried out
_AMX_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256)
_ALONE_ROWS = 8  # that are tried one by one
_PADDED_ROWS = 64  # up to so many rows are padded to the next of them, more are cut
_ALWAYS_EXACT = (32,)  # one number of rows alone
# oneDNN lays a weight out for a batch of about this size. Without AMX the choice does not show in the bits; with it, more
# numbers of rows agree in the layout for one row (SmolLM2's weights, Sapphire Rapids, torch 2.11)
_ONEDNN_ROWS, _AMX_LAYOUT_ROWS = 16, 1


class _Path(Enum):
    ONEDNN = "onednn"
    TORCH = "torch"
    TRITON = "triton"


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight [N, K] as its linear layer wants it; `data` may be an opaque oneDNN layout."""

    data: Tensor
    path: _Path
    min_rows: int  # fewer rows are computed by another kernel, with other bits
    rows: tuple[int, ...] = ()  # numbers of rows that products have; empty: any

    @property
    def nbytes(self) -> int:
        return self.data.numel() * self.data.element_size()


def uses_triton(device: torch.device) -> bool:
    """Whether the layers run as Triton kernels there: on every GPU."""
    return device.type == "cuda"


@functools.cache
def _onednn_computes(dtype: torch.dtype) -> bool:
    if not torch._C._has_mkldnn or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@functools.cache
def _has_amx(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()


_exact_rows: dict[tuple[int, int, bool, int], tuple[int, ...]] = {}


def _find_exact_rows(weight_NK: Tensor, data: Tensor, keep_plain: bool) -> tuple[int, ...]:
    """Those of `_AMX_ROWS` at which a row's bits are what they are at one row, tried once for each shape and number of threads;
    `_ALWAYS_EXACT` where these are too few."""
    num_features, num_inputs = weight_NK.shape
    key = (num_features, num_inputs, keep_plain, torch.get_num_threads())
    if key not in _exact_rows:
        x_RK = torch.randn((_AMX_ROWS[-1], num_inputs), generator=torch.Generator().manual_seed(0)).to(weight_NK.dtype)
        products = {rows: _onednn(x_RK[:rows], data, None) for rows in _AMX_ROWS}
        alone_RN = torch.cat([_onednn(x_RK[row : row + 1], data, None) for row in range(_ALONE_ROWS)])
        alike = {rows: found for rows, found in products.items() if torch.equal(found[:_ALONE_ROWS], alone_RN[:rows])}
        most_RN = alike[max(alike)]
        exact = tuple(rows for rows, found in alike.items() if torch.equal(found, most_RN[:rows]))
        _exact_rows[key] = exact if exact[-1] >= _ALWAYS_EXACT[0] else _ALWAYS_EXACT
    return _exact_rows[key]


def least_rows(dtype: torch.dtype, device: torch.device) -> int:
    """Rows that `linear` wants at least; whoever brings as many saves each layer the padding. AMX blocks aside."""
    return 2 if device.type == "cpu" and dtype == torch.float32 and _onednn_computes(dtype) else 1


def pack(weight_NK: Tensor, *, keep_plain: bool = False) -> PackedWeight:
    """Prepare a weight for `linear`; drop the plain one afterwards, the packed one does not refer to it.

    Args:
        weight_NK: float32, bfloat16 or float16, contiguous.
        keep_plain: share the storage of `weight_NK` and do not copy it, for a matrix that is also read otherwise
            (an embedding table that is the output head too). Slower than the packed layout.
    """
    assert weight_NK.ndim == 2, weight_NK.shape
    if uses_triton(weight_NK.device):
        return PackedWeight(weight_NK, _Path.TRITON, 1)
    if weight_NK.device.type != "cpu" or not _onednn_computes(weight_NK.dtype):
        return PackedWeight(weight_NK, _Path.TORCH, _TORCH_ROWS)
    amx = _has_amx(weight_NK.dtype)
    layout_rows = _AMX_LAYOUT_ROWS if amx else _ONEDNN_ROWS
    data = weight_NK if keep_plain else torch.ops.mkldnn._reorder_linear_weight(weight_NK, layout_rows)
    rows = _find_exact_rows(weight_NK, data, keep_plain) if amx else ()
    return PackedWeight(data, _Path.ONEDNN, least_rows(weight_NK.dtype, weight_NK.device), rows)


def linear(
    x_RK: Tensor,
    weight: PackedWeight,
    bias_N: Tensor | None = None,
    residual_RN: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """x @ weight.T + bias, then + residual: [R, N], fp32 accumulation, row-invariant.

    Args:
        x_RK: contiguous in its last dimension.
        weight: from `pack`.
        bias_N: in x's dtype.
        residual_RN: contiguous, in x's dtype; the product is rounded to that before they are added.
        out_dtype: float32 or x's dtype, the default. Rounding to x's dtype comes first on the CPU, not at all on a GPU.
    """
    if weight.path is _Path.TRITON:
        from specdec.kernels.linear.kernel import linear_triton

        return linear_triton(x_RK, weight.data, bias_N, residual=residual_RN, out_dtype=out_dtype)
    out_RN = _linear_cpu(x_RK, weight, bias_N)
    if residual_RN is not None:
        out_RN = residual_RN + out_RN
    return out_RN if out_dtype is None else out_RN.to(out_dtype)


def rms_norm(x_RE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, computed in float32 inside: [R, E] in x's dtype."""
    if uses_triton(x_RE.device):
        from specdec.kernels.linear.kernel import rms_norm_triton

        return rms_norm_triton(x_RE.contiguous(), weight_E, eps)
    wide_RE = x_RE.float()
    length_R1 = torch.linalg.vector_norm(wide_RE, dim=-1, keepdim=True)
    scale_R1 = torch.addcmul(_scalar(eps), length_R1, length_R1, value=1 / x_RE.shape[-1]).rsqrt_()
    return (wide_RE * scale_R1).mul_(weight_E).to(x_RE.dtype)


def embed_and_norm(tokens_R: Tensor, table_VE: Tensor, weight_E: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The rows of a table that tokens name, and `rms_norm` of them: [R, E] each.

    Args:
        tokens_R: int64.
        table_VE: contiguous.
        weight_E, eps: of the norm.
    """
    if uses_triton(table_VE.device):
        from specdec.kernels.linear.kernel import embed_and_norm_triton

        return embed_and_norm_triton(tokens_R, table_VE, weight_E, eps)
    stream_RE = F.embedding(tokens_R, table_VE)
    return stream_RE, rms_norm(stream_RE, weight_E, eps)


@functools.cache
def _scalar(value: float) -> Tensor:
    return torch.tensor(value)


def _linear_cpu(x_RK: Tensor, weight: PackedWeight, bias_N: Tensor | None) -> Tensor:
    num_rows = x_RK.shape[0]
    if weight.path is _Path.ONEDNN:
        if weight.rows and num_rows not in weight.rows:
            sizes = _cut(num_rows, weight.rows)
            blocks = torch.split(_pad_rows(x_RK, sum(sizes)), sizes)
            return torch.cat([_onednn(block, weight.data, bias_N) for block in blocks])[:num_rows]
        if num_rows >= weight.min_rows:
            return _onednn(x_RK, weight.data, bias_N)
        return _linear_cpu(_pad_rows(x_RK, weight.min_rows), weight, bias_N)[:num_rows]
    if num_rows % weight.min_rows:
        padded_rows = num_rows + -num_rows % weight.min_rows
        return F.linear(_pad_rows(x_RK, padded_rows), weight.data, bias_N)[:num_rows]
    return F.linear(x_RK, weight.data, bias_N)


@functools.cache
def _cut(num_rows: int, allowed: tuple[int, ...]) -> list[int]:
    """Numbers of rows, all of them allowed, `num_rows` or a few more together."""
    sizes = []
    while num_rows > min(_PADDED_ROWS, allowed[-1]):
        sizes.append(max(size for size in allowed if size <= num_rows))
        num_rows -= sizes[-1]
    if num_rows or not sizes:
        sizes.append(next(size for size in allowed if size >= num_rows))
    return sizes


def _onednn(x_RK: Tensor, data: Tensor, bias_N: Tensor | None) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x_RK, data, bias_N, "none", [], ""))


def _pad_rows(x_RK: Tensor, num_rows: int) -> Tensor:
    return F.pad(x_RK, (0, 0, 0, num_rows - x_RK.shape[0]))
