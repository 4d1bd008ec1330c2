"""What `swiglu` means, in plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor


def swiglu(gate_up_R2I: Tensor) -> Tensor:
    """silu(gate) * up, [R, I] in the input's dtype, computed in float32."""
    gate, up = gate_up_R2I.float().chunk(2, -1)
    return (F.silu(gate) * up).to(gate_up_R2I.dtype)
