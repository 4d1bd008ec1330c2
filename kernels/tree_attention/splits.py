"""What fixes the bits of attention on a GPU, for every kernel of it: splits, scores, softmax steps, merges."""

import triton
import triton.language as tl

TILE = 64  # keys


@triton.jit
def split_start(split):
    """First position of a split: splits of 128 positions below 4,096, of 512 below 32,768, of 2,048 above. Part of the bits."""
    return tl.where(split < 32, split * 128, tl.where(split < 88, 4096 + (split - 32) * 512, 32768 + (split - 88) * 2048))


@triton.jit
def split_of(position):
    """The split that holds a position."""
    return tl.where(
        position < 4096,
        position // 128,
        tl.where(position < 32768, 32 + (position - 4096) // 512, 88 + (position - 32768) // 2048),
    )


def num_splits(positions: int) -> int:
    """Splits that hold the first `positions` positions."""
    last = positions - 1
    if last < 4096:
        return last // 128 + 1
    return 33 + (last - 4096) // 512 if last < 32768 else 89 + (last - 32768) // 2048


@triton.jit
def scores(b_q, b_k, SCALE: tl.constexpr, SOFTCAP: tl.constexpr):
    """Scores times log2(e)."""
    s = tl.dot(b_q, b_k.T) * SCALE
    if SOFTCAP > 0:
        # tanh by exp2, finite for any argument
        e = tl.exp2(tl.abs(s) * (-2.0 * 1.4426950408889634 / SOFTCAP))
        s = tl.where(s < 0, -1.0, 1.0) * ((1.0 - e) / (1.0 + e)) * SOFTCAP
    return s * 1.4426950408889634


@triton.jit
def softmax_step(s, top):
    """(weights, factor of the sums so far, new maximum), from scores that are -inf where a row sees no key.

    A row with no key yet keeps -inf and sums of zero.
    """
    new_top = tl.maximum(top, tl.max(s, 1))
    finite = tl.where(new_top == float("-inf"), 0.0, new_top)
    return tl.exp2(s - finite[:, None]), tl.exp2(top - finite), new_top


@triton.jit
def merge_step(top, total, acc, split_top, split_total, split_acc):
    """Add one split's sums; sums without a key change nothing."""
    new_top = tl.maximum(top, split_top)
    finite = tl.where(new_top == float("-inf"), 0.0, new_top)
    old = tl.exp2(top - finite)
    new = tl.exp2(split_top - finite)
    return new_top, total * old + split_total * new, acc * old[:, None] + split_acc * new[:, None]
