"""Trees meant to break a verifier: random, wrong, deep and bushy ones, with the right path somewhere in them.

Shapes and tokens are drawn anew in each round, on the device and from what the device knows, so that they differ between rounds
that run ahead of the host too.

Legend of shape suffixes: M members, S slots, L room of an answer, C candidates.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from specdec.cache.kinds import Caches
from specdec.draft.protocol import CandidateKinds, Drafts, DraftView, ObserveView, Starter
from specdec.kernels.gumbel.reference import uniform
from specdec.kernels.tree_select import Candidates
from specdec.models.base import CacheSpec
from specdec.request import SamplingParams
from specdec.round.transfer import write

_SILENT = 0.1  # share of rounds without a draft
_RIGHT = 0.7  # share of nodes that carry the right token on, where it is known
_KINDS = 8  # drawn at random, so that the choice among nodes is too
_DRAWS = 5  # random numbers of a candidate


OracleKey = tuple[tuple[int, ...], str]


def oracle_key(prompt_ids: Sequence[int], sampling: SamplingParams) -> OracleKey:
    """What an answer depends on."""
    return tuple(prompt_ids), repr(sampling)


class AdversarialDrafter:
    """See `specdec.draft.protocol.Drafter`.

    Args:
        num_slots: sequences at once.
        max_model_len: tokens of one.
        vocab_size: tokens are drawn below it, half of them from the text, which are right more often.
        device: where rounds run.
        oracle: answers, for trees that contain a part of the right path; see `oracle_key`.
    """

    names: tuple[str, ...] = ("adversarial",)
    reads: tuple[str, ...] = ()
    cache_specs: tuple[CacheSpec, ...] = ()
    kinds = CandidateKinds(np.linspace(0.2, 0.95, _KINDS), np.zeros(_KINDS, np.int64))

    def __init__(
        self,
        num_slots: int,
        max_model_len: int,
        vocab_size: int,
        device: torch.device,
        oracle: Mapping[OracleKey, Sequence[int]] | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._oracle = oracle or {}
        self._answers_SL = torch.full((num_slots + 1, max_model_len + 1), -1, dtype=torch.int64, device=device)
        self._calls_1 = torch.zeros(1, dtype=torch.int64, device=device)

    @property
    def shape(self) -> int:
        """Always the same."""
        return 0

    def bind(self, caches: Caches, first_layer: int, row_multiple: int) -> None:
        """It has no layers."""

    def enter(self, slot: int, starter: Starter) -> None:
        """See `Drafter.enter`."""
        answer = self._oracle.get(oracle_key(starter.tokens[: starter.num_prompt_tokens], starter.sampling), ())
        self._answers_SL[slot] = -1
        if answer:
            place = slice(starter.num_prompt_tokens, starter.num_prompt_tokens + len(answer))
            write(self._answers_SL[slot, place], np.array(answer, np.int64))

    def leave(self, slot: int, output: Sequence[int]) -> None:
        """Nothing to learn."""

    def draft(self, view: DraftView) -> Drafts:
        """See `Drafter.draft`: a right path that ends somewhere, and nodes below any node before them."""
        self._calls_1.add_(1)
        size = max(view.num_nodes - 1, 1) + 2
        lengths_M = view.texts.lengths_S[view.slots_M]
        draws_C = torch.arange(size * _DRAWS, device=lengths_M.device)
        random = uniform(view.slots_M, lengths_M | self._calls_1 << 32, draws_C.expand(len(lengths_M), -1), 7)
        on_path, parent, which, token, text = random.view(len(lengths_M), size, _DRAWS).unbind(2)
        places_C = torch.arange(size, device=lengths_M.device)
        # while a node carries the right token on, it is the child of the one before that did
        right_MC = on_path < _RIGHT
        depth_MC = right_MC.long().cumsum(1)
        answer_MC = self._answers_SL[view.slots_M].gather(
            1, (lengths_M[:, None] + depth_MC - 1).clamp(max=self._answers_SL.shape[1] - 1)
        )
        known_MC = (answer_MC >= 0).long().cumprod(1) > 0
        right_MC = right_MC & known_MC
        last_MC = torch.where(right_MC, places_C, -1).cummax(1).values.roll(1, 1)
        last_MC[:, 0] = -1
        deep_M1 = random[:, :1]  # 0: bushy, 1: a chain
        any_MC = torch.where(which < deep_M1, places_C - 1, (parent * (places_C + 1)).long() - 1)
        copied_MC = view.texts.tokens_SL[view.slots_M].gather(1, (text * lengths_M[:, None]).long()).long()
        drawn_MC = torch.where(which < 0.5, (token * self._vocab_size).long(), copied_MC)
        tokens_MC = torch.where(right_MC, answer_MC, drawn_MC)
        silent_M1 = random[:, 1:2] < _SILENT
        parents_MC = torch.where(right_MC, last_MC, any_MC)
        kinds_MC = (token * _KINDS).long()
        return Drafts(Candidates(torch.where(silent_M1, -1, tokens_MC), parents_MC, kinds_MC), repeats=True)

    def observe(self, view: ObserveView) -> None:
        """Nothing to learn."""
