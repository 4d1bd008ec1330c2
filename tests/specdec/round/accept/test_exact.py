"""Exactness of the acceptance rules, proven by enumeration: exact fractions, every draw, no tolerance.

The rejection rules' arithmetic (specdec.round.accept.residual) runs here on fractions, as it is; test_rules.py shows that
the tensor rules take the same decisions with it. The shared-noise walk has no arithmetic: the tensor code itself is enumerated.
"""

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from specdec.draft.tree import DraftTree
from specdec.kernels.tree_walk import walk_trees
from specdec.request import SamplingParams
from specdec.round.accept.residual import acceptance_probability, drawn_from, residual, stopping_probability, without
from tests.specdec.round.accept.conftest import sampling_of, stacked, verification

Row = npt.NDArray[np.object_]  # [1, V] of Fraction
Path = tuple[int, ...]
Law = dict[Path, Fraction]  # of what a round emits

# parents of the nodes after the root: chains, wide, deep, lopsided
SHAPES = [
    (),
    (0,),
    (0, 0),
    (0, 0, 0),
    (0, 1),
    (0, 1, 2),
    (0, 0, 1),
    (0, 0, 2),
    (0, 0, 1, 1, 2),
    (0, 1, 1, 1, 4),
    (0, 0, 1, 2, 3),
]


def _row(values: list[Fraction]) -> Row:
    row = np.empty((1, len(values)), object)
    row[0] = values
    return row


def _one_hot(token: int, vocab: int) -> Row:
    return _row([Fraction(int(v == token)) for v in range(vocab)])


class Model:
    """A distribution over `vocab` tokens for every path, zeros among them; the same one whenever it is asked."""

    def __init__(self, vocab: int, seed: int) -> None:
        self.vocab, self._seed = vocab, seed

    def __call__(self, path: Path) -> Row:
        weights = random.Random(f"{self._seed}{path}").choices([0, 1, 2, 3, 7], k=self.vocab)
        weights[(self._seed + len(path)) % self.vocab] += 1
        return _row([Fraction(w, sum(weights)) for w in weights])

    def probability(self, path: Path, after: Path = ()) -> Fraction:
        """Of `path`, given that `after` came before it."""
        product = Fraction(1)
        for i, token in enumerate(path):
            product *= self(after + path[:i])[0, token]
        return product


class RecursiveRejection:
    """The law of what one round emits under recursive rejection, all draws enumerated.

    sampled: the children of a node are drawn from the drafter's distribution without replacement, else they are its first ones.
    """

    def __init__(self, target: Model, draft: Model, shape: tuple[int, ...], sampled: bool) -> None:
        self.target, self.draft, self.sampled = target, draft, sampled
        self.children: dict[int, list[int]] = defaultdict(list)
        for child, parent in enumerate(shape, start=1):
            self.children[parent].append(child)
        self.law: Law = defaultdict(Fraction)
        self._visit(0, (), Fraction(1))

    def _visit(self, node: int, path: Path, mass: Fraction) -> None:
        q = self.draft(path)
        self._try(self.children[node], path, mass, self.target(path), q if self.sampled else q * 0, frozenset())

    def _try(self, left: list[int], path: Path, mass: Fraction, p: Row, q: Row, tried: frozenset[int]) -> None:
        if mass == 0:
            return
        if not left:
            for token, chance in enumerate(p[0]):
                self.law[(*path, token)] += mass * chance
            return
        for token, chance in self._draws(q, tried):
            x = _one_hot(token, self.target.vocab)
            source = drawn_from(q, x)
            kept = acceptance_probability(p, source, x)[0]
            self._visit_if(left[0], (*path, token), mass * chance * kept)
            rejected = mass * chance * (1 - kept)
            self._try(left[1:], path, rejected, residual(p, source), without(q, x), tried | {token})

    def _visit_if(self, node: int, path: Path, mass: Fraction) -> None:
        if mass:
            self._visit(node, path, mass)

    def _draws(self, q: Row, tried: frozenset[int]) -> Iterator[tuple[int, Fraction]]:
        if q.sum() > 0:
            yield from ((token, chance) for token, chance in enumerate(q[0]) if chance)
        else:  # a fixed choice: whatever was not tried yet, the last first
            yield max(set(range(self.target.vocab)) - tried), Fraction(1)


def _block_law(target: Model, draft: Model, length: int) -> Law:
    """The law of what one round emits under block verification of a chain of `length` drafts."""
    law: Law = defaultdict(Fraction)
    for path in itertools.product(range(target.vocab), repeat=length):
        mass = draft.probability(path)
        if mass == 0:
            continue
        weights, keeps = [_row([Fraction(1)])[0]], [Fraction(1)]
        for depth in range(1, length + 1):
            x = _one_hot(path[depth - 1], target.vocab)
            weight = acceptance_probability(target(path[: depth - 1]), draft(path[: depth - 1]), x, weights[-1])
            weights.append(weight)
            here = (target(path[:depth]), draft(path[:depth]))
            keeps.append(weight[0] if depth == length else stopping_probability(weight, *here)[0])
        beyond = mass
        for depth in range(length, -1, -1):
            stops, kept = beyond * keeps[depth], path[:depth]
            p = target(kept)
            own = p if depth == length else residual(p * weights[depth][0], draft(kept))
            for token, chance in enumerate(own[0]):
                law[(*kept, token)] += stops * chance
            beyond -= stops
    return law


