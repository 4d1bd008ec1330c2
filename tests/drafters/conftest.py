"""Drafters without an engine: texts, the view of a round, what is offered, and the trees that become of it."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from specdec.draft.protocol import Candidates, DraftView, Ranking
from specdec.draft.tree import DraftTree
from specdec.drafters.lookup import drafter
from specdec.kernels.commit import Verified
from specdec.kernels.gumbel import Keys
from specdec.kernels.tree_rows import Texts
from specdec.request import SamplingParams
from specdec.round.drafts import Drafting
from specdec.round.plan import PlanTables, RoundPlan, RoundShape, flatten

CPU = torch.device("cpu")
Gram = tuple[int, ...]
SAMPLINGS = {
    "greedy": SamplingParams(temperature=0.0),
    "cool": SamplingParams(temperature=0.6),
    "hot": SamplingParams(temperature=1.4),
    "filters": SamplingParams(top_k=4, top_p=0.9, min_p=0.02),
}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Tokens of earlier answers that are kept."""
    monkeypatch.setattr(drafter, "CORPUS_TOKENS", 300)
    return 300


def no_rank(logits_MV: Tensor, positions_M: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """For drafters that have no distribution."""
    raise AssertionError("it has no distribution")


def texts_of(texts: Sequence[Sequence[int]], room: int = 64) -> Texts:
    """One page for each."""
    tokens = torch.zeros(len(texts), room, dtype=torch.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    return Texts(tokens, torch.tensor([len(text) for text in texts]), torch.zeros(len(texts), 1, dtype=torch.int64))


def view_of(
    texts: Texts,
    slots: Sequence[int],
    has_tree: Sequence[bool] | None = None,
    *,
    num_nodes: int = 64,
    keys: Keys | None = None,
    rank: Ranking = no_rank,
    page_size: int | None = None,
) -> DraftView:
    """A round of these slots; all have a tree where nothing is said. Without keys everybody is greedy."""
    size, device = len(texts.lengths_S), texts.lengths_S.device
    greedy = Keys(torch.zeros(size, dtype=torch.int64), torch.ones(size), torch.zeros(size, dtype=torch.bool))
    return DraftView(
        slots_M=torch.tensor(slots, device=device),
        texts=texts,
        has_tree_M=torch.tensor(has_tree or [True] * len(slots), device=device),
        starts_M=torch.full((len(slots),), -1, device=device),
        keys=keys or greedy,
        rank=rank,
        num_nodes=num_nodes,
        num_pages=1,
        page_size=page_size or texts.tokens_SL.shape[1],
        spare_entry=0,
    )


def paths_of(candidates: Candidates) -> list[list[Gram]]:
    """Of each member, the tokens from the root to each candidate that there is."""
    found = []
    for tokens, parents in zip(candidates.tokens_MC.tolist(), candidates.parents_MC.tolist(), strict=True):
        paths: list[Gram] = []
        for place, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
            assert token < 0 or parent < place, "parents come first"
            paths.append((*(paths[parent] if 0 <= parent < place else ()), token))
        found.append([path for path in paths if min(path) >= 0])
    return found


def chosen(
    drafting: Drafting,
    view: DraftView,
    nodes: Sequence[int] | int = 64,
    *,
    least: float = 0.0,
    odds: Sequence[float] | None = None,
    allowed_S: Tensor | None = None,
) -> tuple[Verified, Tensor | None]:
    """What a round would verify, and the laws. nodes: of each tree. allowed_S: bits of names, where some may not use all."""
    count = len(view.slots_M)
    budgets = np.full(count, nodes) if isinstance(nodes, int) else np.array(nodes)
    plan = RoundPlan(
        slots=view.slots_M.numpy(),
        firsts=np.full(count, -1),
        chunks=np.zeros(count, np.int64),
        nodes=budgets,
        pages=1,
        odds=np.array(odds or [1.0] * count),
        least=least,
        drafting=True,
    )
    total = int(budgets.sum())
    flat = torch.from_numpy(flatten(plan, count, 0, total, len(view.texts.lengths_S) - 1))
    shape = RoundShape(
        members=count,
        chunk=0,
        trees=total,
        nodes=int(budgets.max()),
        pages=1,
        chunk_members=0,
        tree_members=count,
        drafting=True,
        restricted=allowed_S is not None,
    )
    allowed = allowed_S if allowed_S is not None else torch.full_like(view.texts.lengths_S, -1)
    return drafting.trees(view, PlanTables(flat, count, 0, total), shape, allowed)


def trees_of(verified: Verified, roots: Sequence[int]) -> list[DraftTree]:
    """As they are on the host, and whole."""
    trees = verified.trees
    found = []
    for member, (root, count) in enumerate(zip(roots, trees.counts_M.tolist(), strict=True)):
        tokens, parents = (values[member, 1 : count + 1].tolist() for values in (trees.tokens_MN, trees.parents_MN))
        found.append(DraftTree(np.array([root, *tokens]), np.array([0, *parents])))
        found[-1].check()
    return found


def accepted(tree: DraftTree, future: Sequence[int]) -> int:
    """How many tokens of `future` lie on one path of the tree."""
    children = {(int(p), int(t)): i + 1 for i, (p, t) in enumerate(zip(tree.parents[1:], tree.tokens[1:], strict=True))}
    node = length = 0
    while length < len(future) and (node, future[length]) in children:
        node = children[node, future[length]]
        length += 1
    return length
