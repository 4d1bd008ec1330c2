"""The CPU's mixture of experts and gated activation: what they compute, ties, and that rows do not see each other."""

import pytest
import torch
from torch import Tensor

from specdec.kernels.linear import pack
from specdec.kernels.moe import moe, route
from specdec.kernels.moe.reference import moe as reference
from specdec.kernels.swiglu import swiglu
from specdec.kernels.swiglu.reference import swiglu as swiglu_reference


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_experts", "k", "hidden", "inner"), [(8, 2, 64, 40), (5, 5, 33, 7), (128, 8, 32, 16), (1, 1, 16, 16)]
)
def test_agrees_with_the_reference_and_keeps_rows_apart(
    num_experts: int, k: int, hidden: int, inner: int, dtype: torch.dtype, renormalise: bool
) -> None:
    router = random(num_experts, hidden, seed=1)
    gate_up = (random(num_experts, 2 * inner, hidden, seed=2) / hidden**0.5).to(dtype)
    down = (random(num_experts, hidden, inner, seed=3) / inner**0.5).to(dtype)
    x = random(90, hidden, seed=4).to(dtype)
    packed = (pack(router), [pack(w) for w in gate_up], [pack(w) for w in down])

    whole = moe(x, *packed, k, renormalise)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(whole, reference(x, router, gate_up, down, k, renormalise), rtol=tolerance, atol=tolerance)
    for first, count in [(0, 1), (89, 1), (5, 2), (7, 3), (30, 16), (1, 37)]:
        rows = slice(first, first + count)
        assert torch.equal(moe(x[rows], *packed, k, renormalise), whole[rows]), (first, count)


def test_ties_go_to_the_lower_expert() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 1.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    weights, experts = route(logits, 4, renormalise=True)
    assert experts.tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]
    torch.testing.assert_close(weights.sum(-1), torch.ones(2))
    weights, _ = route(logits, 4, renormalise=False)
    torch.testing.assert_close(weights[1], torch.full((4,), 0.2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_gives_an_element_the_same_bits_wherever_it_lies(dtype: torch.dtype) -> None:
    values = (random(4000, seed=1) * 6).to(dtype)
    values[:3] = torch.tensor([-200.0, 200.0, 0.0])
    gate_up = torch.cat((values[None], torch.ones(1, 4000, dtype=dtype)), -1)
    whole = swiglu(gate_up)[0]
    torch.testing.assert_close(whole, swiglu_reference(gate_up)[0], rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
    single = torch.stack([swiglu(torch.stack((value, torch.ones_like(value)))[None])[0, 0] for value in values])
    assert torch.equal(single, whole)
