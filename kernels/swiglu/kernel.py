"""Triton gated activation; element by element, so nothing beside an element can show in its bits."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from specdec.kernels.launch import overlaps

BLOCK = 512


@triton.jit
def _swiglu_kernel(p_gate_up, p_out, inner, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Grid (rows, blocks of the inner size)."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_i = i < inner
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    gate = tl.load(p_gate_up + row * 2 * inner + i, m_i, other=0.0).to(tl.float32)
    up = tl.load(p_gate_up + row * 2 * inner + inner + i, m_i, other=0.0).to(tl.float32)
    DTYPE: tl.constexpr = p_out.dtype.element_ty
    silu = (gate / (1.0 + tl.exp(-gate))).to(DTYPE).to(tl.float32)
    tl.store(p_out + row * inner + i, (silu * up).to(DTYPE), m_i)


def swiglu_triton(gate_up_R2I: Tensor) -> Tensor:
    """[R, I] of contiguous [R, 2I] in bf16 or fp16; see `specdec.kernels.swiglu.swiglu`."""
    num_rows, width = gate_up_R2I.shape
    inner = width // 2
    out = torch.empty((num_rows, inner), dtype=gate_up_R2I.dtype, device=gate_up_R2I.device)
    pdl = overlaps(gate_up_R2I.device)
    grid = (num_rows, triton.cdiv(inner, BLOCK))
    _swiglu_kernel[grid](gate_up_R2I, out, inner, BLOCK, PDL=pdl, launch_pdl=pdl, num_warps=4, enable_fp_fusion=False)
    return out
