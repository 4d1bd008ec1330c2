"""The tensor rules against a plain walk, decision by decision."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from specdec.config import ACCEPTANCE_RULES
from specdec.draft.tree import DraftTree
from specdec.kernels.gumbel.search import race
from specdec.request import SamplingParams
from specdec.round.accept.base import Verification
from specdec.round.accept.registry import RULES
from specdec.round.accept.residual import acceptance_probability, drawn_from, residual, stopping_probability, without
from specdec.round.sample.draw import draw, probabilities
from specdec.round.sample.noise import Domain, uniform
from tests.specdec.round.accept.conftest import sampling_of, stacked, verification

VOCAB, BASE = 9, 20
CHAIN, WIDE, LOPSIDED = (0, 1, 2), (0, 0, 0), (0, 0, 1, 2, 1, 5)


def _tree(parents: tuple[int, ...], generator: np.random.Generator) -> DraftTree:
    """A tree of that shape whose siblings carry different tokens."""
    tokens = [1]
    for child, parent in enumerate(parents):
        taken = {tokens[i + 1] for i in range(child) if parents[i] == parent}
        tokens.append(int(generator.choice([token for token in range(VOCAB) if token not in taken])))
    return DraftTree(np.array(tokens), np.array([0, *parents]))


def _given(
    trees: Sequence[DraftTree], params: SamplingParams, seed: int, scale: float = 1.0, laws_MNV: Tensor | None = None
) -> Verification:
    """Seeds are the trees' places."""
    tokens_MN, parents_MN, sizes_M = stacked(trees)
    logits_TV = torch.randn(int(sizes_M.sum()), VOCAB, generator=torch.Generator().manual_seed(seed)) * scale
    sampling = sampling_of(params, torch.arange(len(trees)), VOCAB)
    bases_M = torch.full((len(trees),), BASE)
    truncates = params.top_k > 0
    return verification(tokens_MN, parents_MN, sizes_M, bases_M, logits_TV, sampling, laws_MNV=laws_MNV, truncates=truncates)


def _one_hot(token: int) -> Tensor:
    return (torch.arange(VOCAB) == token).double()[None]


def _uniform(seed: int, draw: int) -> float:
    return float(uniform(torch.tensor([seed]), torch.tensor([BASE]), torch.tensor([[draw]])))


def _plain_tree(tree: DraftTree, p: Tensor, q: Tensor | None, seed: int) -> tuple[list[int], Tensor]:
    """Recursive rejection of one tree: kept nodes, distribution of the token after them."""
    nodes = [0]
    while True:
        node, left = nodes[-1], p[nodes[-1]][None]
        source = q[node][None].double() if q is not None else torch.zeros(1, VOCAB, dtype=torch.float64)
        for child in (i for i in range(1, len(tree)) if tree.parents[i] == node):
            x = _one_hot(int(tree.tokens[child]))
            effective = drawn_from(source, x)
            if _uniform(seed, child) < float(acceptance_probability(left, effective, x)):
                nodes.append(child)
                break
            left, source = residual(left, effective), without(source, x)
        else:
            return nodes, left[0]


def _plain_chain(tree: DraftTree, p: Tensor, q: Tensor, seed: int) -> tuple[list[int], Tensor]:
    """Block verification of one chain."""
    length, q = len(tree) - 1, q.double()
    weight, kept, own = torch.ones(1, dtype=torch.float64), 0, residual(p[:1], q[:1])[0]
    for depth in range(1, length + 1):
        weight = acceptance_probability(p[depth - 1][None], q[depth - 1][None], _one_hot(int(tree.tokens[depth])), weight)
        keep = weight if depth == length else stopping_probability(weight, p[depth][None], q[depth][None])
        if _uniform(seed, depth) < float(keep):
            kept, own = depth, p[depth] if depth == length else residual(weight * p[depth][None], q[depth][None])[0]
    return list(range(kept + 1)), own


