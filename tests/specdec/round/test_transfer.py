"""What is handed to the device is a copy of what was there, of the type that it is kept in."""

import numpy as np
import pytest
import torch

from specdec.round.transfer import to_device, write

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return torch.device(request.param)


def test_what_is_changed_afterwards_does_not_change_what_was_sent(device: torch.device) -> None:
    values = np.arange(5)
    sent = to_device(values, device)
    values[:] = -1
    assert sent.tolist() == [0, 1, 2, 3, 4]
    assert sent.dtype == torch.int64
    assert to_device([3, 2], device).tolist() == [3, 2]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.float64, torch.bool])
def test_values_take_the_type_of_what_they_are_written_to(dtype: torch.dtype, device: torch.device) -> None:
    target = torch.zeros(3, 4, dtype=dtype, device=device)
    values = np.array([1, 0, 1])
    write(target[:, 2], values)
    values[:] = 0
    assert target[:, 2].tolist() == [1, 0, 1]
    assert target.sum() == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_that_is_used_in_turn_is_not_written_before_it_was_read() -> None:
    sent = [to_device(np.full(30_000, number), torch.device("cuda")) for number in range(200)]
    large = to_device(np.arange(1 << 18), torch.device("cuda"))
    assert all(bool((values == number).all()) for number, values in enumerate(sent))
    assert torch.equal(large.cpu(), torch.arange(1 << 18))
