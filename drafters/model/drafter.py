"""The draft model: a second decoder whose keys and values are further layers of the target's pages.

Its tree is a caterpillar: at each depth the model's best token carries on and its next best are leaves, so a depth costs one
row. It reads every row that the target reads, so that its caches hold what the target's hold, whatever was accepted.

Legend of shape suffixes: M members, C candidates, k candidates of a depth, V vocabulary, L laws (C + 1).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from specdec.cache.kinds import Caches
from specdec.draft.confidence import ConfidenceKinds
from specdec.draft.protocol import Drafts, DraftView, ObserveView, Starter
from specdec.draft.steps import next_rows, roots
from specdec.kernels.gumbel import Keys, gumbel_topk
from specdec.kernels.tree_select import Candidates
from specdec.models.base import CacheSpec, Model
from specdec.round.forward import Forward, Vocabulary
from specdec.round.sample.noise import Domain, in_round

DEPTH = 5
WIDTH = 2
# chance of the best and of the next token, before any outcome was seen: about what drafters of a tenth of the target's size
# reach
_PRIORS = (0.6, 0.15)


class ModelDrafter:
    """See `specdec.draft.protocol.Drafter`.

    Args:
        model: the draft model.
        samples: for rejection rules: draw the candidates from the model's distribution with noise of its own and give the law.
            Otherwise they are ranked with the noise that the target will use.
        vocabulary: the target's; None: the draft model's own.
        depth: of the tree. width: candidates of each depth.
    """

    names: tuple[str, ...] = ("draft-model",)
    reads: tuple[str, ...] = ()

    def __init__(
        self, model: Model, *, samples: bool, vocabulary: Vocabulary | None = None, depth: int = DEPTH, width: int = WIDTH
    ) -> None:
        self.cache_specs: tuple[CacheSpec, ...] = model.cache_specs
        self._model = model
        self._samples = samples
        self._vocabulary = vocabulary
        self._depth, self._width = depth, width
        self._confidence = ConfidenceKinds(depth, np.array(_PRIORS[:width]), told=not samples)
        self.kinds = self._confidence.kinds
        self._known_parents: dict[int, Tensor] = {}

    @property
    def shape(self) -> int:
        """Always the same."""
        return 0

    def bind(self, caches: Caches, first_layer: int, row_multiple: int) -> None:
        """See `Drafter.bind`."""
        self._forward = Forward(self._model, caches, first_layer, row_multiple, self._vocabulary)

    def enter(self, slot: int, starter: Starter) -> None:
        """Nothing: what it knows of a text lies in the pages."""

    def leave(self, slot: int, output: Sequence[int]) -> None:
        """Nothing."""

    def draft(self, view: DraftView) -> Drafts:
        """See `Drafter.draft`. Candidates lie depth by depth, the best of each first; none before it has read the prompt."""
        depth = max(min(self._depth, view.num_nodes - 1), 1)
        tip_M, base_M = roots(view)
        tokens, kinds, laws = [], [], []
        for level in range(depth):
            hidden_ME, _ = self._forward(next_rows(view, tip_M, base_M + level))
            logits_MV = self._forward.logits(hidden_ME)
            if self._samples:
                found_Mk, log_q_Mk, law_MV = self._sample(view, logits_MV, base_M, level)
                laws.append(law_MV)
            else:
                found_Mk, log_q_Mk = view.rank(logits_MV, base_M + level, self._width)
            tokens.append(torch.where(log_q_Mk > -math.inf, found_Mk, -1))
            kinds.append(self._confidence.of(level, log_q_Mk))
            tip_M = found_Mk[:, 0]
        parents = [(level - 1) * self._width if level else -1 for level in range(depth) for _ in range(self._width)]
        tokens_MC = torch.where(view.starts_M[:, None] < 0, torch.cat(tokens, 1), -1)
        candidates = Candidates(tokens_MC, self._parents(parents, len(tip_M)), torch.cat(kinds, 1))
        return Drafts(candidates, self._laws(laws) if laws else None)

    def observe(self, view: ObserveView) -> None:
        """Its own keys and values of all rows."""
        self._forward(view.rows)

    def _sample(self, view: DraftView, logits_MV: Tensor, base_M: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens in the order drawn without replacement, their log q, and the law, float32 [M, V]."""
        keys, slots_M = view.keys, view.slots_M
        noisy_M1 = keys.noisy_S[slots_M, None]
        best_MV = torch.full_like(logits_MV, -math.inf).scatter_(1, logits_MV.argmax(1, keepdim=True), 0.0)
        log_q_MV = (logits_MV / keys.temperatures_S[slots_M, None]).log_softmax(1)
        log_q_MV = torch.where(noisy_M1, log_q_MV, best_MV)
        own = Keys(keys.seeds_S, torch.ones_like(keys.temperatures_S), torch.ones_like(keys.noisy_S))
        positions_M = in_round(base_M + level, base_M)
        _, tokens_Mk = gumbel_topk(log_q_MV, own, slots_M, positions_M, self._width, domain=Domain.DRAFT)
        return tokens_Mk, log_q_MV.gather(1, tokens_Mk), log_q_MV.exp()

    def _laws(self, laws: list[Tensor]) -> Tensor:
        """[M, C + 1, V]: that of a depth's best candidate is the next depth's; leaves have no children."""
        members, vocab_size = laws[0].shape
        found = laws[0].new_zeros(members, len(laws) * self._width + 1, vocab_size)
        for level, law_MV in enumerate(laws):
            found[:, 0 if level == 0 else (level - 1) * self._width + 1] = law_MV
        return found

    def _parents(self, parents: list[int], members: int) -> Tensor:
        key = len(parents)
        if key not in self._known_parents:
            self._known_parents[key] = torch.tensor([parents], device=self._model.device)
        return self._known_parents[key].expand(members, -1)
