"""Which numbers of rows oneDNN may be given so that a row keeps its bits, found out on the machine at hand.

For few rows, and with AMX for many others, oneDNN adds the terms of a product in another order, which shows in few bits of few
elements. The trial makes it show in all: inputs come twice, their weights with opposite signs, so that each product is zero but
for the rounding of its sums.
"""

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor

# numbers of rows between which oneDNN was seen to change its order, and those around them
_TRIED = (1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 14, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 100, 128, 200, 256)
_MANY = 32  # a class without as many rows is of no use to prompts
_DISTINCT = 64  # features of the trial's weight, repeated
_MOST_OUTPUTS = 1 << 27  # of the trial's largest product: larger weights are tried with fewer rows


class ExactRows(NamedTuple):
    """least: from so many rows on a row's bits are its own. sizes: at these numbers of rows alone; empty: at any."""

    least: int
    sizes: tuple[int, ...] = ()


Trial = tuple[int, int, torch.dtype, int, int]  # features, inputs, dtype, layout rows, threads
_found: dict[Trial, ExactRows] = {}


def trials() -> dict[Trial, ExactRows]:
    """All that were found or recalled so far."""
    return dict(_found)


def recall(known: Mapping[Trial, ExactRows]) -> None:
    """Take over what an earlier process found on this machine, with the same versions and the same environment."""
    _found.update(known)


def find_exact_rows(num_features: int, num_inputs: int, dtype: torch.dtype, layout_rows: int) -> ExactRows:
    """For weights of one shape; tried once for each number of threads.

    Args:
        num_features, num_inputs: of the weight.
        dtype: float32 or bfloat16.
        layout_rows: see `reorder`.
    """
    key = (num_features, num_inputs, dtype, layout_rows, torch.get_num_threads())
    if key not in _found:
        _found[key] = _try(num_features, num_inputs, dtype, layout_rows)
    return _found[key]


def least_rows_found(dtype: torch.dtype) -> int:
    """The most that any weight so far wants at least, as far as that is few."""
    return max((rows.least for key, rows in _found.items() if key[2] == dtype and rows.least <= 2), default=1)


def reorder(weight_NK: Tensor, layout_rows: int) -> Tensor:
    """A weight in oneDNN's layout for batches of about `layout_rows`; 0: as it is."""
    if not layout_rows:
        return weight_NK
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight_NK, layout_rows))


def product(x_RK: Tensor, data: Tensor, bias_N: Tensor | None) -> Tensor:
    """oneDNN's product with a weight from `reorder`: [R, N]."""
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x_RK, data, bias_N, "none", [], ""))


def _try(num_features: int, num_inputs: int, dtype: torch.dtype, layout_rows: int) -> ExactRows:
    x_RK, weight_NK = _cancelling(num_features, num_inputs, dtype)
    data = reorder(weight_NK, layout_rows)
    tried = [rows for rows in _TRIED if rows <= _MANY or rows * num_features <= _MOST_OUTPUTS]
    classes: list[list[int]] = []
    largest: list[Tensor] = []  # of each class; the products of fewer rows are its first rows
    for rows in tried:
        found_RN = product(x_RK[:rows], data, None)
        home = next((i for i, other in enumerate(largest) if torch.equal(found_RN[: len(other)], other)), None)
        if home is None:
            classes.append([rows])
            largest.append(found_RN)
        else:
            classes[home].append(rows)
            largest[home] = found_RN
    useful = [tuple(alike) for alike in classes if max(alike) >= _MANY]
    best = min(useful) if useful else (_MANY,)
    return ExactRows(best[0]) if best == tuple(tried[tried.index(best[0]) :]) else ExactRows(best[0], best)


def _cancelling(num_features: int, num_inputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows [R, K] and a weight [N, K] whose products are zero but for rounding."""
    generator = torch.Generator().manual_seed(0)
    half = num_inputs // 2
    order = torch.randperm(num_inputs, generator=generator)
    weight = torch.randn((min(num_features, _DISTINCT), half), generator=generator)
    x = torch.randn((_TRIED[-1], half), generator=generator)
    odd = num_inputs % 2
    weight_NK = torch.cat((weight, -weight, weight.new_zeros(len(weight), odd)), 1)[:, order].to(dtype)
    x_RK = torch.cat((x, x, x.new_zeros(len(x), odd)), 1)[:, order].to(dtype)
    return x_RK, weight_NK.repeat(-(-num_features // len(weight)), 1)[:num_features].contiguous()