@pytest.mark.parametrize("sampled", [True, False])
def test_the_rejection_rule_decides_as_a_plain_walk_does(sampled: bool) -> None:
    """Where drafters sample, some sequences' children may still be a fixed choice."""
    generator = np.random.default_rng(1)
    trees = [_tree(shape, generator) for shape in ((), CHAIN, WIDE, LOPSIDED) * 30]
    sizes, laws_MNV = [len(tree) for tree in trees], None
    if sampled:
        laws_MNV = torch.randn(len(trees), max(sizes), VOCAB, generator=torch.Generator().manual_seed(1)).softmax(-1)
        laws_MNV[::5] = 0.0
    given = _given(trees, SamplingParams(top_k=7), 1, laws_MNV=laws_MNV)
    accepted = RULES["rejection"]().accept(given)
    p_TV, start, kept_more = probabilities(given.logits_TV, given.rows, given.sampling, given.nucleus)[0], 0, 0
    for index, (tree, size) in enumerate(zip(trees, sizes, strict=True)):
        p = p_TV[start : start + size]
        q = laws_MNV[index, :size] if laws_MNV is not None and bool(laws_MNV[index].any()) else None
        is_chain = size > 1 and bool((tree.depths() == np.arange(size)).all())
        nodes, own = _plain_chain(tree, p, q, index) if is_chain and q is not None else _plain_tree(tree, p, q, index)
        place = torch.tensor([BASE + len(nodes)])
        _, last = race(own.log().float()[None], torch.tensor([index]), place, 1, Domain.RESIDUAL)
        expected = [int(tree.tokens[node]) for node in nodes[1:]] + [int(last)]
        count = int(accepted.num_M[index]) + 1
        assert accepted.emitted_MD[index].tolist() == expected + [-1] * (accepted.emitted_MD.shape[1] - len(expected))
        assert (accepted.rows_MD[index, :count] - start).tolist() == nodes
        start, kept_more = start + size, kept_more + (count > 2)
    assert kept_more > (10 if sampled else 0)
    assert bool(accepted.sound_M.all())


@pytest.mark.parametrize("name", list(RULES))
def test_greedy_rows_follow_the_argmax_under_every_rule(name: str) -> None:
    generator = np.random.default_rng(2)
    trees = [_tree(shape, generator) for shape in ((), CHAIN, WIDE, LOPSIDED) * 10]
    given = _given(trees, SamplingParams(temperature=0.0), 2)
    accepted, rows, own = RULES[name]().accept(given), given.rows, given.logits_TV.argmax(-1)
    for member, count in enumerate((accepted.num_M + 1).tolist()):
        path = accepted.rows_MD[member, :count]
        assert accepted.emitted_MD[member, :count].tolist() == own[path].tolist()
        children = rows.tokens_T[(rows.parents_T == path[-1]) & (rows.depths_T > 0)]
        assert own[path[-1]] not in children


@pytest.mark.parametrize("name", list(RULES))
def test_a_row_without_a_finite_logit_makes_its_own_tree_void_where_it_is_kept(name: str) -> None:
    trees = [_tree(CHAIN, np.random.default_rng(3)) for _ in range(3)]
    given = _given(trees, SamplingParams(temperature=0.0), 4)
    for tree, first in zip(trees, given.layout.firsts_M.tolist(), strict=True):
        given.logits_TV[first, int(tree.tokens[1])] = 50.0  # the first draft is right
    given.logits_TV[given.layout.firsts_M[1] + 1] = torch.nan
    given.logits_TV[given.layout.firsts_M[2] + 2] = torch.nan
    given.logits_TV[given.layout.firsts_M[2] + 1, (int(trees[2].tokens[2]) + 1) % VOCAB] = 50.0  # and the second is wrong
    assert RULES[name]().accept(given).sound_M.tolist() == [True, False, True]


def test_shared_noise_emits_what_plain_decoding_draws() -> None:
    generator = np.random.default_rng(3)
    given = _given([_tree(LOPSIDED, generator) for _ in range(40)], SamplingParams(), 3, scale=3.0)
    accepted = RULES["shared-noise"]().accept(given)
    plain = draw(given.logits_TV, given.rows, given.sampling, given.nucleus).tokens_T
    assert torch.equal(accepted.emitted_MD[:, 0], plain[given.layout.firsts_M])
    assert int((accepted.num_M > 0).sum()) > 5


def test_every_rule_of_the_settings_exists() -> None:
    assert set(RULES) == set(ACCEPTANCE_RULES)
    assert all(RULES[name]().name == name for name in RULES)
