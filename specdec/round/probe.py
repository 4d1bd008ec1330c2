"""A probe: given tokens through a model, in rows of any kind, with no sequence about. For the self-test, for costs, for
tuning."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specdec.arrays import IntArray
from specdec.draft.tree import DraftTree
from specdec.kernels.tree_rows import Texts
from specdec.kernels.tree_select import MAX_NODES, Trees
from specdec.round.forward import Forward
from specdec.round.graphs import recording
from specdec.round.plan import PlanTables, RoundPlan, RoundShape, flatten
from specdec.round.rows import Entries, lay_out
from specdec.round.sample.draw import Nucleus

_NO_TOKENS = np.zeros(0, np.int64)


class Probe:
    """Owns one text, which lies in the first pages; nothing else may run meanwhile.

    Args:
        forward: the model and its caches.
        entries: where rows write.
        num_pages: that the text may take.
    """

    def __init__(self, forward: Forward, entries: Entries, num_pages: int) -> None:
        self.forward = forward
        self._entries = entries
        self._device = forward.model.device
        self._num_pages = num_pages
        room = num_pages * entries.page_size + MAX_NODES
        self._texts = Texts(
            torch.zeros(2, room, dtype=torch.int32, device=self._device),
            torch.ones(2, dtype=torch.int64, device=self._device),
            torch.arange(num_pages, device=self._device).expand(2, -1).contiguous(),
        )
        self._turns_1 = torch.zeros(1, dtype=torch.int64, device=self._device)

    @torch.inference_mode()
    def logits(self, chunk: IntArray, tree: DraftTree | None, first: int) -> Tensor:
        """float32 [nodes, V]: tokens at the positions from `first` on, then a tree whose root follows; no rows without a
        tree."""
        return self.step(chunk, tree, first)()

    @torch.inference_mode()
    def step(self, chunk: IntArray, tree: DraftTree | None, first: int) -> Callable[[], Tensor]:
        """The same as something that can be run, and recorded, again and again."""
        nodes, base = len(tree) if tree is not None else 0, first + len(chunk)
        pages = min(-(-(base + nodes) // self._entries.page_size), self._num_pages)
        shape = _shape(len(chunk), nodes, pages)
        plan = RoundPlan(
            slots=np.zeros(1, np.int64),
            firsts=np.array([first]),
            chunks=np.array([len(chunk)]),
            nodes=np.array([nodes]),
            pages=pages,
            odds=np.ones(1),
        )
        flat = torch.from_numpy(flatten(plan, 1, len(chunk), nodes, 1)).to(self._device)
        tables = PlanTables(flat, 1, len(chunk), nodes)
        tokens = [*chunk.tolist(), int(tree.tokens[0])] if tree is not None else chunk.tolist()
        self._texts.tokens_SL[0, first : first + len(tokens)] = torch.tensor(tokens, dtype=torch.int32).to(self._device)
        self._texts.lengths_S[0] = base + 1
        trees = _trees(tree, self._device) if tree is not None else None
        return lambda: self._run(shape, tables, trees)

    @torch.inference_mode()
    def _run(self, shape: RoundShape, tables: PlanTables, trees: Trees | None) -> Tensor:
        rows, _ = lay_out(self._texts, tables, shape, trees, self._turns_1, self._entries)
        caches = self.forward.caches
        caches.begin(rows)
        hidden_RE, _ = self.forward(rows)
        logits_TV = self.forward.logits(hidden_RE[shape.chunk :]) if shape.trees else hidden_RE.new_empty(0)
        caches.finish(rows)
        return logits_TV

    def forget(self) -> None:
        """The text begins anew: what the caches keep of it by slot is void."""
        self.forward.caches.enter(0, 0, None)


@dataclass(frozen=True, slots=True)
class RoundCost:
    """A chain of `rows` rows, its context `context` tokens: median seconds that it took."""

    rows: int
    context: int
    seconds: float


def measure_costs(probe: Probe, row_counts: Sequence[int], contexts: Sequence[int], repeats: int = 5) -> Iterator[RoundCost]:
    """Time verification, on a GPU as a graph.

    The history's values do not matter for the time; whatever lies in the pages is read. The rows' tokens do: a mixture of
    experts is the dearer the more experts they visit, so they are drawn at random, anew for each repeat.
    """
    draws = np.random.default_rng(1)
    model = probe.forward.model
    for context in contexts:
        for rows in row_counts:

            def step(rows: int = rows, context: int = context) -> Callable[[], Tensor]:
                tokens = draws.integers(0, model.config.vocab_size, rows)
                return probe.step(_NO_TOKENS, DraftTree.chain(int(tokens[0]), tokens[1:]), context)

            if model.device.type == "cuda":
                taken = [_graph_seconds(step()) for _ in range(2)]
            else:
                taken = [_seconds(step()) for _ in range(repeats)]
            probe.forget()
            yield RoundCost(rows, context, statistics.median(taken))


def _seconds(run: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _graph_seconds(run: Callable[[], Tensor]) -> float:
    """Of a recording's replay: the fastest of some behind each other."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with recording(graph, None):
        run()
    spans = []
    for _ in range(6):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        spans.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(float(begin.elapsed_time(end)) for begin, end in spans[2:]) / 1e3


def _shape(chunk: int, nodes: int, pages: int) -> RoundShape:
    return RoundShape(
        members=1,
        chunk=chunk,
        trees=nodes,
        nodes=max(nodes, 1),
        pages=pages,
        chunk_members=int(chunk > 0),
        tree_members=int(nodes > 0),
        drafting=False,
        nucleus=Nucleus.NONE,
        edited=False,
        scored=False,
        restricted=False,
        marked=False,
        lists=0,
        keepers=(),
    )


def _trees(tree: DraftTree, device: torch.device) -> Trees:
    parents = torch.from_numpy(tree.parents).to(device)[None]
    tokens = torch.from_numpy(tree.tokens).to(device)[None]
    counts = torch.tensor([len(tree) - 1], device=device)
    return Trees(
        tokens.contiguous(), parents.contiguous(), torch.full_like(tokens, -1), counts, counts - len(tree), tokens.float()
    )
