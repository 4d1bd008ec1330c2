"""The numpy arrays that the host keeps its books in: their types, and what is done with them in several places."""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def share_evenly(wanted: IntArray, room: int) -> IntArray:
    """As much of what is wanted as there is room for, shared out evenly; int64 as `wanted`."""
    given = np.zeros_like(wanted)
    while room > 0 and (open_ := np.flatnonzero(given < wanted)).size:
        each = max(room // open_.size, 1)
        more = np.minimum(wanted[open_] - given[open_], each)[:room]
        given[open_[: len(more)]] += more
        room -= int(more.sum())
    return given
