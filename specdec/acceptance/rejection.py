"""Recursive rejection sampling without replacement, on trees.

At a node with target distribution p the children are tried in the order of their rows. A child x that was drawn from q is kept
with probability min(1, p(x) / q(x)); else p becomes max(p - q, 0), normalised, and q loses x. A fixed child is one drawn from the
one-hot q. When no child is left the token is drawn from what p has become.

The output has the target's distribution, not the target's own tokens for a seed. It needs two things: the shape of the trees must
not depend on sampled tokens, and sampled children must have been drawn with noise of their own, never with the uniforms
(`Domain.ACCEPT`) and the Gumbel noise (`Domain.RESIDUAL`) used here.

Sources: Leviathan et al. 2023 (one draft), Chen et al. 2024, "Sequoia" (without replacement). A chain of sampled drafts goes to block.py.
Shape suffixes: S sequences that walk here, V vocabulary, K children of a node, D depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.acceptance.base import Accepted
from specdec.acceptance.block import verify_chain
from specdec.acceptance.residual import acceptance_probability, residual, without
from specdec.batch import TreeRows
from specdec.noise import Domain, gumbel, uniform
from specdec.sampling import SamplingBatch, probabilities
