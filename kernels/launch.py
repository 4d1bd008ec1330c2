"""How kernels follow one another on a GPU: when a kernel's programs may start before its predecessor has ended."""

import ctypes
import functools
import math
from typing import Any

import torch
import triton
from torch import Tensor

_SHARED_MEMORY_CARVEOUT = 9  # CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, in percent
_asked: set[int] = set()


@functools.cache
def overlaps(device: torch.device) -> bool:
    """Whether kernels there are chained by programmatic dependent launch, which Hopper brought."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@functools.cache
def shared_memory(device: torch.device) -> tuple[int, int]:
    """(bytes that a program may have at most, buffers fewer than stages that its pipeline of loads needs).

    There is no limit in Triton's interpreter.
    """
    if device.type != "cuda":
        return 1 << 30, 0
    most = int(triton.runtime.driver.active.utils.get_device_properties(device.index or 0)["max_shared_mem"])
    # Hopper's products read their operands from shared memory, so a tile stays there until its product is done
    return most, 0 if overlaps(device) else 1


def aligned(count: int, *shape: int, device: torch.device) -> list[Tensor]:
    """`count` int64 tensors of one shape in one allocation, each at a multiple of 16 bytes: for other addresses Triton would
    compile a kernel anew."""
    size = math.prod(shape)
    step = size + size % 2
    flat = torch.empty(count * step, dtype=torch.int64, device=device)
    return [flat[i * step : i * step + size].view(shape) for i in range(count)]


def leave_room(kernel: Any) -> None:
    """Let programs of other kernels start beside this one's, whose L1 cache shrinks for it.

    A processor divides one memory between L1 and shared memory, and divides it anew only while it is empty. So a small kernel
    that was given little shared memory keeps programs that want much from starting early on its processors. This asks for the
    division that leaves the most. It pays where a round is one row and its kernels hardly reuse what they load; kernels of one
    row are compiled by themselves, so those of many keep their cache.

    Args:
        kernel: what a launch on a GPU returned.
    """
    if kernel.function in _asked:
        return
    _asked.add(kernel.function)
    # a hint: where it fails, nothing but speed is lost
    if (driver := _driver()) is not None:
        driver.cuFuncSetAttribute(ctypes.c_void_p(kernel.function), _SHARED_MEMORY_CARVEOUT, 100)


@functools.cache
def _driver() -> ctypes.CDLL | None:
    """NVIDIA's driver, where it has the name that it has on Linux."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
