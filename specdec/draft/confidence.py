"""Kinds of candidates for drafters that know how sure they are: by depth, rank and their own probability.

Legend of shape suffixes: M members, k candidates of a depth, B classes of confidence.
"""

import numpy as np
import torch
from torch import Tensor

from specdec.arrays import FloatArray
from specdec.draft.protocol import CandidateKinds

# where classes of the drafter's probability begin; closer together where a little more certainty decides about deep drafts
_EDGES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98)


class ConfidenceKinds:
    """Args:
    depth: of the tree; each depth has kinds of its own.
    priors_R: float64, the chance of a candidate by its rank.
    told: whether the drafter's probability is looked at, and is the prior. A rule that draws from the drafter's
        distribution needs trees whose shape does not depend on what was drawn.
    """

    def __init__(self, depth: int, priors_R: FloatArray, told: bool) -> None:
        edges = np.array([0.0, *_EDGES, 1.0])
        classes = (edges[1:] + edges[:-1]) / 2 if told else np.full(1, np.nan)
        priors = np.where(np.isnan(classes), priors_R[:, None], classes)  # [R, B]
        ranks = np.arange(depth * priors.size) % priors.size
        elders = None if told else np.where(ranks > 0, np.arange(depth * priors.size) - 1, -1)
        self.kinds = CandidateKinds(np.tile(priors.ravel(), depth), np.zeros(depth * priors.size, np.int64), elders)
        self._ranks, self._classes = priors.shape
        self._told = told
        self._columns: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def of(self, level: int, log_q_Mk: Tensor) -> Tensor:
        """int64 [M, k]: the kinds of the candidates of one depth, best first."""
        key = (level, log_q_Mk.device)
        if key not in self._columns:
            firsts = (level * self._ranks + torch.arange(self._ranks)) * self._classes
            self._columns[key] = firsts.to(log_q_Mk.device), torch.tensor(_EDGES, device=log_q_Mk.device)
        firsts_k, edges = self._columns[key]
        if not self._told:
            return firsts_k.expand(len(log_q_Mk), -1)
        return firsts_k + torch.bucketize(log_q_Mk.exp(), edges, right=True)
