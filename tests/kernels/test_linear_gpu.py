"""The Triton linear layer on the GPU: right, and the same bits for a row whatever stands beside it."""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from specdec.kernels.linear.kernel import embed_and_norm_triton, linear_splits_triton, linear_triton, rms_norm_triton
from specdec.kernels.tile_tables import Tile

pytestmark = pytest.mark.gpu

ROWS = [1, 2, 3, 4, 8, 16, 17, 33, 64, 65, 128, 257]
SHAPES = [(5120, 2048), (2048, 4096), (128, 2048), (576, 576), (1000, 1536), (49, 200)]


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda").to(dtype)


@pytest.mark.parametrize(("width", "depth"), SHAPES)
def test_rows_keep_their_bits_at_any_count_and_slot(width: int, depth: int) -> None:
    x, w = _random(513, depth, seed=1), _random(width, depth, seed=2) / depth**0.5
    full = linear_triton(x, w)
    reference = x.double() @ w.double().T
    assert (full.double() - reference).norm() / reference.norm() < 3e-3
    for rows in ROWS:
        assert torch.equal(linear_triton(x[:rows], w), full[:rows]), rows
    order = torch.randperm(513, generator=torch.Generator().manual_seed(3)).cuda()
    assert torch.equal(linear_triton(x[order[:40]].contiguous(), w), full[order[:40]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tiles_do_not_show_in_the_bits(dtype: torch.dtype) -> None:
    x, w = _random(70, 2048, seed=1, dtype=dtype), _random(384, 2048, seed=2, dtype=dtype)
    expected = linear_triton(x, w, out_dtype=torch.float32)
    side_by_side = [(1, 8, 512, 4, 1), (2, 16, 64, 4, 6), (16, 16, 128, 4, 4), (32, 32, 64, 4, 3), (64, 32, 64, 4, 3)]
    in_turn = [(16, 64, 64, 4, 4), (32, 32, 128, 4, 3), (64, 128, 64, 4, 3), (128, 128, 64, 8, 3)]
    for tile in [Tile(*shape) for shape in side_by_side] + [Tile(*shape, True) for shape in in_turn]:
        assert torch.equal(linear_triton(x, w, out_dtype=torch.float32, tile=tile), expected), tile


def test_bias_and_residual() -> None:
    x, w, bias, residual = _random(5, 200), _random(37, 200, seed=1), _random(37, seed=2), _random(5, 37, seed=3)
    expected = (linear_triton(x, w, out_dtype=torch.float32) + bias.float()).bfloat16() + residual
    assert torch.equal(linear_triton(x, w, bias, residual=residual), expected)


def test_split_products_keep_their_bits() -> None:
    x, w = _random(300, 2048, seed=1), _random(128, 2048, seed=2) / 45
    full = linear_splits_triton(x, w, 8)
    assert torch.allclose(full.sum(0), x.float() @ w.float().T, rtol=1e-2, atol=1e-2)
    for rows in ROWS:
        assert torch.equal(linear_splits_triton(x[:rows], w, 8), full[:, :rows]), rows


@pytest.mark.parametrize("width", [64, 576, 2048, 3000])
def test_norm(width: int) -> None:
    x, weight = _random(9, width, seed=1), _random(width, seed=2)
    out = rms_norm_triton(x, weight, 1e-6)
    expected = torch.nn.functional.rms_norm(x.double(), (width,), eps=1e-6) * weight.double()
    assert (out.double() - expected).norm() / expected.norm() < 5e-3
    assert torch.equal(rms_norm_triton(x[4:5].contiguous(), weight, 1e-6), out[4:5])


def test_embeddings_and_their_norm() -> None:
    table, weight = _random(1000, 2048, seed=1), _random(2048, seed=2)
    tokens = torch.tensor([3, 0, 999], device="cuda")
    stream, normed = embed_and_norm_triton(tokens, table, weight, 1e-6)
    assert torch.equal(stream, table[tokens])
    assert torch.equal(normed, rms_norm_triton(table[tokens], weight, 1e-6))
