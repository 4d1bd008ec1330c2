"""Reference of the suffix match, in plain PyTorch: text by text, and of each only the places where its last token stands.

See the package for the legend.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from specdec.kernels.suffix_match import Library

NUM_PLACES = 8
_LONGEST = 16
_BRANCH = 4
_TEXT, _REFERENCE, _CORPUS = 0, 1, 2


def suffix_candidates_reference(
    library: "Library", texts_M: Tensor, labels: Tensor, shifts_S: Tensor, *, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `specdec.kernels.suffix_match.suffix_candidates`."""
    found = []
    for text in texts_M.tolist():
        matched_K, origins_K, ahead_KW = _places(library, text, width)
        found.append(_trie(matched_K, origins_K, ahead_KW, labels, int(shifts_S[text])))
    tokens, parents, kinds = zip(*found, strict=True)
    return torch.stack(tokens), torch.stack(parents), torch.stack(kinds)


def _places(library: "Library", text: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """int64 [K], [K] and [K, W]: how many tokens match at the best places, where they lie, and what follows."""
    own_L = library.texts_SL[text, : int(library.lengths_S[text])]
    reference_B = library.references_SB[text, : int(library.reference_lengths_S[text])]
    suffix = own_L[-_LONGEST:].flip(0)
    sources = [(library.corpus_C, _CORPUS), (reference_B, _REFERENCE)] + [(own_L, _TEXT)] * library.own
    parts = [_matches(tokens, suffix, origin) for tokens, origin in sources]
    matched, origins, places = (torch.cat(column) for column in zip(*parts, strict=True))
    # the later of equal ones first
    best = matched.flip(0).sort(descending=True, stable=True).indices[:NUM_PLACES]
    best = len(matched) - 1 - best
    matched_K, origins_K = matched.new_zeros(NUM_PLACES), matched.new_zeros(NUM_PLACES)
    matched_K[: len(best)], origins_K[: len(best)] = matched[best], origins[best]
    ahead_KW = matched.new_full((NUM_PLACES, width), -1)
    tokens_of = {origin: tokens for tokens, origin in sources}
    for rank, (place, origin) in enumerate(zip(places[best].tolist(), origins[best].tolist(), strict=True)):
        ahead_KW[rank] = _ahead(tokens_of[origin], place, width, periodic=origin == _TEXT)
    return matched_K, origins_K, ahead_KW


def _matches(tokens_L: Tensor, suffix: Tensor, origin: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the places where a token follows one that is the suffix's last: how many tokens match there (int64), the origin, the
    place. `suffix` is turned round."""
    places = (tokens_L[:-1] == suffix[0]).nonzero()[:, 0] + 1 if len(tokens_L) else torch.zeros(0, dtype=torch.int64)
    places = places[tokens_L[places] >= 0]
    back = places[:, None] - 1 - torch.arange(len(suffix))
    same = (back >= 0) & (tokens_L[back.clamp(min=0)] == suffix) & (suffix >= 0)
    return same.long().cumprod(1).sum(1), torch.full_like(places, origin), places


def _ahead(tokens_L: Tensor, place: int, width: int, periodic: bool) -> Tensor:
    """int64 [W]: the tokens from `place` on; -1 behind a SEPARATOR or the end."""
    if periodic:
        ahead = tokens_L[place + torch.arange(width) % (len(tokens_L) - place)].long()
    else:
        ahead = torch.full((width,), -1, dtype=torch.int64)
        ahead[: len(tokens_L) - place] = tokens_L[place : place + width].long()
    return torch.where((ahead >= 0).long().cumprod(0) > 0, ahead, -1)


def _trie(matched_K: Tensor, origins_K: Tensor, ahead_KW: Tensor, labels: Tensor, shift: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, parents and labels, int64 [C], of the best place's tokens and the first few of each other."""
    width = ahead_KW.shape[1]
    branch = min(width, _BRANCH)
    place_K, step_W = torch.arange(NUM_PLACES), torch.arange(width)
    known_KW = ahead_KW >= 0
    # [k, l, w]: whether place l is still on the path of place k before token w, and whether it proposes the same
    same_KKW = (ahead_KW[:, None] == ahead_KW) & known_KW[:, None] & known_KW
    before_KKW = torch.cat((torch.ones_like(same_KKW[..., :1]), same_KKW[..., :-1]), 2).long().cumprod(2) > 0
    before_KKW &= (matched_K > 0)[:, None, None] & (matched_K > 0)[:, None]
    agree_KW = (before_KKW & same_KKW).sum(1)
    other_KW = (before_KKW & ~same_KKW & known_KW).sum(1)
    earlier_KK1 = (place_K < place_K[:, None])[..., None]
    repeats_KW = (before_KKW & same_KKW & earlier_KK1).any(1)
    lead_KW = torch.where(before_KKW & known_KW, place_K[:, None], NUM_PLACES - 1).amin(1)
    first_KW = same_KKW.gather(1, lead_KW[:, None])[:, 0]
    leads_KW = torch.where(before_KKW, place_K[:, None], NUM_PLACES).amin(1)
    # where the token above stands: with the first place that has the same path
    above_KW = torch.where(leads_KW == 0, step_W - 1, width + (leads_KW - 1) * branch + step_W - 1)
    parents_KW = torch.where((step_W == 0) | (leads_KW == NUM_PLACES), -1, above_KW)
    evidence_KW = (matched_K[:, None] + step_W).clamp(max=_LONGEST)
    kinds_KW = labels[origins_K[:, None], (~first_KW).long(), evidence_KW, (agree_KW - 1).clamp(0, 2), other_KW.clamp(max=2)]
    tokens_KW = torch.where(known_KW & ~repeats_KW & (matched_K > 0)[:, None], ahead_KW, -1)

    def of_candidates(values_KW: Tensor) -> Tensor:
        return torch.cat((values_KW[0], values_KW[1:, :branch].flatten()))

    return of_candidates(tokens_KW), of_candidates(parents_KW), of_candidates(kinds_KW) + shift
