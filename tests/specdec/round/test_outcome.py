"""What a round told, read back: every number that was committed, and logprobs of the very rows that were kept."""

import numpy as np
import pytest
import torch
from torch import Tensor

from specdec.kernels.commit import KIND_BITS, SURE, Told, told_width
from specdec.kernels.tree_select import OFFERED
from specdec.kernels.tree_walk import Accepted
from specdec.round.outcome import Outcome
from specdec.round.plan import RoundShape
from specdec.round.scores import ScoreRing, emitted_tokens
from tests.specdec.conftest import plan_of

NODES = 4
PLAN = plan_of([2, 0], [(-1, 0), (3, 5)], [3, 0], 2)


def shape(drafting: bool) -> RoundShape:
    return RoundShape(
        members=4,
        chunk=5,
        trees=3,
        nodes=NODES,
        pages=4,
        chunk_members=1,
        tree_members=1,
        drafting=drafting,
    )


def told(drafting: bool) -> Tensor:
    """Of two members and two of padding: the first kept one of two drafts."""
    table = torch.full((4, told_width(NODES, drafting)), -9)
    columns = [[1, 1, 2, 5, 1], [0, 1, 0, -1, 0]] if drafting else [[0, 0, 0, -1, 0], [0, 1, 0, -1, 0]]
    table[:2, : len(Told)] = torch.tensor(columns)
    table[0, len(Told) : len(Told) + NODES] = torch.tensor([8, 9, -1, -1])
    if drafting:
        nodes = torch.tensor([-1, 5 | 0 << KIND_BITS, 7 | 1 << KIND_BITS, -1])
        table[0, len(Told) + NODES :] = torch.cat((torch.tensor([0, 1, 1, 1]), nodes, torch.zeros(OFFERED, dtype=torch.int64)))
        table[0, len(Told) + 3 * NODES] = SURE // 2
    return table


def test_a_round_with_drafts() -> None:
    outcome = Outcome.read(told(True).numpy(), PLAN, shape(True), 0.25, None)
    assert (outcome.accepted[0], outcome.drafted[0], outcome.offers[0]) == (1, 2, 5)
    assert outcome.sound.tolist() == [True, True]
    assert outcome.offered.tolist() == [True, False]
    assert outcome.emitted[0].tolist() == [8, 9, -1, -1]
    assert outcome.paths[0].tolist() == [0, 1, 1, 1]
    assert outcome.kinds[0].tolist() == [-1, 5, 7, -1]
    assert outcome.parents[0].tolist() == [-1, 0, 1, -1]
    assert outcome.survivals[0].tolist() == [0.5] + [0.0] * (OFFERED - 1)
    assert outcome.seconds == 0.25
    assert len(outcome.accepted) == len(PLAN), "padding is not told"


def test_a_plain_round() -> None:
    outcome = Outcome.read(told(False).numpy(), PLAN, shape(False), None, None)
    assert outcome.sound.tolist() == [False, True]
    assert outcome.emitted[0].tolist() == [8, 9, -1, -1]
    assert outcome.survivals.shape == (2, 0)
    assert outcome.kinds.size == outcome.paths.size == 0


@pytest.mark.parametrize("turn", [0, 1, 5])
def test_logprobs_are_those_of_the_token_that_each_kept_row_emitted(turn: int) -> None:
    """Two trees of four and three rows; the first keeps rows 0 and 2, the second its root; a third member has none."""
    logs = torch.randn(7, 30, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    accepted = Accepted(
        num_M=torch.tensor([1, 0, 0]),
        rows_MD=torch.tensor([[0, 2, 2, 2], [4, 4, 4, 4], [0, 0, 0, 0]]),
        emitted_MD=torch.tensor([[11, 12, -1, -1], [29, -1, -1, -1], [-1, -1, -1, -1]]),
        sound_M=torch.ones(3, dtype=torch.bool),
        chosen_T=torch.zeros(7, dtype=torch.int64),
    )
    ring = ScoreRing(16, 3, 30, torch.device("cpu"))
    tokens, turns = emitted_tokens(accepted, torch.tensor([True, True, False]), 7).clamp(min=0), torch.tensor([turn])
    ring.tell([ring.score(logs[:3], tokens[:3]), ring.score(logs[3:], tokens[3:])], turns)
    ring.tell([ring.score(logs * 2, tokens)], turns + 1)
    scores = ring.read(turn, 7, np.array([0, 4, 7]))
    for row, token in ((0, 11), (2, 12), (4, 29)):
        assert scores.own_T[row] == logs[row, token]
        assert scores.ranks_T[row] == 1 + int((logs[row] > logs[row, token]).sum())
    best = logs.sort(dim=-1, descending=True, stable=True)
    assert scores.tokens_TK.tolist() == best.indices[:, :20].tolist()
    assert scores.logs_TK.tolist() == best.values[:, :20].tolist()
    assert scores.firsts_M.tolist() == [0, 4, 7]
