"""The gated activation of a feed-forward layer: silu(gate) * up.

Legend of shape suffixes: R rows, I inner size.
"""

from torch import Tensor

from specdec.kernels.linear import uses_triton

__all__ = ["swiglu"]


def swiglu(gate_up_R2I: Tensor) -> Tensor:
    """[R, I] of [R, 2I], gate in the first half; silu computed in float32, rounded to the input's dtype before and after `up`.

    silu is spelled x / (1 + exp(-x)): on the CPU `F.silu` computes the elements that do not fill a vector register with
    another exp, so that an element's bits depend on where it lies.
    """
    if uses_triton(gate_up_R2I.device):
        from specdec.kernels.swiglu.kernel import swiglu_triton

        return swiglu_triton(gate_up_R2I)
    gate, up = gate_up_R2I.chunk(2, -1)
    wide = gate.float()
    return wide.neg().exp_().add_(1).reciprocal_().mul_(wide).to(gate.dtype) * up
