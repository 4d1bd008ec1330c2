"""A context that does attention the plain way, so that models can be tested without a round; and the rows of a plan."""

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from specdec.cache.rows import Rows
from specdec.draft.tree import DraftTree
from specdec.kernels.tree_rows import Texts, TreeRows
from specdec.kernels.tree_select import Trees
from specdec.models.base import Heads, Model
from specdec.round.plan import PlanTables, RoundPlan, RoundShape, flatten
from specdec.round.rows import Entries, lay_out


class PlainContext:
    """One sequence, dense causal attention in float32 over a cache that grows."""

    def __init__(self, model: Model) -> None:
        self._keys: list[list[Tensor]] = [[] for _ in model.cache_specs]
        self._values: list[list[Tensor]] = [[] for _ in model.cache_specs]
        self.positions_R = torch.empty(0, dtype=torch.int64)
        self.captured: dict[str, Tensor] = {}

    def at(self, first: int, count: int) -> "PlainContext":
        """The next `count` positions, from `first` on."""
        self.positions_R = torch.arange(first, first + count)
        return self

    def cache(self, layer: int) -> Any:
        """What `attend` does, for one layer."""
        return SimpleNamespace(attend=partial(self.attend, layer))

    def attend(self, layer: int, qkv_RC: Tensor, heads: Heads) -> Tensor:
        q_RHD, k_RKD, v_RKD = heads.split(qkv_RC, heads.rope.rotation(self.positions_R))
        self._keys[layer].append(k_RKD.clone())
        self._values[layer].append(v_RKD.clone())
        groups = q_RHD.shape[1] // k_RKD.shape[1]
        k = torch.cat(self._keys[layer]).float().repeat_interleave(groups, 1)
        v = torch.cat(self._values[layer]).float().repeat_interleave(groups, 1)
        scores = torch.einsum("rhd,nhd->hrn", q_RHD.float(), k) * q_RHD.shape[2] ** -0.5
        scores.masked_fill_(torch.arange(len(k)) > self.positions_R[:, None], -torch.inf)
        return torch.einsum("hrn,nhd->rhd", scores.softmax(-1), v).to(q_RHD.dtype).flatten(1)

    def capture(self, name: str, hidden_RE: Tensor) -> None:
        self.captured[name] = hidden_RE


Logits = Callable[[Model, list[int]], Tensor]


@pytest.fixture
def plain_context() -> type[PlainContext]:
    return PlainContext


@pytest.fixture(scope="session")
def all_logits() -> Logits:
    """The logits [R, V] of every position of a sequence, computed in one pass."""

    def run(model: Model, tokens: list[int]) -> Tensor:
        with torch.inference_mode():
            return model.logits(model.forward(torch.tensor(tokens), PlainContext(model).at(0, len(tokens))))

    return run


def plan_of(slots: Sequence[int], chunks: Sequence[tuple[int, int]], nodes: Sequence[int], pages: int) -> RoundPlan:
    """chunks: the first position that each member reads, and how many."""
    return RoundPlan(
        slots=np.array(slots, np.int64),
        firsts=np.array([first for first, _ in chunks], np.int64),
        chunks=np.array([count for _, count in chunks], np.int64),
        nodes=np.array(nodes, np.int64),
        pages=pages,
        odds=np.ones(len(slots)),
    )


def rows_of(
    texts: Texts,
    plan: RoundPlan,
    drafts: Sequence[DraftTree | None],
    entries: Entries,
    bucket: tuple[int, int, int] | None = None,
) -> tuple[Rows, TreeRows]:
    """A plan laid out. drafts: the members' trees. bucket: members, prompt rows and tree rows, where not the plan's own; the
    last text is the spare one."""
    members, chunk, trees = bucket or (len(plan), plan.num_chunk, plan.num_nodes)
    flat = torch.from_numpy(flatten(plan, members, chunk, trees, len(texts.lengths_S) - 1))
    tables = PlanTables(flat, members, chunk, trees)
    nodes = max(1, int(tables.layout.nodes_M.max()))
    shape = RoundShape(
        members=members,
        chunk=chunk,
        trees=trees,
        nodes=nodes,
        pages=plan.pages,
        chunk_members=int(np.count_nonzero(plan.chunks)),
        tree_members=plan.num_trees,
        drafting=True,
    )
    tokens_MN, parents_MN = torch.full((members, nodes), -1), torch.zeros((members, nodes), dtype=torch.int64)
    counts_M = torch.zeros(members, dtype=torch.int64)
    for member, tree in enumerate(drafts):
        if tree is not None:
            tokens_MN[member, : len(tree)] = torch.from_numpy(tree.tokens)
            parents_MN[member, : len(tree)] = torch.from_numpy(tree.parents)
            counts_M[member] = len(tree) - 1
    found = Trees(tokens_MN, parents_MN, tokens_MN, counts_M, counts_M, torch.zeros(members, 1))
    return lay_out(texts, tables, shape, found, torch.zeros(1, dtype=torch.int64), entries)
