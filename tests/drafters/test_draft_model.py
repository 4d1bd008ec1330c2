"""The draft model's bookkeeping, on a model that knows what lies in its cache."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from specdec.arrays import IntArray
from specdec.draft.protocol import DraftContext, Proposal
from specdec.drafters.draft_model import CHUNK_TOKENS, DraftModelDrafter
from specdec.request import SamplingParams
from specdec.round.batch import RowSpec

VOCAB = 11
PAGE_SIZE = 4


def logits_after(history: Sequence[int]) -> Tensor:
    """float32 [VOCAB], a fixed function of the whole history."""
    generator = torch.Generator().manual_seed(hash(tuple(history)) % 2**31)
    return torch.randn(VOCAB, generator=generator) * 2


class FakeModel:
    """Keeps tokens where a model keeps K and V, and answers from what lies there."""

    vocab_size = VOCAB
    max_model_len = 2000

    def __init__(self, num_pages: int = 1000) -> None:
        self.slots: dict[int, int] = {}
        self.free_pages = list(range(num_pages))
        random.Random(0).shuffle(self.free_pages)
        self.pages: dict[str, list[int]] = {}
        self.num_calls = self.num_rows = 0

    def grow(self, request_id: str, num_tokens: int) -> IntArray | None:
        pages = self.pages.setdefault(request_id, [])
        while len(pages) * PAGE_SIZE < num_tokens:
            if not self.free_pages:
                return None
            pages.append(self.free_pages.pop())
        return np.array(pages)

    def free(self, request_id: str) -> None:
        self.free_pages += self.pages.pop(request_id, [])

    def forward(self, specs: list[RowSpec]) -> Tensor:
        rows = []
        self.num_calls += 1
        for spec in specs:
            roots = spec.tree.tokens.tolist() if spec.tree is not None else []
            assert len(roots) <= 1
            tokens = [*spec.chunk.tolist(), *roots]
            self.num_rows += len(tokens)
            for place, token in enumerate(tokens, start=spec.num_cached):
                self.slots[self._slot(spec, place)] = token
            if roots:
                rows.append(logits_after([self.slots[self._slot(spec, p)] for p in range(spec.num_cached + len(tokens))]))
        return torch.stack(rows) if rows else torch.empty(0, VOCAB)

    @staticmethod
    def _slot(spec: RowSpec, place: int) -> int:
        return int(spec.pages[place // PAGE_SIZE]) * PAGE_SIZE + place % PAGE_SIZE


def context(
    request_id: str, tokens: list[int], max_nodes: int = 32, max_depth: int = 31, temperature: float = 0.0
) -> DraftContext:
    return DraftContext(
        request_id=request_id,
        tokens=tokens,
        num_prompt_tokens=1,
        sampling=SamplingParams(temperature=temperature, seed=7),
        max_nodes=max_nodes,
        max_depth=max_depth,
    )


def greedy(tokens: list[int], length: int) -> list[int]:
    tokens = list(tokens)
    for _ in range(length):
        tokens.append(int(logits_after(tokens).argmax()))
    return tokens[-length:]


def check_greedy(proposal: Proposal | None, tokens: list[int], depth: int, width: int) -> None:
    """The spine is the model's greedy continuation, and the leaves are its next best."""
    assert proposal is not None
    tree = proposal.tree
    tree.check()
    assert tree.tokens[1 : depth + 1].tolist() == greedy(tokens, depth)
    assert len(tree) == 1 + depth * width
    for node in range(depth):
        history = [*tokens, *tree.tokens[1 : node + 1].tolist()]
        law = torch.log_softmax(logits_after(history), -1)
        children = np.flatnonzero(tree.parents[1:] == node) + 1
        assert tree.tokens[children].tolist() == law.topk(width).indices.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_emitted_the_cache_holds_the_true_history(seed: int) -> None:
    rng, model = random.Random(seed), FakeModel()
    drafter = DraftModelDrafter(0, model, samples=False, depth=4, width=3)
    texts = {name: [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 30))] for name in "abc"}
    for name, tokens in texts.items():
        drafter.start(name, tokens, ())
    for _ in range(30):
        asked = [name for name in texts if rng.random() < 0.8]
        proposals = drafter.propose([context(name, texts[name]) for name in asked])
        for name, proposal in zip(asked, proposals, strict=True):
            check_greedy(proposal, texts[name], depth=4, width=3)
        for tokens in texts.values():
            tokens += greedy(tokens, 4)[: rng.randrange(5)]
            tokens.append(rng.randrange(VOCAB))


