"""Reference of the suffix match, in plain PyTorch.

Legend of shape suffixes: S texts, L tokens that a text has room for, C tokens of the corpus, P = C + L places.
"""

import torch
from torch import Tensor


def suffix_match_reference(history_SL: Tensor, lengths_S: Tensor, corpus_C: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """As `specdec.kernels.suffix_match.suffix_match`."""
    length_S1, size = lengths_S[:, None], len(corpus_C)
    text_SP = torch.cat((corpus_C.expand(len(history_SL), -1), history_SL), 1)
    place_P = torch.arange(text_SP.shape[1], device=history_SL.device)
    first_P = torch.where(place_P < size, 0, size)  # of the corpus or the text that the place lies in
    alive_SP = (place_P > first_P) & (place_P < size + length_S1)
    matched_SP = torch.zeros_like(text_SP, dtype=torch.int64)
    for back in range(1, min(longest, history_SL.shape[1]) + 1):
        own_S1 = history_SL.gather(1, (length_S1 - back).clamp(min=0))
        alive_SP = alive_SP & (length_S1 >= back) & (place_P - back >= first_P)
        alive_SP = alive_SP & (text_SP.roll(back, 1) == own_S1) & (own_S1 >= 0)
        matched_SP += alive_SP
    best_S = (matched_SP * len(place_P) + place_P).amax(dim=1)
    matched_S = best_S // len(place_P)
    return torch.where(matched_S > 0, best_S % len(place_P), size + lengths_S), matched_S
