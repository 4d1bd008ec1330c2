"""What the lookup tells apart among its candidates."""

import numpy as np
import torch

from specdec.drafters.lookup.kinds import labels, lookup_kinds
from specdec.kernels.suffix_match import LONGEST_MATCH, Origin


def test_labels_lie_as_kernels_read_them() -> None:
    found = torch.tensor(labels(np.array([0, 1, 2])))
    assert found.is_contiguous()
    assert found.shape == (3, 2, LONGEST_MATCH + 1, 3, 3)


def test_labels_are_kinds_of_the_name_that_an_origin_counts_for() -> None:
    kinds, found = lookup_kinds(3), labels(np.array([2, 0, 1]))
    assert set(kinds.sources_X[found[Origin.TEXT]].flatten()) == {2}
    assert set(kinds.sources_X[found[Origin.REFERENCE]].flatten()) == {0}
    chances = kinds.priors_X[found[Origin.TEXT, 0]]
    assert (np.diff(chances[1:], axis=0) >= 0).all(), "more evidence is never worse where the best place proposes"
    assert (chances[2:, 2, 0] > chances[2:, 0, 0]).all(), "agreement helps"
