"""How kernels follow one another on a GPU."""

import ctypes

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from specdec.kernels.launch import leave_room
from specdec.kernels.linear.kernel import _norm_kernel

pytestmark = pytest.mark.gpu


def test_a_kernel_that_leaves_room_asks_for_the_most_shared_memory() -> None:
    def wanted_percent() -> int:
        value = ctypes.c_int()
        assert ctypes.CDLL("libcuda.so.1").cuFuncGetAttribute(ctypes.byref(value), 9, ctypes.c_void_p(kernel.function)) == 0
        return value.value

    x = torch.ones(96, device="cuda")  # a width that no model has: nobody asked for anything yet
    kernel = _norm_kernel[(1,)](x, x, x, 1e-6, 96, 128, PDL=False)
    assert wanted_percent() != 100
    leave_room(kernel)
    assert wanted_percent() == 100
