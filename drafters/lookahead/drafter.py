"""Lookahead decoding (Fu et al., "Break the sequential dependency of LLM inference using lookahead decoding", 2024).

Beside its answer the target works on a *window*: guesses for the positions ahead, which each round replaces by the target's
own tokens after the guesses before them (Jacobi iteration). A guess is seldom right where it stands, but what the target made
of its guesses in a few rounds, read one behind the other, is an n-gram of its own making. A pool keeps these, and those that
begin with the last token are drafts.

Here the window is a part of the draft tree. A column is a run of N - 1 guesses, each the target's token after the one before,
oldest first. The first tokens of all columns are a chain below the root, and the rest of a column hangs below its first token.
So the tree's attention is the paper's mask, and the target's token after the last of a column is its next one.

What differs from the paper:
- Guesses of the window may be accepted, as any node.
- Every row of a sequence's trees gives an n-gram, rejected drafts and those of other drafters included, not only the ends of
  columns. The prompt's n-grams are there from the start.
- The planner decides which rows pay. A window's tokens are seldom right, so it computes next to none of them: the whole window
  runs only where trees are verified whole (`adaptive` off). A column whose end was not computed goes on with what the pool
  knows, or with a token of the text.
- Rows are drawn with the noise of their positions, so that guesses can prove right at any temperature.
- Columns that the text has passed begin anew with tokens of the text.
- The pool has a fixed size, and lies on the device as the window does.

Legend of shape suffixes: M members, S slots, W columns, G n-grams that begin with a token, N tokens of an n-gram, K of a column
(N - 1), C candidates, T tree rows.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from specdec.cache.kinds import Caches
from specdec.draft.protocol import Drafts, DraftView, ObserveView, Starter
from specdec.drafters.lookahead.kinds import lookahead_kinds, of_ngrams, of_window
from specdec.drafters.lookahead.pool import NgramPool
from specdec.kernels.tree_rows import Texts, TreeRows
from specdec.kernels.tree_select import Candidates
from specdec.kernels.tree_walk import Accepted
from specdec.models.base import CacheSpec
from specdec.round.transfer import write

# As many candidates as a tree has room for. Acceptance length of SmolLM2-135M-Instruct over 10 answers of 96 tokens, trees
# verified whole: 1.76 with these, 1.62 with a window of 1, 1.64 to 1.70 with six other shapes.
WINDOW, NGRAM, GUESSES = 8, 4, 13
_STRIDE = 7919  # a prime beyond most texts' lengths: its multiples modulo a length fall here and there


class LookaheadDrafter:
    """See `specdec.draft.protocol.Drafter`.

    Args:
        num_slots: sequences at once.
        device: where rounds run.
        window: W. ngram: N. guesses: G.
    """

    names: tuple[str, ...] = ("lookahead",)
    reads: tuple[str, ...] = ()
    cache_specs: tuple[CacheSpec, ...] = ()

    def __init__(
        self, num_slots: int, device: torch.device, *, window: int = WINDOW, ngram: int = NGRAM, guesses: int = GUESSES
    ) -> None:
        size = ngram - 1
        self.kinds = lookahead_kinds()
        self._pool = NgramPool(num_slots + 1, guesses, ngram, device)
        self._window_SWK = torch.zeros(num_slots + 1, window, size, dtype=torch.int64, device=device)
        self._parents_1C = torch.tensor([_parents(guesses, window, size)], device=device)
        self._window_kinds_1C = torch.tensor([of_window(window, size)], device=device)
        self._back_K = torch.arange(size - 1, -1, -1, device=device)
        self._columns_W = torch.arange(window, device=device)
        self._places_WK = torch.arange(1, window * size + 1, device=device).view(window, size) * _STRIDE

    @property
    def shape(self) -> int:
        """Always the same."""
        return 0

    def bind(self, caches: Caches, first_layer: int, row_multiple: int) -> None:
        """It has no layers."""

    def enter(self, slot: int, starter: Starter) -> None:
        """See `Drafter.enter`. The window begins with tokens of the text."""
        self._pool.restart(slot, starter.tokens)
        tokens = np.array(starter.tokens, np.int64)
        random = np.random.default_rng(len(tokens))  # any will do
        write(self._window_SWK[slot], random.choice(tokens, self._window_SWK.shape[1:]))

    def leave(self, slot: int, output: Sequence[int]) -> None:
        """Nothing to learn: pools are of one sequence."""

    def draft(self, view: DraftView) -> Drafts:
        """See `Drafter.draft`. The pool's n-grams, newest first, then the window column by column."""
        texts, slots_M = view.texts, view.slots_M
        roots_M = texts.tokens_SL[slots_M, texts.lengths_S[slots_M] - 1].long()
        guesses_MGK = self._pool.find(slots_M, roots_M)[..., 1:]
        tokens_MC = torch.cat((guesses_MGK.flatten(1), self._window_SWK[slots_M].flatten(1)), 1)
        kinds = of_ngrams(guesses_MGK).flatten(1), self._window_kinds_1C.expand(len(roots_M), -1)
        return Drafts(Candidates(tokens_MC, self._parents_1C.expand_as(tokens_MC), torch.cat(kinds, 1)), repeats=True)

    def observe(self, view: ObserveView) -> None:
        """See `Drafter.observe`."""
        if view.accepted is None:
            return
        trees, texts = view.trees, view.view.texts
        grams_TN = self._ngrams(texts, trees, view.accepted.chosen_T)
        whole_T = (grams_TN >= 0).all(1) & view.accepted.sound_M[trees.trees_T]
        self._pool.add(trees.texts_T, grams_TN, whole_T)
        moves_M = view.view.has_tree_M & view.accepted.sound_M
        self._move(texts, view.view.slots_M, moves_M, view.accepted)

    def _ngrams(self, texts: Texts, trees: TreeRows, chosen_T: Tensor) -> Tensor:
        """int64 [T, N]: what ends with each row, and the target's choice behind it; -1 before a text's beginning."""
        depths_TK = trees.depths_T[:, None] - self._back_K
        drafted_TK = trees.tokens_T[trees.ancestors_TD.gather(1, depths_TK.clamp(min=0))]
        places_TK = trees.positions_T[:, None] - self._back_K
        written_TK = texts.tokens_SL[trees.texts_T[:, None], places_TK.clamp(min=0)].long()
        written_TK = torch.where(places_TK >= 0, written_TK, -1)
        return torch.cat((torch.where(depths_TK >= 0, drafted_TK, written_TK), chosen_T[:, None]), 1)

    def _move(self, texts: Texts, slots_M: Tensor, moves_M: Tensor, accepted: Accepted) -> None:
        """Each column loses its oldest token and gains the next one; columns that the text has passed are gone."""
        old_MWK = self._window_SWK[slots_M]
        fresh_MWK = self._copied(texts, slots_M)
        found_MWGN = self._pool.find(slots_M[:, None], old_MWK[:, :, 0])
        matches_MWG = (found_MWGN[..., :-1] == old_MWK[:, :, None]).all(3)
        newest_MW1 = matches_MWG.long().argmax(2, keepdim=True)
        next_MW = torch.where(matches_MWG.any(2), found_MWGN[..., -1].gather(2, newest_MW1)[..., 0], fresh_MWK[..., -1])
        moved_MWK = torch.cat((old_MWK[..., 1:], next_MW[..., None]), 2)
        from_MW = self._columns_W + accepted.num_M[:, None]
        last = len(self._columns_W) - 1
        kept_MWK = moved_MWK.gather(1, from_MW.clamp(max=last)[..., None].expand_as(moved_MWK))
        new_MWK = torch.where((from_MW <= last)[..., None], kept_MWK, fresh_MWK)
        self._window_SWK[slots_M] = torch.where(moves_M[:, None, None], new_MWK, old_MWK)

    def _copied(self, texts: Texts, slots_M: Tensor) -> Tensor:
        """int64 [M, W, K], tokens from here and there in each text."""
        places_MWK = self._places_WK % texts.lengths_S[slots_M][:, None, None]
        return texts.tokens_SL[slots_M[:, None, None], places_MWK].long()


def _parents(guesses: int, window: int, size: int) -> list[int]:
    """Of each candidate: n-grams are chains below the root, columns hang below one another's first tokens."""
    chains = [-1 if k == 0 else g * size + k - 1 for g in range(guesses) for k in range(size)]
    first = len(chains)
    above = [-1, *range(first, first + (window - 1) * size, size)]
    return chains + [above[w] if k == 0 else first + w * size + k - 1 for w in range(window) for k in range(size)]
