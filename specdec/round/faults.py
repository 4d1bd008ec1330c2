"""After a round has failed: what kind of failure it was, and whether the device still answers."""

import torch

from specdec.errors import DeviceError

_NO_CPU_MEMORY = "DefaultCPUAllocator"  # torch has no exception of its own for that


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less work may succeed."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _NO_CPU_MEMORY in str(error)


def check_device(device: torch.device) -> None:
    """Wait until the device is idle, and give back what it does not use.

    Raises:
        DeviceError: it has failed for good: an error of one kernel is told by all calls from then on.
    """
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError as error:
        raise DeviceError(f"The GPU has failed and answers no more, start again: {error}") from error
