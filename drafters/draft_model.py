"""Drafts from a smaller model with the same tokenizer and a KV cache of its own.

The tree is a caterpillar: at each depth the model's best token carries on and its next best are leaves. So a depth costs
one row, the drafted K and V lie where they stay when accepted, and taking a draft back only takes a number back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from specdec.arrays import IntArray
from specdec.draft.protocol import DraftContext, Observation, Proposal
from specdec.draft.tree import DraftTree
from specdec.drafters.continuations import TreeBuilder
from specdec.request import SamplingParams
from specdec.round.batch import RowSpec
from specdec.round.sample.noise import Domain, gumbel
from specdec.round.sample.sampling import shared_noise_topk

DEPTH = 5
WIDTH = 2
CHUNK_TOKENS = 256  # context read in one call, all requests together; until it is read there is no draft
_NO_SLOTS = np.zeros(0, np.int64)


class TreeModel(Protocol):
    """A model with its own KV pages, one run of pages per request."""

    vocab_size: int
    max_model_len: int  # positions of one sequence

    def grow(self, request_id: str, num_tokens: int) -> IntArray | None:
        """Page ids, int64, that cover `num_tokens` positions of the request; None where no pages are left."""
        ...

    def free(self, request_id: str) -> None:
        """Give the request's pages back; unknown requests are ignored."""
        ...

    def forward(self, specs: list[RowSpec]) -> Tensor:
        """float32 [tree rows, vocab]: raw logits of all tree rows in the order of `specs`; no rows where none has a tree."""
        ...


@dataclass(slots=True)
class _Cached:
    """The tokens whose K and V lie in the cache, from position 0, drafted ones included; the first `num_sure` were emitted."""

    tokens: list[int] = field(default_factory=list)
    num_sure: int = 0

    def keep_common(self, tokens: Sequence[int]) -> None:
        """Forget what differs from `tokens`, and its last token, whose row is computed anew."""
        most = min(len(self.tokens), len(tokens) - 1)
        place = min(self.num_sure, most)
        while place < most and self.tokens[place] == tokens[place]:
            place += 1
        del self.tokens[place:]
        self.num_sure = place


@dataclass(slots=True)
class _Draft:
    """One sequence in the course of a call. candidates[d]: (token, log q) of depth d + 1, best first; q[d]: their law."""

    context: DraftContext
    cached: _Cached
    pages: IntArray
    depth: int
    candidates: list[list[tuple[int, float]]] = field(default_factory=list)
    q: list[Tensor] = field(default_factory=list)

    def spec(self) -> RowSpec:
        """The next row: the root with the context that is still to be read, then the best token of each depth."""
        tip = self.candidates[-1][0][0] if self.candidates else self.context.tokens[-1]
        missing = self.context.tokens[len(self.cached.tokens) : -1] if not self.candidates else ()
        spec = _row_spec(missing, DraftTree.root(tip), len(self.cached.tokens), self.pages)
        self.cached.tokens.extend([*missing, tip])
        return spec


