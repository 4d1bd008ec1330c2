"""What `linear` means, in plain PyTorch. Not row-invariant: the matrix library picks its kernel by the number of rows."""

from torch import Tensor


def linear(x_RK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, computed in float32, [R, N] in x's dtype."""
    out_RN = x_RK.float() @ weight_NK.float().T
    if bias_N is not None:
        out_RN = out_RN + bias_N.float()
    return out_RN.to(x_RK.dtype)
