"""Linear layers and norms whose output row depends on that row alone: the same bits at any number of rows, in any slot.

Legend of shape suffixes: R rows, N output features, K input features.
"""

import functools
import platform
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.kernels.linear.exact_rows import ExactRows, find_exact_rows, least_rows_found, product, reorder

__all__ = ["PackedWeight", "embed_and_norm", "least_rows", "linear", "pack", "rms_norm", "uses_triton"]

# from this many rows on, and at its multiples, F.linear gives a row the same bits on the CPU
_TORCH_ROWS = 16
# oneDNN lays a weight out for a batch of about this size; with AMX more numbers of rows agree in the layout for one row
# (SmolLM2's weights, Sapphire Rapids, torch 2.11)
_LAYOUT_ROWS, _AMX_LAYOUT_ROWS = 16, 1
_PADDED_ROWS = 64  # where not every number of rows is exact: up to so many are padded to the next that is, more are cut


_ANY_NUMBER = ExactRows(1)


class _Path(Enum):
    ONEDNN = "onednn"
    TORCH = "torch"
    TRITON = "triton"


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight [N, K] as its linear layer wants it; `data` may be an opaque oneDNN layout."""

    data: Tensor
    path: _Path
    rows: ExactRows = _ANY_NUMBER

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


def least_rows(dtype: torch.dtype, device: torch.device) -> int:
    """Rows that weights which were packed so far want at least; whoever brings as many saves each layer the padding."""
    return least_rows_found(dtype) if device.type == "cpu" and _onednn_computes(dtype) else 1


def pack(weight_NK: Tensor, *, keep_plain: bool = False) -> PackedWeight:
    """Prepare a weight for `linear`; drop the plain one afterwards, the packed one does not refer to it.

    Args:
        weight_NK: float32, bfloat16 or float16, contiguous.
        keep_plain: share the storage of `weight_NK` and do not copy it, for a matrix that is also read otherwise
            (an embedding table that is the output head too). Slower than the packed layout.
    """
    assert weight_NK.ndim == 2, weight_NK.shape
    if uses_triton(weight_NK.device):
        return PackedWeight(weight_NK, _Path.TRITON)
    if weight_NK.device.type != "cpu" or not _onednn_computes(weight_NK.dtype):
        return PackedWeight(weight_NK, _Path.TORCH)
    layout_rows = 0 if keep_plain else _AMX_LAYOUT_ROWS if _has_amx(weight_NK.dtype) else _LAYOUT_ROWS
    rows = find_exact_rows(weight_NK.shape[0], weight_NK.shape[1], weight_NK.dtype, layout_rows)
    return PackedWeight(reorder(weight_NK, layout_rows), _Path.ONEDNN, rows)


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
    if weight.path is _Path.TORCH:
        padded_RK = _pad_rows(x_RK, num_rows + -num_rows % _TORCH_ROWS)
        return F.linear(padded_RK, weight.data, bias_N)[:num_rows]
    least, sizes = weight.rows
    if sizes and num_rows not in sizes:
        cut = _cut(num_rows, sizes)
        blocks = torch.split(_pad_rows(x_RK, sum(cut)), cut)
        return torch.cat([product(block, weight.data, bias_N) for block in blocks])[:num_rows]
    if num_rows < least:
        return product(_pad_rows(x_RK, least), weight.data, bias_N)[:num_rows]
    return product(x_RK, weight.data, bias_N)


@functools.cache
def _cut(num_rows: int, sizes: tuple[int, ...]) -> list[int]:
    """Numbers of rows out of `sizes`, together `num_rows` or a few more."""
    cut = []
    while num_rows > min(_PADDED_ROWS, sizes[-1]):
        cut.append(max(size for size in sizes if size <= num_rows))
        num_rows -= cut[-1]
    if num_rows or not cut:
        cut.append(next(size for size in sizes if size >= num_rows))
    return cut


def _pad_rows(x_RK: Tensor, num_rows: int) -> Tensor:
    if num_rows == x_RK.shape[0]:
        return x_RK
    return F.pad(x_RK, (0, 0, 0, num_rows - x_RK.shape[0]))
