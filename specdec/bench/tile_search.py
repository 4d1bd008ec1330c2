"""The search for a faster tile: steps to neighbours as long as one is faster."""

from collections.abc import Callable, Iterator
from dataclasses import asdict

from specdec.kernels.tile_tables import Product, Tile

_CHAINS = 4  # side by side, unless in turn
_MOST_REGISTERS = 128  # of a thread, for accumulators or for weights held at once
_LARGE = 64 * 64  # outputs of a tile whose chains may run in turn
_SIDES_M, _MOST_N, _MOST_WARPS, _MOST_STAGES = (32, 64, 128), 256, 8, 8

Compare = Callable[[Tile, Tile], float]


def neighbours(tile: Tile, product: Product, tied: bool) -> Iterator[Tile]:
    """Tiles one step away that a program's registers may hold: a side doubled or halved, a load more or less in flight.

    tied: the products of few rows by experts share a kernel, which sets m, warps and the order of chains.
    """
    chain = product.inputs // _CHAINS if product.inputs % (8 * _CHAINS) == 0 else product.inputs
    whole = max(16, 1 << (chain - 1).bit_length())
    steps: list[dict[str, int]] = [
        {"n": tile.n * 2},
        {"n": tile.n // 2},
        {"k": tile.k * 2},
        {"k": tile.k // 2},
        {"stages": tile.stages + 1},
        {"stages": tile.stages - 1},
        {"k": whole, "stages": 1},
    ]
    if not tied:
        steps += [{"warps": tile.warps * 2}, {"warps": tile.warps // 2}]
        if product.rows >= _SIDES_M[0]:
            steps += [{"m": tile.m * 2}, {"m": tile.m // 2}]
        steps.append({"in_turn": not tile.in_turn})
    for step in steps:
        if _fits(sides := asdict(tile) | step, tile.m, product, whole):
            yield Tile(**sides)


def descend(start: Tile, around: Callable[[Tile], Iterator[Tile]], compare: Compare, least_gain: float) -> tuple[Tile, int]:
    """The tile that steps to faster neighbours end at, and how many were tried.

    Args:
        start: where to begin.
        around: a tile's neighbours.
        compare: time with the first tile over time with the second; infinite where the first cannot be used.
        least_gain: what makes a tile faster.
    """
    best, tried = start, {start}
    while True:
        for tile in around(best):
            if tile not in tried:
                tried.add(tile)
                if compare(tile, best) < 1 - least_gain:
                    best = tile
                    break
        else:
            return best, len(tried) - 1


def _fits(sides: dict[str, int], m: int, product: Product, whole: int) -> bool:
    if not (8 <= sides["n"] <= _MOST_N and 16 <= sides["k"] <= whole and sides["m"] in (m, *_SIDES_M)):
        return False
    if not (1 <= sides["warps"] <= _MOST_WARPS and 1 <= sides["stages"] <= _MOST_STAGES):
        return False
    outputs = sides["n"] * (2 if product.kind == "gate_up" else 1)
    if sides["in_turn"] and sides["m"] * outputs < _LARGE:
        return False
    threads, chains = 32 * sides["warps"], 1 if sides["in_turn"] else _CHAINS
    accumulators = sides["m"] * outputs * chains // threads
    weights = outputs * sides["k"] * chains // 2 // threads if sides["stages"] == 1 else 0
    return max(accumulators, weights) <= _MOST_REGISTERS
