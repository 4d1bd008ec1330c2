"""Tokens are those of a slow, plain reading of the sampling rules, whatever stands beside a row."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from specdec.draft.tree import DraftTree
from specdec.kernels.gumbel.reference import gumbel
from specdec.kernels.logit_edits import edit_logits
from specdec.kernels.tree_rows import TreeRows
from specdec.request import SamplingParams
from specdec.round.drafts import SharedNoiseRanking
from specdec.round.rows import Entries
from specdec.round.sample.draw import Nucleus, draw, first_rows, probabilities
from specdec.round.slots import Occupant, Slots
from tests.specdec.conftest import plan_of, rows_of

VOCAB = 3001  # no multiple of a block
HISTORY = (5, 9, 9, 2, 7, 7, 7, 11)
PROMPT = 4
TREE = DraftTree(np.array([11, 7, 3, 7, 3, 8]), np.array([0, 0, 0, 1, 1, 4]))
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
SURE = [Nucleus.EXACT, Nucleus.WIDE]


def slots_of(params: Sequence[SamplingParams]) -> Slots:
    slots = Slots(len(params), 64, 16, 99, VOCAB, torch.device("cpu"))
    for slot, sampling in enumerate(params):
        occupant = Occupant(tokens=HISTORY, num_prompt_tokens=PROMPT, sampling=sampling, stop_ids=STOPS, pages=[0])
        slots.enter(slot, occupant, 1, restricted=False)
    return slots


def rows_for(slots: Slots, tree: DraftTree = TREE) -> TreeRows:
    """Every sequence with the tree."""
    count = slots.num_slots
    plan = plan_of(range(count), [(-1, 0)] * count, [len(tree)] * count, 1)
    return rows_of(slots.texts, plan, [tree] * count, Entries(16, 0, 0))[1]


def logits_of(num_rows: int, seed: int, ties: bool = False) -> Tensor:
    logits = torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2.5
    return logits.mul(2).round().div(2) if ties else logits


def drawn(slots: Slots, logits: Tensor, nucleus: Nucleus, tree: DraftTree = TREE) -> Tensor:
    rows, edited = rows_for(slots, tree), logits.clone()
    edit_logits(edited, rows, slots.sampling.edits)
    return draw(edited, rows, slots.sampling, nucleus).tokens_T


def chances(slots: Slots, logits: Tensor, nucleus: Nucleus) -> Tensor:
    rows, edited = rows_for(slots), logits.clone()
    edit_logits(edited, rows, slots.sampling.edits)
    return probabilities(edited, rows, slots.sampling, nucleus)[0]


def plain_scores(logits_V: Tensor, params: SamplingParams, path: Sequence[int]) -> Tensor:
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
        scores[token] = damped - (torch.tensor(params.frequency_penalty) * count + params.presence_penalty * (count > 0))
    if params.greedy:
        return scores
    scores /= torch.tensor(params.temperature)
    order = sorted(range(VOCAB), key=lambda token: (-float(scores[token]), token))
    if params.top_k:
        order = order[: params.top_k]
    masses = [math.exp(float(scores[token]) - float(scores[order[0]])) for token in order]
    kept, above, total = [], 0.0, sum(masses)
    for token, mass in zip(order, masses, strict=True):
        if (params.top_p == 1.0 or above < params.top_p * total) and mass >= params.min_p:
            kept.append(token)
        above += mass
    left = torch.full_like(scores, -torch.inf)
    left[kept] = scores[kept]
    return left


def plain_choice(scores_V: Tensor, params: SamplingParams, position: int) -> int:
    if not params.greedy:
        noise = gumbel(torch.tensor([params.seed]), torch.tensor([position]), torch.arange(VOCAB)[None])[0]
        scores_V = scores_V + noise
    return int((scores_V == scores_V.max()).nonzero()[0])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", list(PARAMS))
def test_draws_what_a_full_evaluation_would(name: str, ties: bool) -> None:
    params, logits = PARAMS[name], logits_of(len(TREE), seed=1, ties=ties)
    slots = slots_of([params])
    tokens = [drawn(slots, logits, nucleus) for nucleus in SURE]
    p = [chances(slots, logits, nucleus) for nucleus in SURE]
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(p[0], p[1])
    for node in range(len(TREE)):
        path = [int(TREE.tokens[step]) for step in TREE.path(node)[1:]]
        scores = plain_scores(logits[node], params, path)
        assert int(tokens[0][node]) == plain_choice(scores, params, len(HISTORY) + len(path))
        if params.greedy:
            assert int(p[0][node].argmax()) == int(tokens[0][node])
            assert p[0][node].max() == 1.0
        else:
            assert torch.allclose(p[0][node], scores.double().softmax(-1), rtol=1e-6, atol=0)
            assert torch.equal(p[0][node] > 0, scores > -torch.inf)


@pytest.mark.parametrize("name", [name for name, params in PARAMS.items() if params.top_k or params.top_p < 1 or params.min_p])
def test_a_narrow_look_is_right_where_it_is_settled(name: str) -> None:
    slots, logits = slots_of([PARAMS[name]]), logits_of(len(TREE), seed=2)
    rows = rows_for(slots)
    edit_logits(logits, rows, slots.sampling.edits)
    narrow, exact = (draw(logits, rows, slots.sampling, nucleus) for nucleus in (Nucleus.NARROW, Nucleus.EXACT))
    assert narrow.settled_T is not None
    assert bool(narrow.settled_T.all()) == (name != "wide top_p")
    assert torch.equal(narrow.tokens_T[narrow.settled_T], exact.tokens_T[narrow.settled_T])


def test_without_filters_nothing_is_looked_for() -> None:
    slots, logits = slots_of([PARAMS["free"], PARAMS["greedy"]]), logits_of(2 * len(TREE), seed=3)
    for nucleus in (Nucleus.NARROW, *SURE):
        assert torch.equal(drawn(slots, logits, nucleus), drawn(slots, logits, Nucleus.NONE))


@pytest.mark.parametrize("nucleus", SURE)
def test_a_row_does_not_feel_its_neighbours(nucleus: Nucleus) -> None:
    everyone = slots_of(list(PARAMS.values()))
    logits = logits_of(len(TREE) * len(PARAMS), seed=2)
    together = drawn(everyone, logits, nucleus).view(len(PARAMS), -1)
    p_together = chances(everyone, logits, nucleus).view(len(PARAMS), len(TREE), -1)
    for index, params in enumerate(PARAMS.values()):
        mine, alone = logits[index * len(TREE) : (index + 1) * len(TREE)], slots_of([params])
        assert torch.equal(drawn(alone, mine, nucleus), together[index])
        assert torch.equal(chances(alone, mine, nucleus), p_together[index])
        assert torch.equal(drawn(alone, mine[:1], nucleus, DraftTree.root(HISTORY[-1])), together[index, :1])


@pytest.mark.parametrize("nucleus", [*SURE, Nucleus.NARROW])
@pytest.mark.parametrize("spare", [0, 1, 7])
def test_few_rows_with_filters_among_many_are_looked_at_alone(nucleus: Nucleus, spare: int) -> None:
    names = ["free", "top_p", "greedy", "wide top_p", "hot", "greedy", "free"]
    slots, logits = slots_of([PARAMS[name] for name in names]), logits_of(len(names) * len(TREE), seed=6)
    logits[1] = torch.nan  # of a row that may be looked at although it has no filter
    rows, most = rows_for(slots), 2 * len(TREE) + spare
    whole, few = draw(logits, rows, slots.sampling, nucleus), draw(logits, rows, slots.sampling, nucleus, most)
    assert torch.equal(few.tokens_T, whole.tokens_T)
    assert torch.equal(few.tops_T.nan_to_num(), whole.tops_T.nan_to_num())
    assert (few.settled_T is None) == (whole.settled_T is None)
    if few.settled_T is not None and whole.settled_T is not None:
        assert torch.equal(few.settled_T, whole.settled_T)
        assert not bool(few.settled_T.all())
    logits[1] = 0.0
    p_few, p_whole = (probabilities(logits, rows, slots.sampling, nucleus, count)[0] for count in (most, 0))
    assert torch.equal(p_few, p_whole)


def test_wanted_rows_come_first_in_order() -> None:
    wanted = torch.tensor([False, True, False, True, True, False])
    assert first_rows(wanted, 4).tolist() == [1, 3, 4, 0]
    assert first_rows(wanted, 2).tolist() == [1, 3]


def test_ties_go_to_the_lower_token() -> None:
    logits = torch.zeros(len(TREE), VOCAB)
    assert drawn(slots_of([PARAMS["greedy"]]), logits, Nucleus.NONE).tolist() == [0] * len(TREE)
    p = chances(slots_of([SamplingParams(top_k=3)]), logits, Nucleus.EXACT)
    assert (p[0] > 0).nonzero()[:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("nucleus", [*SURE, Nucleus.NARROW])
def test_a_row_of_nan_spoils_itself_only(nucleus: Nucleus) -> None:
    logits = logits_of(len(TREE), seed=4)
    others = [0, 1, 3, 4, 5]
    for params in PARAMS.values():
        slots, spoilt = slots_of([params]), logits.clone()
        spoilt[2] = torch.nan
        rows = rows_for(slots)
        edit_logits(spoilt, rows, slots.sampling.edits)
        found = draw(spoilt, rows, slots.sampling, nucleus)
        assert found.tops_T.isfinite().tolist() == [node != 2 for node in range(len(TREE))]
        assert 0 <= int(found.tokens_T[2]) < VOCAB
        assert torch.equal(found.tokens_T[others], drawn(slots, logits, nucleus)[others])


def test_a_row_that_may_draw_nothing_says_so() -> None:
    slots = slots_of([PARAMS["free"]])
    logits = logits_of(len(TREE), seed=5)
    logits[1] = -torch.inf
    assert draw(logits, rows_for(slots), slots.sampling, Nucleus.NONE).tops_T.isfinite().tolist() == [True, False] + [True] * 4


@pytest.mark.parametrize("name", ["greedy", "free", "hot", "top_p", "wide top_p", "filters"])
def test_a_perfect_drafter_ranks_the_targets_token_first(name: str) -> None:
    params, logits = PARAMS[name], logits_of(1, seed=5)
    slots = slots_of([params])
    target = drawn(slots, logits, Nucleus.EXACT, DraftTree.root(HISTORY[-1]))
    rank = SharedNoiseRanking(torch.tensor([0]), slots.sampling, Nucleus.EXACT)
    tokens, log_q = rank(logits, torch.tensor([len(HISTORY) - 1]), 70)
    assert torch.equal(tokens[:, 0], target)
    expected = (logits / (params.temperature or 1.0)).log_softmax(-1).gather(1, tokens)
    kept = log_q.isfinite()
    assert torch.equal(log_q[kept], expected[kept])
    assert len(set(tokens[kept].tolist())) == int(kept.sum())


def test_few_candidates_leave_places_empty() -> None:
    slots = slots_of([SamplingParams(top_k=2, seed=1)])
    rank = SharedNoiseRanking(torch.tensor([0]), slots.sampling, Nucleus.EXACT)
    tokens, log_q = rank(logits_of(1, seed=6), torch.tensor([3]), 5)
    assert log_q.isfinite().tolist() == [[True, True, False, False, False]]
    assert tokens.shape == (1, 5)
