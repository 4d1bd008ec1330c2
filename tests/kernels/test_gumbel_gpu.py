"""The Triton draw on the GPU: the reference's token at every row, whatever stands beside it."""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from specdec.kernels.gumbel.kernel import gumbel_argmax_triton
from specdec.kernels.gumbel.reference import gumbel_argmax_reference

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("vocab", [50, 1024, 49_152, 151_936])
def test_the_draw_is_that_of_the_reference(vocab: int) -> None:
    generator = torch.Generator("cuda").manual_seed(vocab)
    logits = torch.randn(65, vocab, generator=generator, device="cuda") * 3
    logits[3, 7] = logits[3, 40] = 100.0
    logits[4] = -torch.inf
    logits[5, 9] = torch.nan
    logits[6, 10:] = -torch.inf
    seeds = torch.arange(65, device="cuda") * 0x1234567890AB
    positions = torch.arange(65, device="cuda") + 2**31 - 20
    temperatures = torch.linspace(0.2, 2.0, 65, device="cuda")
    noisy = torch.arange(65, device="cuda") % 4 != 3
    drawn, tops = gumbel_argmax_triton(logits, seeds, positions, temperatures, noisy)
    expected, expected_tops = gumbel_argmax_reference(logits, seeds, positions, temperatures, noisy)
    assert drawn.tolist() == expected.tolist()
    assert torch.equal(tops.nan_to_num(7.5), expected_tops.nan_to_num(7.5))
    assert drawn[3] == 7
    for rows in (slice(0, 1), slice(5, 8), slice(30, 65)):
        alone, _ = gumbel_argmax_triton(logits[rows], seeds[rows], positions[rows], temperatures[rows], noisy[rows])
        assert torch.equal(alone, drawn[rows])
    shared = gumbel_argmax_triton(logits, seeds[:13], positions, temperatures[:13], noisy[:13], early=True)[0]
    assert torch.equal(shared, gumbel_argmax_reference(logits, seeds[:13], positions, temperatures[:13], noisy[:13])[0])
