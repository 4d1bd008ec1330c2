"""The drafts of a round: what all drafters offer becomes one tree for each member.

Legend of shape suffixes: M members, C candidates, S slots, X kinds of all drafters, L laws (C + 1), V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specdec.arrays import FloatArray, IntArray
from specdec.draft.protocol import Drafter, Drafts, DraftView
from specdec.kernels.commit import Verified
from specdec.kernels.gumbel import Keys, gumbel_topk
from specdec.kernels.tree_select import Candidates, select_trees
from specdec.round.crew import Crew
from specdec.round.plan import PlanTables, RoundShape
from specdec.round.sample.draw import Nucleus, Sampling, truncated
from specdec.round.transfer import write

_ALIKE = 1e-4  # chances that differ by a smaller share might change places where they are rounded


@dataclass(frozen=True, slots=True)
class DraftNames:
    """How the kinds of all drafters are numbered: each drafter's follow those of the one before, and so do their names.

    names: of all drafters. priors_X, sources_X, elders_X: see `CandidateKinds`, sources as places in `names`.
    """

    names: tuple[str, ...]
    priors_X: FloatArray
    sources_X: IntArray
    elders_X: IntArray

    @staticmethod
    def of(drafters: Sequence[Drafter]) -> "DraftNames":
        """Of drafters in order."""
        names: list[str] = []
        priors, sources, elders = [np.zeros(0)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for drafter in drafters:
            kinds = drafter.kinds
            own = kinds.elders_X if kinds.elders_X is not None else np.full(len(kinds.priors_X), -1)
            elders.append(np.where(own >= 0, own + sum(map(len, priors)), -1))
            priors.append(kinds.priors_X)
            sources.append(kinds.sources_X + len(names))
            names += drafter.names
        return DraftNames(tuple(names), np.concatenate(priors), np.concatenate(sources), np.concatenate(elders))


class Drafting:
    """Asks the drafters, merges what they offer, and keeps what is worth a row.

    Args:
        drafters: in order of precedence where they offer the same path.
        max_depth: drafts beyond it are dropped.
        device: where the round runs.
    """

    def __init__(self, drafters: Sequence[Drafter], max_depth: int, device: torch.device) -> None:
        self.crew = Crew(drafters)
        self.names = DraftNames.of(drafters)
        self._max_depth = max_depth
        self._chances_X = torch.tensor(self.names.priors_X, dtype=torch.float32, device=device)
        self._sources_X = torch.tensor(self.names.sources_X, device=device)
        firsts = np.cumsum([0, *(len(drafter.kinds.priors_X) for drafter in drafters)])
        self._firsts = firsts.tolist()
        self._none_11 = torch.full((1, 1), -1, device=device)

    @property
    def drafters(self) -> tuple[Drafter, ...]:
        """All of them, see `Crew`."""
        return self.crew.drafters

    def set_chances(self, chances_X: FloatArray) -> None:
        """How likely each kind is right, as has been learned; what is underway still reads the old ones.

        No sampled candidate counts for more than the sibling that was drawn before it: where a tree has the later one alone,
        that was not drawn from the law that is stated.
        """
        chances_X = chances_X.copy()
        for kind in np.flatnonzero(self.names.elders_X >= 0).tolist():  # elders come first
            elder = chances_X[self.names.elders_X[kind]]
            if chances_X[kind] > elder * (1.0 - _ALIKE):
                chances_X[kind] = elder
        write(self._chances_X, chances_X.astype(np.float32))

    def trees(
        self, view: DraftView, tables: PlanTables, shape: RoundShape, allowed_S: Tensor
    ) -> tuple[Verified, Tensor | None]:
        """The trees of a round, and the laws of sampled candidates, see `specdec.round.accept.base.Verification`.

        allowed_S: int64, bits of the names that each slot may use; looked at where the shape says that somebody may not use
        all.
        """
        candidates, laws, shared = self._offered(view)
        if shape.restricted:
            allowed_MC = allowed_S[view.slots_M, None] >> self._sources_X[candidates.kinds_MC] & 1
            tokens_MC = torch.where(allowed_MC > 0, candidates.tokens_MC, -1)
            candidates = Candidates(tokens_MC, candidates.parents_MC, candidates.kinds_MC)
        trees = select_trees(
            candidates,
            self._chances_X,
            tables.odds_M,
            tables.budgets_M,
            tables.least_1,
            num_nodes=shape.nodes,
            max_depth=self._max_depth,
            shared=shared,
        )
        return Verified(candidates, trees), laws

    def _offered(self, view: DraftView) -> tuple[Candidates, Tensor | None, bool]:
        """All candidates side by side; laws; and whether two may have the same path. What was sampled stands alone, since its
        law describes whole sets of siblings."""
        found = list(self.crew.draft(view))
        size = len(view.slots_M)
        if not found:
            none_M1 = self._none_11.expand(size, 1)
            return Candidates(none_M1, none_M1, none_M1 + 1), None, False
        for number, drafts in found:
            if drafts.laws_MLV is not None:
                return _numbered(drafts, self._firsts[number], size), drafts.laws_MLV, False
        parts = [_numbered(drafts, self._firsts[number], size) for number, drafts in found]
        if len(found) == 1:
            return parts[0], None, found[0][1].repeats
        places = np.cumsum([0, *(part.tokens_MC.shape[1] for part in parts)]).tolist()
        parents = [
            torch.where(part.parents_MC >= 0, part.parents_MC + place, -1) for part, place in zip(parts, places, strict=False)
        ]
        tokens_MC, kinds_MC = (torch.cat(rows, 1) for rows in zip(*((p.tokens_MC, p.kinds_MC) for p in parts), strict=True))
        return Candidates(tokens_MC, torch.cat(parents, 1), kinds_MC), None, True


@dataclass(frozen=True, slots=True)
class SharedNoiseRanking:
    """See `specdec.draft.protocol.Ranking`."""

    slots_M: Tensor
    sampling: Sampling
    nucleus: Nucleus

    def __call__(self, logits_MV: Tensor, positions_M: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """See `Ranking`."""
        keys = self.sampling.keys
        scores_MV, _ = truncated(logits_MV, self.slots_M, self.sampling, self.nucleus)
        own = Keys(keys.seeds_S, self.sampling.ones_S, keys.noisy_S)
        sums_Mk, tokens_Mk = gumbel_topk(scores_MV.contiguous(), own, self.slots_M, positions_M, num)
        log_q_MV = (logits_MV / keys.temperatures_S[self.slots_M, None]).log_softmax(dim=1)
        return tokens_Mk, log_q_MV.gather(1, tokens_Mk).masked_fill(sums_Mk == -torch.inf, -torch.inf)


def _numbered(drafts: Drafts, first: int, size: int) -> Candidates:
    """A drafter's candidates for each of `size` members, their kinds counted from `first`."""
    offered = drafts.candidates
    tokens_MC, parents_MC, kinds_MC = (
        values.expand(size, -1) for values in (offered.tokens_MC, offered.parents_MC, offered.kinds_MC)
    )
    return Candidates(tokens_MC, parents_MC, kinds_MC + first if first else kinds_MC)
