"""Sparse Mixture-of-Experts layer: each row through its k experts, and nothing of any other row in the result.

Legend of shape suffixes: R rows, E hidden size, X experts, k experts per row, I expert's inner size.

On a GPU the experts of a layer are one tensor and `kernel.py` runs. The CPU path walks over the touched experts, each of
which sees its rows once. Its linear layers are row-invariant, the row's k results are added by one writer in the order of
their rank, in float32: so the layer is row-invariant.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.kernels.linear import PackedWeight, linear, rms_norm
from specdec.kernels.swiglu import swiglu

__all__ = ["Experts", "moe", "moe_between_norms", "route"]

# one linear layer per expert, or on a GPU all of them as [X, outputs, inputs]
Experts = Sequence[PackedWeight] | Tensor


def route(logits_RX: Tensor, k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """The k experts of each row, best first, ties to the lower expert id, and their weights.

    Args:
        logits_RX: router logits, any float dtype.
        renormalise: whether a row's k weights are scaled to add up to 1.

    Returns:
        float32 [R, k] weights, int64 [R, k] expert ids.
    """
    weights_RX, experts_RX = torch.softmax(logits_RX, -1, dtype=torch.float32).sort(dim=-1, descending=True, stable=True)
    weights_Rk, experts_Rk = weights_RX[:, :k], experts_RX[:, :k]
    if renormalise:
        total_R1 = weights_Rk[:, :1].clone()
        for rank in range(1, k):
            total_R1 += weights_Rk[:, rank : rank + 1]
        weights_Rk = weights_Rk / total_R1
    return weights_Rk, experts_Rk


def moe_between_norms(
    x_RE: Tensor,
    router: PackedWeight,
    gate_up: Experts,
    down: Experts,
    k: int,
    renormalise: bool,
    *,
    norm_E: Tensor,
    next_norm_E: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The residual stream with `moe` of its RMS norm added, and the next layer's RMS norm of that: two times [R, E].

    Args:
        x_RE: the residual stream before this layer, contiguous.
        router: [X, E]; float32 on the CPU, x's dtype on a GPU, where products are summed in float32 as well.
        gate_up, down, k, renormalise: see `moe`.
        norm_E, next_norm_E, eps: of the norms before and after.
    """
    if isinstance(gate_up, Tensor):
        from specdec.kernels.moe.kernel import moe_triton

        assert isinstance(down, Tensor), "the experts' layers are packed alike"
        return moe_triton(x_RE, router.data, gate_up, down, k, renormalise, norm_E=norm_E, next_norm_E=next_norm_E, eps=eps)
    assert not isinstance(down, Tensor), "the experts' layers are packed alike"
    stream_RE = x_RE + moe(rms_norm(x_RE, norm_E, eps), router, gate_up, down, k, renormalise)
    return stream_RE, rms_norm(stream_RE, next_norm_E, eps)


def moe(
    x_RE: Tensor, router: PackedWeight, gate_up: Sequence[PackedWeight], down: Sequence[PackedWeight], k: int, renormalise: bool
) -> Tensor:
    """[R, E] in x's dtype, on the CPU.

    Args:
        x_RE: rows after their norm.
        router: float32 [X, E].
        gate_up: per expert [2I, E], gate first.
        down: per expert [E, I].
        k, renormalise: see `route`.
    """
    num_rows = x_RE.shape[0]
    weights_Rk, experts_Rk = route(linear(x_RE.float(), router), k, renormalise)
    order = experts_Rk.flatten().argsort(stable=True)  # (row, rank) pairs, expert by expert
    counts = torch.bincount(experts_Rk.flatten(), minlength=len(down)).tolist()
    parts = torch.empty(num_rows * k, x_RE.shape[1], dtype=x_RE.dtype, device=x_RE.device)
    for expert, pairs in enumerate(torch.split(order, counts)):
        if len(pairs):
            parts[pairs] = linear(swiglu(linear(x_RE[pairs // k], gate_up[expert])), down[expert])
    parts_RkE = parts.view(num_rows, k, -1).float().mul_(weights_Rk[:, :, None])
    out_RE = parts_RkE[:, 0]
    for rank in range(1, k):
        out_RE = out_RE + parts_RkE[:, rank]
    return out_RE.to(x_RE.dtype)
