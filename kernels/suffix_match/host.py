"""The suffix match for a CPU, in numpy and plain Python: next to a small model the reference's many small tensors take longer
than the search.

See the package for the legend.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specdec.kernels.suffix_match.reference import NUM_PLACES

if TYPE_CHECKING:
    from specdec.kernels.suffix_match import Library

Tokens = npt.NDArray[np.int32]

_LONGEST = 16
_BRANCH = 4
_TEXT, _REFERENCE, _CORPUS = 0, 1, 2


class _Place(NamedTuple):
    """Where the text's end stood: how much of it, of which origin, and what followed, up to the width."""

    matched: int
    origin: int
    ahead: list[int]


def suffix_candidates_host(
    library: "Library", texts_M: Tensor, labels: Tensor, shifts_S: Tensor, *, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `specdec.kernels.suffix_match.suffix_candidates`, for tensors on the CPU. Where there is no candidate, parents and
    labels are those of no other either."""
    size = width + (NUM_PLACES - 1) * min(width, _BRANCH)
    tokens, parents = np.full((2, len(texts_M), size), -1, np.int64)
    kinds = np.zeros_like(tokens)
    flat_labels, strides = labels.numpy().ravel(), labels.stride()
    for row, text in enumerate(texts_M.tolist()):
        shift = int(shifts_S[text])
        for candidate, token, parent, cell in _trie(_places(library, text, width), width):
            tokens[row, candidate], parents[row, candidate] = token, parent
            kinds[row, candidate] = flat_labels[sum(map(int.__mul__, cell, strides))] + shift
    return torch.from_numpy(tokens), torch.from_numpy(parents), torch.from_numpy(kinds)


def _places(library: "Library", text: int, width: int) -> list[_Place]:
    """The best places, best first."""
    own = library.texts_SL[text, : int(library.lengths_S[text])].numpy()
    reference = library.references_SB[text, : int(library.reference_lengths_S[text])].numpy()
    suffix = own[: -_LONGEST - 1 : -1].tolist()
    found = []
    for source, (tokens, origin) in enumerate(((library.corpus_C.numpy(), _CORPUS), (reference, _REFERENCE), (own, _TEXT))):
        if origin != _TEXT or library.own:
            found += [(matched, source, place, tokens, origin) for matched, place in _matches(tokens, suffix)]
    found.sort(key=lambda match: match[:3], reverse=True)  # the later of equal ones first
    return [
        _Place(matched, origin, _ahead(tokens, place, width, origin))
        for matched, _, place, tokens, origin in found[:NUM_PLACES]
    ]


def _matches(tokens_L: Tokens, suffix: list[int]) -> list[tuple[int, int]]:
    """How many tokens match, and the place behind them; of all places the NUM_PLACES best. `suffix` is turned round."""
    if len(tokens_L) < 2 or suffix[0] < 0:
        return []
    places = np.flatnonzero(tokens_L[:-1] == suffix[0]) + 1
    places = places[tokens_L[places] >= 0]
    best: list[tuple[int, int]] = []
    longer = places
    for length in range(1, len(suffix) + 1):
        # those that match no further, the latest first
        places, longer = longer, longer[:0]
        if length < len(suffix) and suffix[length] >= 0:
            far = places > length
            longer = places[far]
            longer = longer[tokens_L[longer - 1 - length] == suffix[length]]
        ended = np.setdiff1d(places, longer, assume_unique=True)[-NUM_PLACES:] if len(longer) else places[-NUM_PLACES:]
        best += [(length, place) for place in ended.tolist()]
        if not len(longer):
            break
    return best[-NUM_PLACES:]


def _ahead(tokens_L: Tokens, place: int, width: int, origin: int) -> list[int]:
    """The tokens from `place` on, up to a SEPARATOR; the text itself goes on with its period."""
    ahead: list[int] = tokens_L[place : place + width].tolist()
    if origin == _TEXT and len(ahead) < width:
        ahead = (ahead * (width // len(ahead) + 1))[:width]
    return ahead[: ahead.index(-1)] if -1 in ahead else ahead


def _trie(places: list[_Place], width: int) -> Iterator[tuple[int, int, int, tuple[int, ...]]]:
    """Candidate, token, parent and the cell of its label, for each node of the trie: the best place's tokens and the first few
    of each other."""
    branch = min(width, _BRANCH)
    firsts = [0, *(width + rank * branch for rank in range(NUM_PLACES - 1))]
    groups = [list(range(len(places)))] if places else []
    for step in range(width):
        parted = []
        for group in groups:
            there = [rank for rank in group if step < len(places[rank].ahead)]
            by_token: dict[int, list[int]] = {}
            for rank in there:
                by_token.setdefault(places[rank].ahead[step], []).append(rank)
            for token, members in by_token.items():
                lead = members[0]
                if lead == 0 or step < branch:
                    parent = firsts[group[0]] + step - 1 if step else -1
                    evidence = min(places[lead].matched + step, _LONGEST)
                    agreement = (min(len(members), 3) - 1, min(len(there) - len(members), 2))
                    cell = (places[lead].origin, int(lead != there[0]), evidence, *agreement)
                    yield firsts[lead] + step, token, parent, cell
                parted.append(members)
        # beyond the branches nothing but the best place's own path matters
        groups = parted if step + 1 < branch else [group for group in parted if group[0] == 0]
