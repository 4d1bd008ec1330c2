"""The arithmetic of the Triton kernels of layers at odd sizes without a GPU, through Triton's interpreter."""

from typing import Any

import pytest
import torch

from specdec.kernels.moe.reference import moe as moe_reference
from specdec.kernels.swiglu.reference import swiglu as swiglu_reference
from specdec.kernels.tile_tables import Tile

if torch.cuda.is_available():
    pytest.skip("the GPU tests run the kernels themselves", allow_module_level=True)
linear = pytest.importorskip("specdec.kernels.linear.kernel")
moe = pytest.importorskip("specdec.kernels.moe.kernel")
routing = pytest.importorskip("specdec.kernels.moe.routing")
swiglu = pytest.importorskip("specdec.kernels.swiglu.kernel")
pytestmark = pytest.mark.usefixtures("triton_interpreter")
HALF = torch.float16  # the interpreter has no products of bf16


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(HALF)


def _error(out: torch.Tensor, reference: torch.Tensor) -> float:
    return float((out.double() - reference.double()).norm() / reference.double().norm())


def test_linear_with_all_epilogues_at_odd_sizes() -> None:
    x, w, bias, residual = _random(5, 100, seed=1), _random(37, 100, seed=2), _random(37, seed=3), _random(5, 37, seed=4)
    out = linear.linear_triton(x, w, bias, residual=residual, tile=Tile(16, 32, 32, 1, 1))
    reference = (x.float() @ w.float().T + bias.float()).to(HALF) + residual
    assert _error(out, reference) < 2e-3


def test_rms_norm() -> None:
    x, weight = _random(3, 100), _random(100, seed=1)
    reference = torch.nn.functional.rms_norm(x.float(), (100,), eps=1e-5) * weight.float()
    assert _error(linear.rms_norm_triton(x, weight, 1e-5), reference) < 5e-3


def test_route_ties_go_to_the_lower_expert_and_nan_rows_stay_in_range() -> None:
    router = torch.zeros(12, 128, dtype=HALF)
    router[7] = router[9] = 1.0
    x = torch.ones(2, 128, dtype=HALF)
    x[1, 3] = float("nan")
    weights, experts = routing.route_triton(x, router, 3, True)
    assert experts.tolist() == [[7, 9, 0], [0, 1, 2]]
    assert weights[0].sum().item() == pytest.approx(1.0)


def test_group_sorts_pairs_by_expert() -> None:
    experts = torch.randint(0, 6, (40, 3), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    groups = moe.group_triton(experts, 6)
    assert torch.equal(groups.order_P.long(), experts.flatten().argsort(stable=True))
    assert groups.starts_X.tolist() == [0, *torch.bincount(experts.flatten(), minlength=6).cumsum(0).tolist()]


def test_a_layer_that_fails_halfway_leaves_no_counts_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(moe, "combine_triton", fail)
    moe._arrivals.cache_clear()
    with torch.inference_mode():
        moe._arrivals(torch.device("cpu"), moe.DIRECT_ROWS * 3)
    x, router, norm = _random(2, 128), _random(6, 128, seed=1), _random(128, seed=2)
    with pytest.raises(MemoryError):
        moe.moe_triton(x, router, _random(6, 40, 128, seed=3), _random(6, 128, 20, seed=4), 3, True, norm_E=norm)
    assert not any(moe._arrivals(x.device, moe.DIRECT_ROWS * 3))


def test_embeddings_and_their_norm() -> None:
    table, weight = _random(30, 100), _random(100, seed=1)
    tokens = torch.tensor([3, 0, 29])
    stream, normed = linear.embed_and_norm_triton(tokens, table, weight, 1e-6)
    assert torch.equal(stream, table[tokens])
    assert torch.equal(normed, linear.rms_norm_triton(table[tokens], weight, 1e-6))


@pytest.mark.parametrize("rows", [1, 3, 19])
@pytest.mark.parametrize("hidden", [128, 256])  # the router's products are whole, or in parts that fit one launch with the norm
def test_moe(rows: int, hidden: int) -> None:
    x, router = _random(rows, hidden), _random(6, hidden, seed=1) / 8
    norm, next_norm = _random(hidden, seed=4), _random(hidden, seed=5)
    gate_up, down = _random(6, 40, hidden, seed=2) / 8, _random(6, hidden, 20, seed=3) / 4
    out, normed = moe.moe_triton(x, router, gate_up, down, 3, True, norm_E=norm, next_norm_E=next_norm)
    before = torch.nn.functional.rms_norm(x, (hidden,), norm, 1e-6)
    expected = x + moe_reference(before, router, gate_up, down, 3, True)
    assert _error(out, expected) < 2e-2
    assert _error(normed, torch.nn.functional.rms_norm(expected, (hidden,), next_norm, 1e-6)) < 2e-2
    assert not any(moe._arrivals(x.device, moe.DIRECT_ROWS * 3)), "zeros between two layers"


@pytest.mark.parametrize("inner", [40, 513])
def test_swiglu(inner: int) -> None:
    x = _random(3, 2 * inner)
    assert _error(swiglu.swiglu_triton(x), swiglu_reference(x)) < 1e-3
