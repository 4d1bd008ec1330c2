"""The tensor rules against a plain walk, decision by decision."""

import numpy as np
import pytest
import torch
from torch import Tensor

from specdec.config import ACCEPTANCE_RULES
from specdec.draft.tree import DraftTree
from specdec.request import SamplingParams
from specdec.round.accept.registry import RULES
from specdec.round.accept.rejection import Rejection
from specdec.round.accept.residual import acceptance_probability, drawn_from, residual, stopping_probability, without
from specdec.round.batch import TreeRows, tree_rows
from specdec.round.sample.candidates import Keys, race
from specdec.round.sample.noise import Domain, uniform
from specdec.round.sample.sampling import SamplingBatch, SamplingEntry, choose, probabilities

VOCAB, BASE = 9, 20
CHAIN, WIDE, LOPSIDED = (0, 1, 2), (0, 0, 0), (0, 0, 1, 2, 1, 5)


def _tree(parents: tuple[int, ...], generator: np.random.Generator) -> DraftTree:
    """A tree of that shape whose siblings carry different tokens."""
    tokens = [1]
    for child, parent in enumerate(parents):
        taken = {tokens[i + 1] for i in range(child) if parents[i] == parent}
        tokens.append(int(generator.choice([token for token in range(VOCAB) if token not in taken])))
    array = np.array([0, *parents])
    return DraftTree(np.array(tokens), array, np.zeros(len(tokens)), np.zeros_like(array), np.zeros_like(array))


def _rows(trees: list[DraftTree]) -> TreeRows:
    starts = np.cumsum([0] + [len(tree) for tree in trees[:-1]])
    return tree_rows([(tree, int(start), BASE) for tree, start in zip(trees, starts, strict=True)], torch.device("cpu"))


def _batch(params: list[SamplingParams]) -> SamplingBatch:
    return SamplingBatch.build([SamplingEntry(p, p.seed, [1] * 9, 4, frozenset()) for p in params], VOCAB, "cpu")


def _one_hot(token: int) -> Tensor:
    return (torch.arange(VOCAB) == token).double()[None]


def _plain_tree(tree: DraftTree, p: Tensor, q: Tensor | None, seed: int) -> tuple[list[int], Tensor]:
    """Recursive rejection of one tree: kept nodes, distribution of the token after them."""
    nodes = [0]
    while True:
        node, left = nodes[-1], p[nodes[-1]][None]
        source = q[node][None].double() if q is not None else torch.zeros(1, VOCAB, dtype=torch.float64)
        for place, child in enumerate(i for i in range(1, len(tree)) if tree.parents[i] == node):
            x = _one_hot(int(tree.tokens[child]))
            effective = drawn_from(source, x)
            draw = uniform(torch.tensor([seed]), torch.tensor([BASE]), torch.tensor([[(len(nodes) - 1) << 16 | place]]))
            if float(draw) < float(acceptance_probability(left, effective, x)):
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
        if float(uniform(torch.tensor([seed]), torch.tensor([BASE]), torch.tensor([[depth << 16]]))) < float(keep):
            kept, own = depth, p[depth] if depth == length else residual(weight * p[depth][None], q[depth][None])[0]
    return list(range(kept + 1)), own


def test_the_rejection_rule_decides_as_a_plain_walk_does() -> None:
    generator, torch_generator = np.random.default_rng(1), torch.Generator().manual_seed(1)
    shapes = [(), CHAIN, WIDE, LOPSIDED, CHAIN, WIDE, LOPSIDED] * 30
    drawn = [False, True, True, True, False, False, False] * 30
    trees = [_tree(shape, generator) for shape in shapes]
    logits = torch.randn(sum(map(len, trees)), VOCAB, generator=torch_generator)
    q = [
        torch.randn(len(t), VOCAB, generator=torch_generator).softmax(-1) if d else None
        for t, d in zip(trees, drawn, strict=True)
    ]
    rows, batch = _rows(trees), _batch([SamplingParams(seed=i, top_k=7) for i in range(len(trees))])
    accepted = Rejection().accept(rows, logits, batch, q)
    p_TV, start, kept_more = probabilities(rows, logits, batch), 0, 0
    for index, (tree, one) in enumerate(zip(trees, q, strict=True)):
        p = p_TV[start : start + len(tree)]
        by_block = one is not None and tree.is_chain()
        nodes, own = _plain_chain(tree, p, one, index) if by_block and one is not None else _plain_tree(tree, p, one, index)
        key = Keys(seeds_N=torch.tensor([index]), positions_N=torch.tensor([BASE + len(nodes)]), domain=Domain.RESIDUAL)
        expected = [int(tree.tokens[node]) for node in nodes[1:]] + [int(race(own.log().float()[None], key)[1])]
        count = int(accepted.num_accepted_S[index]) + 1
        assert accepted.emitted_SD[index].tolist() == expected + [-1] * (accepted.emitted_SD.shape[1] - len(expected))
        assert (accepted.path_SD[index, :count] - start).tolist() == nodes
        start, kept_more = start + len(tree), kept_more + (count > 2)
    assert kept_more > 20


@pytest.mark.parametrize("name", list(RULES))
def test_greedy_rows_follow_the_argmax_under_every_rule(name: str) -> None:
    generator = np.random.default_rng(2)
    trees = [_tree(shape, generator) for shape in ((), CHAIN, WIDE, LOPSIDED) * 10]
    logits = torch.randn(sum(map(len, trees)), VOCAB, generator=torch.Generator().manual_seed(2))
    rows, batch = _rows(trees), _batch([SamplingParams(temperature=0.0)] * len(trees))
    accepted = RULES[name]().accept(rows, logits, batch)
    own = logits.argmax(-1)
    for sequence, count in enumerate((accepted.num_accepted_S + 1).tolist()):
        path = accepted.path_SD[sequence, :count]
        assert accepted.emitted_SD[sequence, :count].tolist() == own[path].tolist()
        children = rows.tokens_T[(rows.parents_T == path[-1]) & (rows.depths_T > 0)]
        assert own[path[-1]] not in children


def test_shared_noise_emits_what_plain_decoding_draws() -> None:
    generator = np.random.default_rng(3)
    trees = [_tree(LOPSIDED, generator) for _ in range(40)]
    logits = torch.randn(sum(map(len, trees)), VOCAB, generator=torch.Generator().manual_seed(3)) * 3
    rows, batch = _rows(trees), _batch([SamplingParams(seed=i) for i in range(len(trees))])
    accepted = RULES["shared-noise"]().accept(rows, logits, batch)
    plain = choose(rows, logits, batch)[rows.roots_S]
    assert torch.equal(accepted.emitted_SD[:, 0], plain)
    assert int((accepted.num_accepted_S > 0).sum()) > 5


def test_every_rule_of_the_settings_exists() -> None:
    assert set(RULES) == set(ACCEPTANCE_RULES)
    assert all(RULES[name]().name == name for name in RULES)