def test_accepted_drafts_are_not_computed_again() -> None:
    model, tokens = FakeModel(), [1, 2, 3]
    drafter = DraftModelDrafter(0, model, samples=False, depth=4)
    drafter.start("a", tokens, ())
    drafter.propose([context("a", tokens)])
    tokens += greedy(tokens, 3)
    before = model.num_rows
    drafter.propose([context("a", tokens)])
    assert model.num_rows - before == 4


def test_a_long_prompt_is_read_in_chunks() -> None:
    rng, model = random.Random(0), FakeModel()
    tokens = [rng.randrange(VOCAB) for _ in range(2 * CHUNK_TOKENS + 10)]
    drafter = DraftModelDrafter(0, model, samples=False, depth=2)
    drafter.start("a", tokens, ())
    assert drafter.propose([context("a", tokens)]) == [None]
    assert model.num_rows == CHUNK_TOKENS
    assert drafter.propose([context("a", tokens)]) == [None]
    check_greedy(drafter.propose([context("a", tokens)])[0], tokens, depth=2, width=2)


@pytest.mark.parametrize(
    ("max_nodes", "max_depth", "nodes", "depth"), [(2, 1, 2, 1), (4, 3, 4, 3), (7, 3, 7, 3), (30, 2, 5, 2)]
)
def test_limits_are_kept(max_nodes: int, max_depth: int, nodes: int, depth: int) -> None:
    drafter = DraftModelDrafter(0, FakeModel(), samples=False)
    drafter.start("a", [1], ())
    proposal = drafter.propose([context("a", [1, 2], max_nodes, max_depth)])[0]
    assert proposal is not None
    assert (len(proposal.tree), int(proposal.tree.depths().max())) == (nodes, depth)


def test_without_pages_there_is_no_draft_and_release_gives_them_back() -> None:
    model = FakeModel(num_pages=3)
    drafter = DraftModelDrafter(0, model, samples=False)
    for name in "ab":
        drafter.start(name, [1] * 5, ())
    first, second = drafter.propose([context("a", [1] * 5), context("b", [1] * 5)])
    assert first is not None
    assert second is None
    for name in "ab":
        drafter.release(name, True)
    assert len(model.free_pages) == 3


def test_sampled_drafts_follow_the_law_they_state() -> None:
    model, counts, tokens = FakeModel(), np.zeros(VOCAB), [1, 2]
    drafter = DraftModelDrafter(0, model, samples=True, depth=1, width=2)
    drafter.start("a", tokens, ())
    law = torch.softmax(logits_after(tokens) / 0.8, -1)
    proposal: Proposal | None = None
    for seed in range(2000):
        sampling = SamplingParams(temperature=0.8, seed=seed)
        asked = DraftContext(request_id="a", tokens=tokens, num_prompt_tokens=1, sampling=sampling, max_nodes=3, max_depth=1)
        proposal = drafter.propose([asked])[0]
        assert proposal is not None
        counts[proposal.tree.tokens[1]] += 1
    assert proposal is not None
    assert proposal.q is not None
    assert torch.allclose(proposal.q[0], law, atol=1e-6)
    assert proposal.q.shape == (3, VOCAB)
    assert np.abs(counts / 2000 - law.numpy()).max() < 0.035


def test_a_greedy_sampled_draft_has_no_second_candidate() -> None:
    drafter = DraftModelDrafter(0, FakeModel(), samples=True, depth=3, width=2)
    drafter.start("a", [1], ())
    proposal = drafter.propose([context("a", [1, 2])])[0]
    assert proposal is not None
    assert proposal.tree.tokens[1:].tolist() == greedy([1, 2], 3)
    assert proposal.q is not None
    assert (proposal.q[:3].amax(-1) == 1).all()
