"""A probe: given tokens through a model, in rows of any kind, with no sequence about. For the self-test, for costs, for
benches."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specdec.arrays import IntArray
from specdec.cache.rows import Rows
from specdec.draft.tree import DraftTree
from specdec.kernels.tree_rows import Texts, TreeRows
from specdec.kernels.tree_select import OFFERED, Trees
from specdec.round.forward import Forward
from specdec.round.graphs import Recording
from specdec.round.plan import PlanTables, RoundPlan, RoundShape, flatten
from specdec.round.rows import Entries, lay_out

_NO_TOKENS = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Part:
    """What one text brings to a round: tokens at the positions from `first` on, then a tree whose root follows. Each may be
    missing."""

    first: int
    chunk: IntArray
    tree: DraftTree | None

    @property
    def base(self) -> int:
        """Position behind the chunk."""
        return self.first + len(self.chunk)

    @property
    def num_nodes(self) -> int:
        return len(self.tree) if self.tree is not None else 0


@dataclass(frozen=True, slots=True)
class ProbeRound:
    """A round's inputs on the device. They are its own, so that several may be recorded and replayed in turns."""

    texts: Texts
    tables: PlanTables
    shape: RoundShape
    trees: Trees | None
    entries: Entries
    turns_1: Tensor

    @staticmethod
    def of(
        parts: Sequence[Part], entries: Entries, num_pages: int, device: torch.device, num_chunk: int | None = None
    ) -> "ProbeRound":
        """Each part is a text, and its place the text's slot.

        Args:
            parts: what the texts bring.
            entries: where rows write.
            num_pages: that the texts share evenly, in order.
            device: where the round runs.
            num_chunk: prompt rows, where it is not as many as there are; those beyond repeat the last one, as in a bucket.
        """
        plan = _plan(parts, num_pages // len(parts), entries.page_size)
        shape = _shape(plan, plan.num_chunk if num_chunk is None else num_chunk)
        flat = torch.from_numpy(flatten(plan, shape.members, shape.chunk, shape.trees, len(parts))).to(device)
        return ProbeRound(
            texts=_texts(parts, plan.pages, num_pages // len(parts), device),
            tables=PlanTables(flat, shape.members, shape.chunk, shape.trees),
            shape=shape,
            trees=_trees([part.tree for part in parts], shape.nodes, device) if shape.trees else None,
            entries=entries,
            turns_1=torch.zeros(1, dtype=torch.int64, device=device),
        )

    def lay_out(self) -> tuple[Rows, TreeRows]:
        """See `specdec.round.rows.lay_out`."""
        return lay_out(self.texts, self.tables, self.shape, self.trees, self.turns_1, self.entries)


class Probe:
    """Runs rounds of texts that lie in the first pages; nothing else may run meanwhile.

    Args:
        forward: the model and its caches.
        entries: where rows write.
        num_pages: that the texts may take.
    """

    def __init__(self, forward: Forward, entries: Entries, num_pages: int) -> None:
        self.forward = forward
        self._entries = entries
        self._num_pages = num_pages

    @torch.inference_mode()
    def logits(self, chunk: IntArray, tree: DraftTree | None, first: int) -> Tensor:
        """float32 [nodes, V]: tokens of one text at the positions from `first` on, then a tree whose root follows; no rows
        without a tree."""
        return self.step([Part(first, chunk, tree)])()

    @torch.inference_mode()
    def step(self, parts: Sequence[Part]) -> Callable[[], Tensor]:
        """The same of any texts, as something that can be run, and recorded, again and again."""
        round_ = ProbeRound.of(parts, self._entries, self._num_pages, self.forward.model.device)
        return lambda: self._run(round_)

    @torch.inference_mode()
    def _run(self, round_: ProbeRound) -> Tensor:
        rows, _ = round_.lay_out()
        caches, shape = self.forward.caches, round_.shape
        caches.begin(rows)
        hidden_RE, _ = self.forward(rows)
        logits_TV = self.forward.logits(hidden_RE[shape.chunk :]) if shape.trees else hidden_RE.new_empty(0)
        caches.finish(rows)
        return logits_TV

    def forget(self, first: int = 0) -> None:
        """The first text is anew known up to `first`: what the caches keep of it by slot is void."""
        self.forward.caches.enter(0, first, None)


@dataclass(frozen=True, slots=True)
class RoundCost:
    """A chain of `rows` rows, its context `context` tokens: median seconds that it took."""

    rows: int
    context: int
    seconds: float


def measure_costs(probe: Probe, wanted: Sequence[tuple[int, int]], repeats: int = 5) -> Iterator[RoundCost]:
    """Time verification by (rows, context), on a GPU as a graph.

    The history's values do not matter for the time; whatever lies in the pages is read. The rows' tokens do: a mixture of
    experts is the dearer the more experts they visit, so they are drawn at random, anew for each repeat.
    """
    draws = np.random.default_rng(1)
    model = probe.forward.model
    for rows, context in wanted:

        def step(rows: int = rows, context: int = context) -> Callable[[], Tensor]:
            probe.forget(context)
            tokens = draws.integers(0, model.config.vocab_size, rows)
            return probe.step([Part(context, _NO_TOKENS, DraftTree.chain(int(tokens[0]), tokens[1:]))])

        if model.device.type == "cuda":
            taken = [Recording(step()).seconds() for _ in range(2)]
        else:
            taken = [_seconds(step()) for _ in range(repeats)]
        yield RoundCost(rows, context, statistics.median(taken))


def _seconds(run: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _plan(parts: Sequence[Part], most_pages: int, page_size: int) -> RoundPlan:
    ends = max(part.base + part.num_nodes for part in parts)
    return RoundPlan(
        slots=np.arange(len(parts)),
        firsts=np.array([part.first for part in parts]),
        chunks=np.array([len(part.chunk) for part in parts]),
        nodes=np.array([part.num_nodes for part in parts]),
        pages=min(-(-ends // page_size), most_pages),
        odds=np.ones(len(parts)),
    )


def _shape(plan: RoundPlan, num_chunk: int) -> RoundShape:
    return RoundShape(
        members=len(plan),
        chunk=num_chunk,
        trees=plan.num_nodes,
        nodes=max(int(plan.nodes.max()), 1),
        pages=plan.pages,
        chunk_members=int(np.count_nonzero(plan.chunks)),
        tree_members=plan.num_trees,
    )


def _texts(parts: Sequence[Part], pages: int, apart: int, device: torch.device) -> Texts:
    """Texts that know no tokens but those of their parts. apart: pages from one text's first to the next one's."""
    bases = [part.base for part in parts]
    tokens = np.zeros((len(parts), max(bases) + 1), np.int32)
    for row, part in zip(tokens, parts, strict=True):
        row[part.first : part.base] = part.chunk
        if part.tree is not None:
            row[part.base] = part.tree.tokens[0]
    own = np.arange(len(parts))[:, None] * apart + np.arange(pages)
    return Texts(*(torch.from_numpy(values).to(device) for values in (tokens, np.array(bases) + 1, own)))


def _trees(trees: Sequence[DraftTree | None], num_nodes: int, device: torch.device) -> Trees:
    tokens = np.full((len(trees), num_nodes), -1, np.int64)
    parents = np.zeros_like(tokens)
    counts = np.array([len(tree) - 1 if tree is not None else 0 for tree in trees])
    for index, tree in enumerate(trees):
        if tree is not None:
            tokens[index, : len(tree)], parents[index, : len(tree)] = tree.tokens, tree.parents
    tokens_MN, parents_MN, counts_M = (torch.from_numpy(values).to(device) for values in (tokens, parents, counts))
    none_MN = torch.full_like(tokens_MN, -1)
    survivals_MO = torch.zeros(len(trees), OFFERED, device=device)
    return Trees(tokens_MN, parents_MN, none_MN, counts_M, none_MN[:, 0].contiguous(), survivals_MO)
