"""The Triton mixture of experts on the GPU: right, and the same bits for a row whatever stands beside it."""

import pytest
import torch
from torch.nn.functional import rms_norm

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from specdec.kernels.moe.kernel import group_triton, moe_triton
from specdec.kernels.moe.reference import moe as moe_reference
from specdec.kernels.moe.routing import norm_and_route_triton, route_triton

pytestmark = pytest.mark.gpu

ROWS = [1, 2, 3, 4, 8, 15, 16, 17, 33, 64, 65, 256, 900]


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator("cuda").manual_seed(seed), device="cuda").bfloat16()


def _layer(experts: int, hidden: int, inner: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    router = _random(experts, hidden, seed=1) / hidden**0.5
    return (
        router,
        _random(experts, 2 * inner, hidden, seed=2) / hidden**0.5,
        _random(experts, hidden, inner, seed=3) / inner**0.5,
    )


@pytest.mark.parametrize(("experts", "hidden", "inner", "k"), [(128, 2048, 768, 8), (60, 512, 88, 4), (8, 256, 200, 2)])
@pytest.mark.parametrize("alike", [False, True])
def test_rows_keep_their_bits_at_any_count(experts: int, hidden: int, inner: int, k: int, alike: bool) -> None:
    layer = _layer(experts, hidden, inner)
    x = _random(1000, hidden, seed=4)
    if alike:  # nearly equal rows crowd onto few experts
        x = _random(1, hidden, seed=5) + x / 64
    norm, next_norm = _random(hidden, seed=6), _random(hidden, seed=7)
    full, normed = moe_triton(x, *layer, k, True, norm_E=norm, next_norm_E=next_norm)
    for rows in ROWS:
        out, out_normed = moe_triton(x[:rows], *layer, k, True, norm_E=norm, next_norm_E=next_norm)
        assert torch.equal(out, full[:rows]), rows
        assert torch.equal(out_normed, normed[:rows]), rows
    for few in (slice(500, 507), slice(511, 512), slice(77, 79)):
        assert torch.equal(moe_triton(x[few], *layer, k, True, norm_E=norm)[0], full[few])


def test_agrees_with_the_reference() -> None:
    layer, x, norm = _layer(32, 256, 96), _random(50, 256, seed=4), _random(256, seed=5)
    for rows in (1, 5, 50):
        normed = rms_norm(x[:rows], (256,), norm, 1e-6)
        expected = x[:rows].double() + moe_reference(normed, *layer, 4, True).double()
        out = moe_triton(x[:rows], *layer, 4, True, norm_E=norm)[0].double()
        assert (out - expected).norm() / expected.norm() < 2e-2


def test_one_launch_for_the_norm_and_the_router_of_a_row() -> None:
    router, x, norm = _random(128, 2048, seed=1) / 45, _random(3, 2048, seed=2), _random(2048, seed=3)
    together = norm_and_route_triton(x, norm, 1e-6, router, 8, True)
    for row in range(3):
        alone = norm_and_route_triton(x[row : row + 1], norm, 1e-6, router, 8, True)
        for mine, theirs in zip(alone, together, strict=True):
            assert torch.equal(mine, theirs[row : row + 1])


def test_route_ties_and_nan() -> None:
    router = torch.zeros(128, 2048, device="cuda", dtype=torch.bfloat16)
    router[70] = router[90] = 1.0
    x = torch.ones(2, 2048, device="cuda", dtype=torch.bfloat16)
    x[1, 3] = float("nan")
    assert route_triton(x, router, 4, True)[1].tolist() == [[70, 90, 0, 1], [0, 1, 2, 3]]


@pytest.mark.parametrize("rows", [17, 64, 1000])
def test_group(rows: int) -> None:
    experts = torch.randint(
        0, 128, (rows, 8), generator=torch.Generator("cuda").manual_seed(0), device="cuda", dtype=torch.int32
    )
    groups = group_triton(experts, 128)
    assert torch.equal(groups.order_P.long(), experts.flatten().argsort(stable=True))
    assert torch.equal(groups.starts_X[1:].long(), torch.bincount(experts.flatten(), minlength=128).cumsum(0))
