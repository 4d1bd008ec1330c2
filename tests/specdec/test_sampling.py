"""Sampling: equal to a slow, plain reading of its rules, whatever stands beside a row."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from specdec.draft.tree import DraftTree
from specdec.request import SamplingParams, resolve_seed
from specdec.round.batch import TreeRows, tree_rows
from specdec.round.sample.noise import gumbel
from specdec.round.sample.sampling import (
    SamplingBatch,
    SamplingEntry,
    choose,
    finite_rows,
    logprobs,
    probabilities,
    shared_noise_topk,
)

VOCAB = 3001  # no multiple of a block
HISTORY = (5, 9, 9, 2, 7, 7, 7, 11)
PROMPT = 4
TREE = DraftTree(
    np.array([11, 7, 3, 7, 3, 8]),
    np.array([0, 0, 0, 1, 1, 4]),
    np.zeros(6),
    np.array([0, 0, 1, 0, 1, 0]),
    np.zeros(6, np.int64),
)
PARAMS = {
    "greedy": SamplingParams(temperature=0.0),
    "free": SamplingParams(seed=3),
    "cool": SamplingParams(temperature=0.7, seed=4),
    "hot": SamplingParams(temperature=5.0, seed=5),
    "top_k": SamplingParams(top_k=40, seed=6),
    "top_p": SamplingParams(top_p=0.9, seed=7),
    "wide top_p": SamplingParams(temperature=3.0, top_p=0.97, seed=8),
    "min_p": SamplingParams(min_p=0.05, seed=9),
    "filters": SamplingParams(temperature=1.3, top_k=300, top_p=0.8, min_p=0.001, seed=10),
    "penalties": SamplingParams(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=-0.7, seed=11),
    "edits": SamplingParams(logit_bias={3: 5.0, 7: -100.0, 10**6: 1.0}, min_tokens=6, seed=12),
    "all": SamplingParams(temperature=0.8, top_p=0.95, frequency_penalty=1.0, logit_bias={8: 4.0}, min_tokens=5, seed=13),
}
STOPS = frozenset({2, 3})


def _entry(params: SamplingParams) -> SamplingEntry:
    return SamplingEntry(params, params.seed, HISTORY, PROMPT, STOPS)


def _rows(trees: Sequence[DraftTree]) -> TreeRows:
    starts = np.cumsum([0] + [len(tree) for tree in trees[:-1]])
    return tree_rows(
        [(tree, int(start), len(HISTORY) - 1) for tree, start in zip(trees, starts, strict=True)], torch.device("cpu")
    )


def _logits(num_rows: int, seed: int, ties: bool = False) -> Tensor:
    logits = torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2.5
    return logits.mul(2).round().div(2) if ties else logits


def _plain_scores(logits_V: Tensor, params: SamplingParams, path: Sequence[int]) -> Tensor:
    """One row by the rules, token by token: its scores, -inf where a token cannot be drawn. `path`: drafts above the row."""
    scores = logits_V.clone()
    for token, bias in params.logit_bias.items():
        if token < VOCAB:
            scores[token] += bias
    output = [*HISTORY[PROMPT:], *path]
    if len(output) < params.min_tokens:
        scores[list(STOPS)] = -torch.inf
    for token in {*HISTORY, *path}:
        damped = scores[token] / params.repetition_penalty if scores[token] > 0 else scores[token] * params.repetition_penalty
        count = output.count(token)
        penalty = torch.tensor(params.frequency_penalty) * count + params.presence_penalty * (count > 0)
        scores[token] = damped - penalty
    if params.greedy:
        return scores
    scores /= torch.tensor(params.temperature)
    order = sorted(range(VOCAB), key=lambda token: (-float(scores[token]), token))
    if params.top_k:
        order = order[: params.top_k]
    masses = [math.exp(float(scores[token]) - float(scores[order[0]])) for token in order]
    kept, above = [], 0.0
    for token, mass in zip(order, masses, strict=True):
        if (params.top_p == 1.0 or above < params.top_p * sum(masses)) and mass >= params.min_p:
            kept.append(token)
        above += mass
    left = torch.full_like(scores, -torch.inf)
    left[kept] = scores[kept]
    return left


def _plain_choice(scores_V: Tensor, params: SamplingParams, position: int) -> int:
    if not params.greedy:
        noise = gumbel(torch.tensor([params.seed]), torch.tensor([position]), torch.arange(VOCAB)[None])[0]
        scores_V = scores_V + noise
    return int((scores_V == scores_V.max()).nonzero()[0])


def _path(tree: DraftTree, node: int) -> list[int]:
    return [int(tree.tokens[i]) for i in tree.ancestors()[node][1 : tree.depths()[node] + 1]]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", list(PARAMS))
def test_chooses_what_a_full_evaluation_would(name: str, ties: bool) -> None:
    params, logits = PARAMS[name], _logits(len(TREE), seed=1, ties=ties)
    rows = _rows([TREE])
    batch = SamplingBatch.build([_entry(params)], VOCAB, "cpu")
    chosen, p = choose(rows, logits, batch), probabilities(rows, logits, batch)
    for node in range(len(TREE)):
        scores = _plain_scores(logits[node], params, _path(TREE, node))
        assert int(chosen[node]) == _plain_choice(scores, params, len(HISTORY) + int(TREE.depths()[node]))
        if not params.greedy:
            assert torch.allclose(p[node], scores.double().softmax(-1), rtol=1e-6, atol=0)
            assert torch.equal(p[node] > 0, scores > -torch.inf)


def test_a_row_does_not_feel_its_neighbours() -> None:
    trees = [TREE] * len(PARAMS)
    logits = _logits(len(TREE) * len(PARAMS), seed=2)
    batch = SamplingBatch.build([_entry(params) for params in PARAMS.values()], VOCAB, "cpu")
    together = choose(_rows(trees), logits, batch).view(len(PARAMS), -1)
    p_together = probabilities(_rows(trees), logits, batch).view(len(PARAMS), len(TREE), -1)
    for index, params in enumerate(PARAMS.values()):
        mine = logits[index * len(TREE) : (index + 1) * len(TREE)].clone()
        alone = SamplingBatch.build([_entry(params)], VOCAB, "cpu")
        assert torch.equal(choose(_rows([TREE]), mine, alone), together[index])
        assert torch.equal(probabilities(_rows([TREE]), mine, alone), p_together[index])
        root = _rows([DraftTree.root(HISTORY[-1])])
        assert torch.equal(choose(root, mine[:1].clone(), alone), together[index, :1])


@pytest.mark.parametrize("scale", [0.05, 1.0, 3.0])  # from flat to peaked: the fast paths settle early, late and not at all
def test_large_vocabularies_agree_with_the_full_evaluation(scale: float) -> None:
    vocab, num = 49152, 6
    logits = torch.randn(num, vocab, generator=torch.Generator().manual_seed(3)) * scale
    rows = tree_rows([(DraftTree.root(1), i, 10 * i) for i in range(num)], torch.device("cpu"))
    for params in (SamplingParams(), SamplingParams(top_p=0.9), SamplingParams(temperature=0.5, top_k=5000)):
        batch = SamplingBatch.build([SamplingEntry(params, i, [1], 1, frozenset()) for i in range(num)], vocab, "cpu")
        noise = gumbel(torch.arange(num), rows.positions_T + 1, torch.arange(vocab).expand(num, -1))
        scores = (logits / params.temperature).masked_fill(probabilities(rows, logits, batch) == 0, -torch.inf)
        assert torch.equal(choose(rows, logits, batch), (scores + noise).argmax(-1))


def test_ties_go_to_the_lower_token() -> None:
    logits = torch.zeros(len(TREE), VOCAB)
    greedy = SamplingBatch.build([_entry(SamplingParams(temperature=0.0))], VOCAB, "cpu")
    assert choose(_rows([TREE]), logits, greedy).tolist() == [0] * len(TREE)
    batch = SamplingBatch.build([_entry(SamplingParams(top_k=3))], VOCAB, "cpu")
    assert (probabilities(_rows([TREE]), logits, batch)[0] > 0).nonzero()[:, 0].tolist() == [0, 1, 2]


def test_a_row_of_nan_spoils_itself_only() -> None:
    logits = _logits(len(TREE), seed=4)
    rows = _rows([TREE])
    for params in PARAMS.values():
        batch = SamplingBatch.build([_entry(params)], VOCAB, "cpu")
        spoilt = logits.clone()
        spoilt[2] = torch.nan
        chosen = choose(rows, spoilt, batch)
        assert finite_rows(spoilt).tolist() == [node != 2 for node in range(len(TREE))]
        assert 0 <= int(chosen[2]) < VOCAB
        others = [0, 1, 3, 4, 5]
        assert torch.equal(chosen[others], choose(rows, logits, batch)[others])


@pytest.mark.parametrize("name", ["greedy", "free", "hot", "top_p", "wide top_p", "filters"])
def test_a_perfect_drafter_guesses_the_targets_token_first(name: str) -> None:
    params, logits = PARAMS[name], _logits(len(TREE), seed=5)
    rows = _rows([TREE])
    chosen = choose(rows, logits, SamplingBatch.build([_entry(params)], VOCAB, "cpu"))
    n = len(TREE)
    tokens, log_q = shared_noise_topk(logits, [params] * n, [params.seed] * n, rows.positions_T + 1, 70)
    assert torch.equal(tokens[:, 0], chosen)
    expected = (logits / (params.temperature or 1.0)).log_softmax(-1).gather(1, tokens)
    assert torch.equal(log_q[log_q.isfinite()], expected[log_q.isfinite()])
    kept = log_q.isfinite()
    assert all(len(set(row[mask].tolist())) == int(mask.sum()) for row, mask in zip(tokens, kept, strict=True))


def test_few_candidates_leave_places_empty() -> None:
    params = SamplingParams(top_k=2, seed=1)
    tokens, log_q = shared_noise_topk(_logits(1, seed=6), [params], [1], torch.tensor([4]), 5)
    assert log_q.isfinite().tolist() == [[True, True, False, False, False]]
    assert tokens.shape == (1, 5)


def test_logprobs_are_the_raw_models() -> None:
    logits = _logits(4, seed=7, ties=True)
    tokens = torch.tensor([1, 2, 3, 4])
    own, top_tokens, top = logprobs(logits, tokens, 5)
    reference = logits.double().log_softmax(-1)
    assert torch.allclose(own.double(), reference[torch.arange(4), tokens], atol=1e-5)
    assert torch.equal(top, logits.log_softmax(-1).gather(1, top_tokens))
    assert torch.equal(top, top.sort(dim=-1, descending=True).values)
    assert logprobs(logits, tokens, 0)[1].shape == (4, 0)


def test_seeds_of_choices() -> None:
    assert resolve_seed(5) == 5
    mixed = [resolve_seed(5, choice) for choice in range(8)]
    assert len(set(mixed)) == 8
    assert mixed == [resolve_seed(5, choice) for choice in range(8)]
    assert resolve_seed(None) != resolve_seed(None)
    assert all(replace(SamplingParams(), seed=seed).seed == seed for seed in [*mixed, resolve_seed(None, 3)])
