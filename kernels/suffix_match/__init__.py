"""Where the end of a text stood before, and what followed there: n-gram drafting without the host.

The best places are followed as a trie: what several of them agree on is one path, and where they part it branches.

Legend of shape suffixes: M texts that are asked about, S texts in memory, L tokens that a text has room for, B tokens that a
reference has room for, C tokens of the corpus or candidates of a text, K places.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.kernels.linear import uses_triton
from specdec.kernels.suffix_match.host import suffix_candidates_host
from specdec.kernels.suffix_match.reference import NUM_PLACES

__all__ = ["LONGEST_MATCH", "NUM_PLACES", "SEPARATOR", "Library", "Origin", "num_candidates", "suffix_candidates"]

SEPARATOR = -1  # between texts that must not run into each other; no match reaches across
LONGEST_MATCH = 16  # tokens compared
BRANCH = 4  # tokens that are followed of a place that is not the best


class Origin:
    """Where a place lies."""

    TEXT = 0
    REFERENCE = 1
    CORPUS = 2


@dataclass(frozen=True, slots=True)
class Library:
    """All that there is to copy from; int32 tokens of 0 or more, or SEPARATOR.

    texts_SL, lengths_S (int64): the texts themselves. references_SB, reference_lengths_S (int64): another text that belongs to
    each. corpus_C: the same for all; may be empty. own: whether a text is searched itself.
    """

    texts_SL: Tensor
    lengths_S: Tensor
    references_SB: Tensor
    reference_lengths_S: Tensor
    corpus_C: Tensor
    own: bool = True


def num_candidates(width: int) -> int:
    """Candidates of a text: the best place is followed for `width` tokens, the others for a few."""
    return width + (NUM_PLACES - 1) * min(width, BRANCH)


def suffix_candidates(
    library: Library, texts_M: Tensor, labels: Tensor, shifts_S: Tensor, *, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What followed the longest suffixes of some texts, up to LONGEST_MATCH tokens, where they occur earlier in them, in their
    references or in the corpus.

    Places are ranked by how much matches there, equal ones by where they lie: the later first, and a text's own before its
    reference before the corpus. The best NUM_PLACES are followed. A place near the text's own end goes on periodically.

    Args:
        library: what to look in.
        texts_M: int64, which texts to match.
        labels: int64 [3, 2, LONGEST_MATCH + 1, 3, 3], contiguous: the label of a candidate by the origin of its place; by
            whether the best of the places on its path proposes it (0) or another (1); by its evidence, tokens that match plus
            how far ahead it lies; by how many of the places on its path propose it (one, two, more) and how many others (none,
            one, more).
        shifts_S: int64, added to the labels of each text.
        width: tokens of the best place that are followed.

    Returns:
        int64 [M, C] each, C as `num_candidates` says: tokens, -1 where there is none or an earlier candidate has the same path;
        parents, -1 for the text's end; labels.
    """
    assert library.texts_SL.dtype == library.corpus_C.dtype == torch.int32, "tokens are int32"
    assert labels.is_contiguous(), labels.stride()
    if uses_triton(texts_M.device):
        from specdec.kernels.suffix_match.kernel import suffix_candidates_triton

        return suffix_candidates_triton(library, texts_M, labels, shifts_S, width=width)
    return suffix_candidates_host(library, texts_M, labels, shifts_S, width=width)
