"""What `moe` means, in plain PyTorch: every expert for every row, in float32."""

import torch
import torch.nn.functional as F
from torch import Tensor


def moe(x_RE: Tensor, router_XE: Tensor, gate_up_XIE: Tensor, down_XEI: Tensor, k: int, renormalise: bool) -> Tensor:
    """[R, E] in x's dtype; router [X, E], gate_up [X, 2I, E] gate first, down [X, E, I]."""
    x = x_RE.float()
    weights_RX = torch.softmax(x @ router_XE.float().T, -1)
    top = weights_RX.sort(dim=-1, descending=True, stable=True)
    kept_Rk = top.values[:, :k]
    if renormalise:
        kept_Rk = kept_Rk / kept_Rk.sum(-1, keepdim=True)
    gate_up_RXI = torch.einsum("re,xie->rxi", x, gate_up_XIE.float())
    gate, up = gate_up_RXI.chunk(2, -1)
    all_RXE = torch.einsum("rxi,xei->rxe", F.silu(gate) * up, down_XEI.float())
    picked_RkE = all_RXE.gather(1, top.indices[:, :k, None].expand(-1, -1, x.shape[1]))
    return (picked_RkE * kept_Rk[:, :, None]).sum(1).to(x_RE.dtype)
