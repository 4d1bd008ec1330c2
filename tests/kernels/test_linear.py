"""The CPU's linear layer: what it computes, and that a row's bits depend on that row alone."""

import dataclasses

import pytest
import torch
from torch import Tensor

import specdec.kernels.linear as linear_module
from specdec.kernels.linear import exact_rows, linear, pack
from specdec.kernels.linear.exact_rows import ExactRows
from specdec.kernels.linear.reference import linear as reference

# a real model's projections, powers of two, and sizes that fill no register or block
SHAPES = [(960, 576), (576, 1536), (128, 64), (16, 64), (8, 4096), (100, 63), (257, 129), (7, 5), (33, 1), (1, 64)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# float16 has no fast path on most CPUs
CASES = [(shape, dtype) for shape in SHAPES for dtype in DTYPES if dtype != torch.float16 or shape[0] * shape[1] < 20_000]
ROW_COUNTS = [*range(1, 41), 64, 65, 100, 127, 128, 300]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def random(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("keep_plain", [False, True])
@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_agrees_with_the_reference(shape: tuple[int, int], dtype: torch.dtype, keep_plain: bool) -> None:
    weight, bias = random(*shape, dtype=dtype, seed=1), random(shape[0], dtype=dtype, seed=2)
    packed = pack(weight, keep_plain=keep_plain)
    for num_rows in (0, 1, 3, 16):
        x = random(num_rows, shape[1], dtype=dtype, seed=num_rows)
        for b in (None, bias):
            out = linear(x, packed, b)
            assert (out.dtype, out.shape) == (dtype, (num_rows, shape[0]))
            scale = shape[1] ** 0.5
            torch.testing.assert_close(out, reference(x, weight, b), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("keep_plain", [False, True])
@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_a_row_has_the_same_bits_at_any_number_of_rows_and_in_any_slot(
    shape: tuple[int, int], dtype: torch.dtype, keep_plain: bool
) -> None:
    packed = pack(random(*shape, dtype=dtype, seed=1), keep_plain=keep_plain)
    bias = random(shape[0], dtype=dtype, seed=2)
    x = random(300, shape[1], dtype=dtype, seed=3)
    whole = linear(x, packed, bias)
    for num_rows in ROW_COUNTS:
        for first in {0, (300 - num_rows) // 2, 300 - num_rows}:
            rows = slice(first, first + num_rows)
            assert torch.equal(linear(x[rows], packed, bias), whole[rows]), (num_rows, first)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_however_many_threads_share_the_work(dtype: torch.dtype, num_threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for shape in SHAPES[:2]:
            test_a_row_has_the_same_bits_at_any_number_of_rows_and_in_any_slot(shape, dtype, keep_plain=True)
            test_a_row_has_the_same_bits_at_any_number_of_rows_and_in_any_slot(shape, dtype, keep_plain=False)
    finally:
        torch.set_num_threads(before)


def test_rows_with_gaps_between_them_give_the_same_bits() -> None:
    packed = pack(random(96, 64, dtype=torch.float32, seed=1))
    wide = random(5, 100, dtype=torch.float32, seed=2)
    assert torch.equal(linear(wide[:, 10:74], packed), linear(wide[:, 10:74].contiguous(), packed))


def test_a_plain_weight_is_shared_and_a_packed_one_is_not() -> None:
    weight = random(64, 32, dtype=torch.float32, seed=1)
    assert pack(weight, keep_plain=True).data.data_ptr() == weight.data_ptr()
    x = random(4, 32, dtype=torch.float32, seed=2)
    packed = pack(weight)
    before = linear(x, packed)
    if packed.path.value == "onednn":
        weight.zero_()
        assert torch.equal(linear(x, packed), before)


@pytest.mark.parametrize("allowed", [(32,), (1, 2, 32), (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256)])
def test_rows_are_padded_or_cut_to_the_numbers_that_are_exact(allowed: tuple[int, ...]) -> None:
    packed = pack(random(96, 64, dtype=torch.float32, seed=1))
    restricted = dataclasses.replace(packed, rows=ExactRows(allowed[0], allowed))
    x = random(300, 64, dtype=torch.float32, seed=2)
    expected = linear(x, packed)
    for rows in (0, 1, 5, 31, 32, 33, 64, 65, 100, 200, 300):
        sizes = linear_module._cut(rows, allowed)
        assert set(sizes) <= set(allowed)
        assert rows <= sum(sizes) < max(rows, 1) + 32
        assert torch.equal(linear(x[:rows], restricted), expected[:rows])


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ((), ExactRows(1)),
        ((2,), ExactRows(2)),
        ((33,), ExactRows(1, (1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 14, 16, 17, 24, 31, 32))),
        ((7, 14), ExactRows(14)),
        ((32, 33), ExactRows(32, (32,))),
        ((17, 31, 33), ExactRows(31, (31, 32))),
    ],
)
def test_the_trial_finds_the_numbers_of_rows_at_which_the_order_changes(
    monkeypatch: pytest.MonkeyPatch, changes: tuple[int, ...], found: ExactRows
) -> None:
    """A product whose terms are added in another order from some numbers of rows on."""

    def ordered(x: Tensor, data: Tensor, bias: Tensor | None) -> Tensor:
        order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(sum(len(x) >= change for change in changes)))
        return (x[:, None, order] * data[None, :, order]).sum(-1)

    monkeypatch.setattr(exact_rows, "product", ordered)
    assert exact_rows._try(8, 64, torch.float32, 0) == found
