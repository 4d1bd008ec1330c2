"""Shared-noise walk: the emitted token is always the target's own, so no tree can change the output.

At a node the target's own token is y = argmax(log p + g), g a function of seed and position. Where a child carries y the walk
steps to it, else y ends it; at a leaf y is the bonus token. Exact for every tree, per seed; see docs/losslessness.md.
Source: Daliri et al., "Coupling without communication and drafter-invariant speculative decoding" (2024), here on trees.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.round.accept.base import Accepted
from specdec.round.batch import TreeRows
from specdec.round.sample.sampling import SamplingBatch, choose


class SharedNoise:
    """The default rule."""

    name = "shared-noise"
    per_seed = True

    def accept(
        self,
        tree: TreeRows,
        logits_TV: Tensor,
        sampling: SamplingBatch,
        q: Sequence[Tensor | None] | None = None,  # noqa: ARG002 (the protocol's)
    ) -> Accepted:
        """See `AcceptanceRule.accept`; `q` is not read."""
        return walk(tree, choose(tree, logits_TV, sampling))


def walk(tree: TreeRows, chosen_T: Tensor) -> Accepted:
    """Follow the target's own tokens down the trees. Tensors only: no shape and no branch depends on a value.

    Args:
        tree: the trees.
        chosen_T: int64, the target's own token after each tree row.
    """
    matches_T = (tree.tokens_T == chosen_T[tree.parents_T]) | (tree.depths_T == 0)
    kept_T = matches_T[tree.ancestors_TD].all(dim=1)
    zeros_S = torch.zeros_like(tree.roots_S)
    num_accepted_S = zeros_S.scatter_reduce(0, tree.sequences_T, torch.where(kept_T, tree.depths_T, 0), "amax")
    # siblings differ, so at most one row of a depth is kept
    is_last_T = kept_T & (tree.depths_T == num_accepted_S[tree.sequences_T])
    rows_T = torch.arange(len(kept_T), device=kept_T.device)
    last_S = zeros_S.scatter_reduce(0, tree.sequences_T, torch.where(is_last_T, rows_T, 0), "amax")
    path_SD = tree.ancestors_TD[last_S]
    depths_D = torch.arange(path_SD.shape[1], device=path_SD.device)
    emitted_SD = chosen_T[path_SD].masked_fill(depths_D > num_accepted_S[:, None], -1)
    return Accepted(num_accepted_S=num_accepted_S, path_SD=path_SD, emitted_SD=emitted_SD)
