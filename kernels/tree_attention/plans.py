"""Shapes of attention's launches on a GPU: which rows share a program, and which splits. Speed only, never bits."""

from dataclasses import dataclass

_FILLED = 256  # programs that fill the device
_FEW_SPLITS = 16  # that one program may walk over, however few there are beside it
_SHORT_SPLITS = 8  # ... also where rows of one sequence might share them
_ONE_WAVE = 264  # programs of few rows and 4 warps that run at once: two on each of 132 processors, by their registers
_SMALL_HEADS, _WAVES = 64, 2  # up to this size of heads twice as many
_SHARING = ((16, 1.0), (32, 1.15), (64, 1.3))  # (row, head) pairs of a program, and what it costs beside one of 16


@dataclass(frozen=True, slots=True)
class Plan:
    """One launch.

    rows: that share a program. fused: one program walks over all splits of its rows. With rows = 1 and not fused, pairs: two
    tiles at a time; shared: rows that share the splits which all of them see whole.
    """

    rows: int
    warps: int
    stages: int
    fused: bool
    pairs: bool = False
    shared: int = 1


def choose_plan(num_rows: int, num_sequences: int, kv_heads: int, block_group: int, block_dim: int, splits: int) -> Plan:
    """A program for each row while all of them run at once, sharing what the rows of a tree see alike; a matrix tile's worth of
    rows where there are more, and for chunks. Fitted on an H200, on shapes of SmolLM2, Llama-3.1-8B and Qwen3-30B-A3B.

    Args:
        num_rows, num_sequences: of the launch.
        kv_heads: of the model.
        block_group, block_dim: query heads of each, and their size, as powers of two.
        splits: that there is room for.
    """
    per_sequence = num_rows // max(1, num_sequences)
    if per_sequence > 64 or (per_sequence >= 16 and num_rows >= 512):
        return _of_chunks(num_rows, kv_heads, block_group, block_dim)
    large_heads, programs = block_dim > 128, num_rows * kv_heads
    if num_rows <= 2 and not large_heads:
        return Plan(1, 8, 1, False, pairs=True)
    if large_heads:
        return Plan(1, 8, 1, False, shared=min(_power_of_two(per_sequence), max(16 // block_group, 1)))
    if per_sequence > 1 and programs <= _ONE_WAVE:
        return _sharing(num_rows, per_sequence, kv_heads, block_group, block_dim, splits)
    if per_sequence >= 8 and block_group < 16 and splits > _SHORT_SPLITS:
        return Plan(32 // block_group, 4, 2, False)
    # where rows alone fill the device, no split needs a program of its own, and none a merge
    return Plan(1, 4, 1, programs >= _FILLED and splits <= max(_FEW_SPLITS, programs // 32))


def _of_chunks(num_rows: int, kv_heads: int, block_group: int, block_dim: int) -> Plan:
    """Larger tiles where smaller ones would not run all at once."""
    if block_group > 32:
        return Plan(2, 8, 2, True)
    # small GPUs have no shared memory for more of large heads
    large_heads = block_dim > 128 and block_group <= 16
    sizes = [pairs for pairs, _ in _SHARING if pairs <= (32 if large_heads else 64)]
    pairs = next((size for size in sizes if num_rows * block_group * kv_heads <= size * _ONE_WAVE), sizes[-1])
    return Plan(max(pairs // block_group, 2), 4, 2 if large_heads else 3, True)


def _sharing(num_rows: int, per_sequence: int, kv_heads: int, block_group: int, block_dim: int, splits: int) -> Plan:
    """The more rows share a split, the fewer programs there are, and the longer each takes. Of the splits that there is room
    for, three quarters are used on average; each row has a program of its own for those that it sees a part of."""
    used, best = -(-3 * splits // 4), (float("inf"), 1, 0)
    wave = _ONE_WAVE * (_WAVES if block_dim <= _SMALL_HEADS else 1)
    for pairs, cost in _SHARING:
        shared = max(min(pairs // block_group, _power_of_two(per_sequence)), 1)
        programs = kv_heads * (-(-num_rows // shared) * used + num_rows)
        best = min(best, (cost * max(programs / wave, 1.0), shared, programs))
    _, shared, programs = best
    # a program of 8 warps is the faster one, and has a processor to itself
    alone = shared * block_group <= _SHARING[0][0] and programs <= _ONE_WAVE // 2
    return Plan(1, 8 if alone else 4, 1, False, shared=shared)


def _power_of_two(count: int) -> int:
    """The next one."""
    return 1 << max(count - 1, 0).bit_length()
