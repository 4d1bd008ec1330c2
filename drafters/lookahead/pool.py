"""The n-grams of each text by their first token, in tables of a fixed size on the device.

Legend of shape suffixes: S texts, B buckets of a text, G n-grams of a bucket, N tokens of an n-gram, P places (S x B x G),
T n-grams that are added, L n-grams of a prompt.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from specdec.arrays import IntArray
from specdec.round.transfer import write

NUM_BUCKETS = 1024  # of a text; a thousand tokens of English or code begin about 400 different n-grams
_MIX = 0x9E3779B97F4A7C15 - (1 << 64)  # odd, so that products of int64 lose no bits


class NgramPool:
    """The newest n-grams of each bucket, each once. Tokens share a bucket where they are equal modulo their number.

    Args:
        num_texts: S.
        guesses: G, n-grams that are kept of a bucket.
        size: N.
        device: where it lies.
    """

    def __init__(self, num_texts: int, guesses: int, size: int, device: torch.device) -> None:
        self._guesses = guesses
        places = num_texts * NUM_BUCKETS * guesses
        self._spare = places  # where n-grams go that are known already
        self._grams_PN = torch.full((places + 1, size), -1, dtype=torch.int32, device=device)
        self._counts = torch.zeros(num_texts * NUM_BUCKETS + 1, dtype=torch.int64, device=device)  # added to each bucket
        self._order_G = torch.arange(guesses, device=device)

    def restart(self, text: int, tokens: Sequence[int]) -> None:
        """Only the n-grams of these tokens are left of a text. From the host, in the order of the device's stream."""
        size, guesses = self._grams_PN.shape[1], self._guesses
        table = np.full((NUM_BUCKETS, guesses, size), -1, np.int32)
        counts = np.zeros(NUM_BUCKETS, np.int64)
        if len(tokens) >= size:
            grams_LN, ranks_L = _newest(np.array(tokens, np.int64), size)
            kept = ranks_L < guesses
            grams_LN, ranks_L = grams_LN[kept], ranks_L[kept]
            buckets_L = grams_LN[:, 0] % NUM_BUCKETS
            counts = np.bincount(buckets_L, minlength=NUM_BUCKETS)
            table[buckets_L, counts[buckets_L] - 1 - ranks_L] = grams_LN
        first = text * NUM_BUCKETS
        write(self._grams_PN[first * guesses : (first + NUM_BUCKETS) * guesses], table.reshape(-1, size))
        write(self._counts[first : first + NUM_BUCKETS], counts)

    def find(self, texts: Tensor, tokens: Tensor) -> Tensor:
        """int64 [..., G, N], the n-grams of some texts that begin with a token, newest first; -1 where there is none.

        Args:
            texts, tokens: int64 [...].
        """
        buckets = texts * NUM_BUCKETS + tokens % NUM_BUCKETS
        places = buckets[..., None] * self._guesses + (self._counts[buckets][..., None] - 1 - self._order_G) % self._guesses
        grams = self._grams_PN[places].long()
        return torch.where(grams[..., :1] == tokens[..., None, None], grams, -1)

    def add(self, texts_T: Tensor, grams_TN: Tensor, wanted_T: Tensor) -> None:
        """Add n-grams that are not known yet; each takes the place of the oldest in its bucket. Of more than G that come at
        once to one bucket the first are added.

        Args:
            texts_T: int64.
            grams_TN: int64, 0 or more where wanted.
            wanted_T: bool.
        """
        buckets_T = texts_T * NUM_BUCKETS + grams_TN[:, 0] % NUM_BUCKETS
        known_T = (self.find(texts_T, grams_TN[:, 0]) == grams_TN[:, None]).all(2).any(1)
        earlier_TT = (buckets_T[:, None] == buckets_T) & wanted_T
        earlier_TT = earlier_TT & torch.ones_like(earlier_TT).tril(-1)
        twice_T = (earlier_TT & (grams_TN[:, None] == grams_TN).all(2)).any(1)
        new_T = wanted_T & ~known_T & ~twice_T
        ranks_T = (earlier_TT & new_T).sum(1)
        new_T = new_T & (ranks_T < self._guesses)
        places_T = buckets_T * self._guesses + (self._counts[buckets_T] + ranks_T) % self._guesses
        self._grams_PN[torch.where(new_T, places_T, self._spare)] = grams_TN.int()
        self._counts.index_add_(0, torch.where(new_T, buckets_T, len(self._counts) - 1), new_T.long())


def _newest(tokens: IntArray, size: int) -> tuple[IntArray, IntArray]:
    """The different n-grams of some tokens, newest first; and how many newer ones share the bucket of each."""
    grams_LN = np.lib.stride_tricks.sliding_window_view(tokens, size)[::-1]
    with np.errstate(over="ignore"):
        keys_L = np.zeros(len(grams_LN), np.int64)
        for column in grams_LN.T:
            keys_L = (keys_L + column + 1) * _MIX
    grams_LN = grams_LN[np.sort(np.unique(keys_L, return_index=True)[1])]
    buckets_L = grams_LN[:, 0] % NUM_BUCKETS
    order_L = np.argsort(buckets_L, kind="stable")
    firsts_L = np.searchsorted(buckets_L[order_L], buckets_L[order_L])
    ranks_L = np.empty_like(order_L)
    ranks_L[order_L] = np.arange(len(order_L)) - firsts_L
    return grams_LN, ranks_L
