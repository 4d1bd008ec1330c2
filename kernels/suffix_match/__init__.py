"""Where the end of a text stood before, in itself or in a corpus: n-gram drafting without the host.

Legend of shape suffixes: S texts, L tokens that a text has room for, C tokens of the corpus.
"""

import torch
from torch import Tensor

from specdec.kernels.linear import uses_triton
from specdec.kernels.suffix_match.reference import suffix_match_reference

__all__ = ["SEPARATOR", "suffix_match"]

SEPARATOR = -1  # between texts that must not run into each other; no match reaches across


def suffix_match(history_SL: Tensor, lengths_S: Tensor, corpus_C: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """The longest suffix of each text, up to `longest` tokens, that occurred earlier in it or occurs in the corpus.

    Places count through the corpus and then the text. Of equally long matches that with the last place counts.

    Args:
        history_SL: int32, tokens of 0 or more, or SEPARATOR; read below `lengths_S` only.
        lengths_S: int64, tokens of each text.
        corpus_C: int32, the same for all texts; may be empty.
        longest: tokens compared at most.

    Returns:
        int64 [S] each: the place of what followed the match (C + the text's length where there was none), and the length of
        the match (0 where there was none).
    """
    assert history_SL.dtype == corpus_C.dtype == torch.int32, (history_SL.dtype, corpus_C.dtype)
    assert lengths_S.dtype == torch.int64, lengths_S.dtype
    if uses_triton(history_SL.device):
        from specdec.kernels.suffix_match.kernel import suffix_match_triton

        return suffix_match_triton(history_SL, lengths_S, corpus_C, longest)
    return suffix_match_reference(history_SL, lengths_S, corpus_C, longest)