def _assert_exact(law: Law, target: Model, length: int) -> None:
    """Continue every outcome with the target up to `length` tokens: it must be the target's own law of that many tokens."""
    total: Law = defaultdict(Fraction)
    for path, mass in law.items():
        for rest in itertools.product(range(target.vocab), repeat=length - len(path)):
            total[path + rest] += mass * target.probability(rest, after=path)
    for path in itertools.product(range(target.vocab), repeat=length):
        assert total[path] == target.probability(path)


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_recursive_rejection_is_exact(shape: tuple[int, ...], sampled: bool) -> None:
    depths = [0]
    for parent in shape:
        depths.append(depths[parent] + 1)
    for seed, vocab in ((1, 3), (2, 3), (3, 4 if len(shape) <= 3 else 3)):
        target = Model(vocab, seed)
        law = RecursiveRejection(target, Model(vocab, seed + 100), shape, sampled).law
        _assert_exact(law, target, max(depths) + 1)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_block_verification_is_exact(length: int) -> None:
    for seed in range(6):
        target = Model(3, seed)
        _assert_exact(_block_law(target, Model(3, seed + 100), length), target, length + 1)
        _assert_exact(_block_law(target, target, length), target, length + 1)  # a perfect drafter: 0 / 0 on the way


def test_block_verification_keeps_more_than_recursive_rejection() -> None:
    gained = 0
    for seed in range(6):
        target, draft = Model(3, seed), Model(3, seed + 100)
        block = sum(mass * len(path) for path, mass in _block_law(target, draft, 3).items())
        recursive = sum(mass * len(path) for path, mass in RecursiveRejection(target, draft, (0, 1, 2), True).law.items())
        assert block >= recursive
        gained += block > recursive
    assert gained


@pytest.mark.parametrize("broken", ["acceptance_probability", "residual", "drawn_from"])
def test_the_proof_can_fail(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: dict[str, Any] = {
        "acceptance_probability": lambda p, q, x, weight=1: _row([Fraction(1)])[0],  # keeps whatever comes
        "residual": lambda p, q: p,  # forgets what was rejected
        "drawn_from": lambda q, x: _row([Fraction(1, 3)] * 3),  # believes a distribution that nothing was drawn from
    }
    monkeypatch.setitem(globals(), broken, wrong[broken])
    target = Model(3, 1)
    law = RecursiveRejection(target, Model(3, 101), (0, 0), sampled=True).law
    with pytest.raises(AssertionError):
        _assert_exact(law, target, 2)


def _all_trees(num_nodes: int, vocab: int) -> Iterator[DraftTree]:
    """Every tree of `num_nodes` nodes in every order of rows, with every labelling that keeps siblings apart."""
    for parents in itertools.product(*(range(i) for i in range(1, num_nodes))):
        for tokens in itertools.product(range(vocab), repeat=num_nodes - 1):
            if len(set(zip(parents, tokens, strict=True))) == num_nodes - 1:
                yield DraftTree(np.array([0, *tokens]), np.array([0, *parents]))


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 4])
def test_shared_noise_emits_the_targets_own_tokens_whatever_the_tree(num_nodes: int) -> None:
    vocab, cases = 2 if num_nodes == 4 else 3, []
    for tree in _all_trees(num_nodes, vocab):
        cases += [(tree, own) for own in itertools.product(range(vocab), repeat=num_nodes)]
    count, size = len(cases), num_nodes * len(cases)
    sampling = sampling_of(SamplingParams(), torch.zeros(count, dtype=torch.int64), vocab)
    trees = stacked([tree for tree, _ in cases])
    given = verification(*trees, torch.full((count,), 5), torch.zeros(size, vocab), sampling)
    own_T = torch.tensor([own for _, own in cases]).flatten()
    layout = given.layout
    accepted = walk_trees(given.rows, layout.nodes_M, layout.firsts_M, own_T, torch.zeros(size), None)
    emitted, paths = accepted.emitted_MD.tolist(), (accepted.rows_MD - layout.firsts_M[:, None]).tolist()
    for (tree, own), tokens, path, kept in zip(cases, emitted, paths, accepted.num_M.tolist(), strict=True):
        # decode plainly for as long as the tree knows what the target says after the tokens so far
        node, expected, nodes = 0, [own[0]], [0]
        edges = {(int(tree.parents[i]), int(tree.tokens[i])): i for i in range(1, num_nodes)}
        while (node, expected[-1]) in edges:
            node = edges[node, expected[-1]]
            nodes.append(node)
            expected.append(own[node])
        assert kept == len(expected) - 1
        assert tokens == expected + [-1] * (len(tokens) - len(expected))
        assert path[: len(nodes)] == nodes