class DraftModelDrafter:
    """A draft model behind the Drafter protocol.

    Args:
        source: index of the drafter.
        model: the draft model and its pages.
        samples: for rejection rules: draw the candidates from the model's distribution with noise of its own and give q.
            Otherwise they are ranked with the noise that the target will use.
        depth: of the tree. width: candidates of each depth.
    """

    name = "draft-model"
    hidden_layers: tuple[int, ...] = ()

    def __init__(self, source: int, model: TreeModel, samples: bool, depth: int = DEPTH, width: int = WIDTH) -> None:
        self.samples = samples
        self._source = source
        self._model = model
        self._depth = depth
        self._width = width
        self._cached: dict[str, _Cached] = {}

    def start(self, request_id: str, prompt_ids: Sequence[int], prediction_ids: Sequence[int]) -> None:
        self._cached[request_id] = _Cached()

    def propose(self, contexts: Sequence[DraftContext]) -> list[Proposal | None]:
        drafts = self._prepare(contexts)
        active = [draft for draft in drafts.values() if draft.depth > 0]
        while active:
            logits = self._model.forward([draft.spec() for draft in active])
            self._rank(active, logits)
            active = [draft for draft in active if len(draft.candidates) < draft.depth]
        return [self._proposal(drafts[index]) if index in drafts else None for index in range(len(contexts))]

    def _prepare(self, contexts: Sequence[DraftContext]) -> dict[int, _Draft]:
        """The sequences that can be drafted now, by index. Long contexts are read a chunk at a time."""
        drafts: dict[int, _Draft] = {}
        chunks: list[RowSpec] = []
        budget = CHUNK_TOKENS
        for index, context in enumerate(contexts):
            cached, last = self._cached[context.request_id], len(context.tokens) - 1
            cached.keep_common(context.tokens)
            room = self._model.max_model_len - last
            depth = min(self._depth, context.max_depth, context.max_nodes - 1, room)
            pages = self._model.grow(context.request_id, last + depth) if depth > 0 else None
            if pages is None:
                continue
            start = len(cached.tokens)
            missing = context.tokens[start : min(last, start + budget)]
            budget -= len(missing)
            if start + len(missing) == last:
                drafts[index] = _Draft(context, cached, pages, depth)
            elif missing:
                chunks.append(_row_spec(missing, None, start, pages))
                cached.tokens.extend(missing)
        if chunks:
            self._model.forward(chunks)
        return drafts

    def _rank(self, drafts: list[_Draft], logits: Tensor) -> None:
        """Choose each draft's candidates behind the row just computed."""
        sampling = [draft.context.sampling for draft in drafts]
        positions = torch.tensor([len(draft.cached.tokens) for draft in drafts], device=logits.device)  # of the tokens drawn
        if self.samples:
            tokens, log_q, q = _sampled_topk(logits, sampling, positions, self._width)
            for draft, row in zip(drafts, q, strict=True):
                draft.q.append(row)
        else:
            seeds = [params.seed for params in sampling]
            tokens, log_q = shared_noise_topk(logits, sampling, seeds, positions, self._width)
        for draft, row_tokens, row_log_q in zip(drafts, tokens.tolist(), log_q.tolist(), strict=True):
            pairs = zip(row_tokens, row_log_q, strict=True)
            draft.candidates.append([pair for pair in pairs if isfinite(pair[1])])

    def _proposal(self, draft: _Draft) -> Proposal:
        """The spine first, then as many leaves as fit, rank by rank from the root down: a shape that no draw decides."""
        builder = TreeBuilder(draft.context.tokens[-1])
        for depth, candidates in enumerate(draft.candidates):
            builder.add(candidates[0][0], depth, min(candidates[0][1], 0.0), 0)
        leaves = [
            (rank, depth) for depth, found in enumerate(draft.candidates) for rank in range(1, len(found))
        ]  # the spine's node at depth d is node d
        for rank, depth in sorted(leaves)[: draft.context.max_nodes - 1 - draft.depth]:
            token, log_q = draft.candidates[depth][rank]
            builder.add(token, depth, min(log_q, 0.0), rank)
        tree = builder.build(self._source)
        assert tree is not None, "a draft has a depth of 1 or more"
        if not draft.q:
            return Proposal(tree=tree)
        q = draft.q[0].new_zeros(len(tree), len(draft.q[0]))
        q[: draft.depth] = torch.stack(draft.q)
        return Proposal(tree=tree, q=q)

    def observe(self, observations: Sequence[Observation]) -> None:
        """Nothing to learn here: `propose` reads the context."""

    def release(self, request_id: str, finished: bool) -> None:
        self._cached.pop(request_id, None)
        self._model.free(request_id)


def _sampled_topk(
    logits_NV: Tensor, sampling: Sequence[SamplingParams], positions_N: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw k tokens per row without replacement from softmax(logits / temperature) with noise that the target does not use.

    Returns:
        (tokens int64 [N, k] in the order drawn, log q float32 [N, k], -inf where nothing is left to draw, q float32 [N, V]).
    """
    temperatures = torch.tensor([params.temperature for params in sampling], device=logits_NV.device)[:, None]
    greedy = torch.full_like(logits_NV, -torch.inf).scatter_(-1, logits_NV.argmax(-1, keepdim=True), 0.0)
    log_q_NV = torch.where(temperatures > 0, torch.log_softmax(logits_NV / temperatures.clamp(min=1e-6), -1), greedy)
    seeds = torch.tensor([params.seed for params in sampling], device=logits_NV.device)
    everything = torch.arange(logits_NV.shape[1], device=logits_NV.device).expand_as(logits_NV)
    tokens = (log_q_NV + gumbel(seeds, positions_N, everything, Domain.DRAFT)).topk(k, -1).indices
    return tokens, log_q_NV.gather(-1, tokens), log_q_NV.exp()


def _row_spec(chunk: Sequence[int], tree: DraftTree | None, num_cached: int, pages: IntArray) -> RowSpec:
    return RowSpec(chunk=np.array(chunk, np.int64), tree=tree, num_cached=num_cached, pages=pages, scratch=_NO_SLOTS)
