"""What the lookup tells apart among its candidates, and how likely each is right before any was seen.

A candidate's *evidence* is the number of tokens before it that agree with the place it was copied from; *agreement* is how many
of the best places that are still on its path propose it, and how many propose another. Depth, recency and streaks add nothing
once these are known.
"""

import numpy as np

from specdec.arrays import FloatArray, IntArray
from specdec.draft.protocol import CandidateKinds
from specdec.kernels.suffix_match import LONGEST_MATCH

NUM_ORIGINS = 3
_EDGES = np.array([2, 3, 4, 6, 10, 16])  # of evidence: where classes after the first begin
# Chance that a candidate is right, given that all above it are, at temperature 0: by who proposes it, by evidence class (rows),
# and by how many places propose it (1, 2, more) and how many another (0, 1, more). Fitted on 12.7 million outcomes in 19,775
# answers of SmolLM2-135M-Instruct to prompts of 13 kinds; a sixth of the cells cannot occur.
_CHANCES = np.array([
    [  # the best of the places proposes it
        [0.305, 0.174, 0.109, 0.527, 0.342, 0.231, 0.732, 0.558, 0.420],
        [0.567, 0.342, 0.286, 0.774, 0.518, 0.467, 0.894, 0.763, 0.661],
        [0.691, 0.427, 0.380, 0.835, 0.635, 0.554, 0.929, 0.822, 0.715],
        [0.771, 0.518, 0.513, 0.885, 0.700, 0.648, 0.958, 0.853, 0.773],
        [0.849, 0.613, 0.595, 0.927, 0.755, 0.727, 0.977, 0.900, 0.833],
        [0.903, 0.682, 0.670, 0.959, 0.810, 0.804, 0.983, 0.930, 0.884],
        [0.954, 0.784, 0.837, 0.988, 0.885, 0.880, 0.998, 0.973, 0.944],
    ],
    [  # another does
        [0.100, 0.064, 0.032, 0.100, 0.090, 0.064, 0.100, 0.151, 0.101],
        [0.100, 0.219, 0.050, 0.100, 0.116, 0.091, 0.100, 0.215, 0.140],
        [0.100, 0.171, 0.059, 0.100, 0.186, 0.105, 0.100, 0.228, 0.144],
        [0.100, 0.150, 0.069, 0.100, 0.173, 0.114, 0.100, 0.284, 0.167],
        [0.100, 0.158, 0.066, 0.100, 0.165, 0.123, 0.100, 0.365, 0.181],
        [0.100, 0.195, 0.066, 0.100, 0.189, 0.126, 0.100, 0.471, 0.188],
        [0.100, 0.143, 0.149, 0.100, 0.229, 0.338, 0.100, 0.465, 0.477],
    ],
])  # fmt: skip

_LOWER = 0.35  # log odds that priors are lowered by: one that is too low costs less than one that is too high
_PER_TEMPERATURE = (-0.72, 0.22)  # log odds by the unit of temperature, by who proposes it; fitted at 0 and 1


def lookup_kinds(num_names: int) -> CandidateKinds:
    """Kinds in the order name, greedy or sampled, proposer, evidence, agreement."""
    odds = np.log(_CHANCES / (1.0 - _CHANCES)) - _LOWER
    sampled = odds + np.array(_PER_TEMPERATURE)[:, None, None]
    of_name = 1.0 / (1.0 + np.exp(-np.stack((odds, sampled))))
    priors: FloatArray = np.tile(of_name.ravel(), num_names)
    return CandidateKinds(priors, np.repeat(np.arange(num_names), of_name.size))


def labels(sources: IntArray) -> IntArray:
    """int64, the labels that `suffix_candidates` asks for, of greedy requests.

    Args:
        sources: int64 [NUM_ORIGINS], which of the drafter's names each origin counts for.
    """
    classes = np.searchsorted(_EDGES, np.arange(LONGEST_MATCH + 1), side="right")
    of_origin = np.arange(_CHANCES.size).reshape(2, -1, 3, 3)[:, classes]
    # kernels read it flat, and numpy keeps the order in which it picked the classes
    return np.ascontiguousarray(sources[:, None, None, None, None] * (2 * _CHANCES.size) + of_origin)


def sampled_shift() -> int:
    """What the labels of requests that are drawn are beyond those of greedy ones."""
    return int(_CHANCES.size)
