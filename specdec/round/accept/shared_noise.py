"""Shared-noise walk: the emitted token is always the target's own, so no tree can change the output.

At a node the target's own token is y = argmax(log p + g), g a function of seed and position. Where a child carries y the walk
steps to it, else y ends it; at a leaf y is the bonus token. Exact for every tree, per seed; see docs/losslessness.md.
Source: Daliri et al., "Coupling without communication and drafter-invariant speculative decoding" (2024), here on trees.
"""

from specdec.kernels.tree_walk import Accepted, walk_trees
from specdec.round.accept.base import Verification
from specdec.round.sample.draw import draw


class SharedNoise:
    """The default rule."""

    name = "shared-noise"
    per_seed = True

    def accept(self, verification: Verification) -> Accepted:
        """See `AcceptanceRule.accept`."""
        rows, layout, sampling = verification.rows, verification.layout, verification.sampling
        drawn = draw(verification.logits_TV, rows, sampling, verification.nucleus, verification.truncated)
        return walk_trees(rows, layout.nodes_M, layout.firsts_M, drawn.tokens_T, drawn.tops_T, drawn.settled_T)
