"""A drafter as somebody may add it: one attention layer over what the target thought, as EAGLE-3 (arXiv 2503.01840) has it.

The row of a position reads its token's embedding and the target's features of the position before, so that what is kept of a
position depends on nothing behind it, and pages may be shared. Features of all positions lie in pages too: they are a second
layer of its own, whose halves are called keys and values. So the first row behind a known prefix finds those that it needs.

Legend of shape suffixes: M members, R rows, T tree rows, E hidden size, V vocabulary, F features side by side.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from specdec.cache.kinds import Caches
from specdec.cache.rows import Rows
from specdec.draft.confidence import ConfidenceKinds
from specdec.draft.protocol import Drafts, DraftView, ObserveView, Starter
from specdec.draft.steps import next_rows, roots
from specdec.drafters.registry import DrafterResources
from specdec.kernels.linear import PackedWeight, linear, pack, rms_norm
from specdec.kernels.tree_select import Candidates
from specdec.models.base import AttentionSpec, CacheSpec, Heads, Model
from specdec.models.config import RopeConfig
from specdec.models.layers.rope import Rope

DEPTH, WIDTH = 4, 3
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 32


def make(names: tuple[str, ...], resources: DrafterResources) -> "TinyHead":
    """What stands in the registry."""
    assert resources.target is not None, "the head shares the target's embedding and head"
    return TinyHead(names, resources.target)


class TinyHead:
    """See `specdec.draft.protocol.Drafter`. Its weights are random."""

    reads: tuple[str, ...] = ("embedding", "layers.0", "layers.2")

    def __init__(self, names: tuple[str, ...], target: Model) -> None:
        self.names = names
        self._confidence = ConfidenceKinds(DEPTH, np.array([0.6, 0.2, 0.1]), told=True)
        self.kinds = self._confidence.kinds
        self._target = target
        size = target.config.hidden_size
        self.cache_specs: tuple[CacheSpec, ...] = (
            AttentionSpec(num_kv_heads=KV_HEADS, head_dim=HEAD_DIM),
            AttentionSpec(num_kv_heads=1, head_dim=size // 2),
        )
        draw = torch.Generator().manual_seed(11)

        def weight(outputs: int, inputs: int) -> PackedWeight:
            return pack((torch.randn(outputs, inputs, generator=draw) * inputs**-0.5).to(target.device, target.dtype))

        self._features = weight(size, len(self.reads) * size)
        self._inputs = weight(size, 2 * size)
        self._qkv = weight((HEADS + 2 * KV_HEADS) * HEAD_DIM, size)
        self._output = weight(size, HEADS * HEAD_DIM)
        self._ones_E = torch.ones(size, dtype=target.dtype, device=target.device)
        positions = target.config.max_position_embeddings
        rope = Rope(RopeConfig(theta=1e4), HEAD_DIM, positions, target.dtype, target.device)
        self._heads = Heads(rope=rope, num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM)
        parents = [(level - 1) * WIDTH if level else -1 for level in range(DEPTH) for _ in range(WIDTH)]
        self._parents_1C = torch.tensor([parents], device=target.device)

    @property
    def shape(self) -> int:
        """Always the same."""
        return 0

    def bind(self, caches: Caches, first_layer: int, row_multiple: int) -> None:
        """See `Drafter.bind`."""
        self._caches, self._first_layer = caches, first_layer

    def enter(self, slot: int, starter: Starter) -> None:
        """Nothing: what it knows of a text lies in the pages."""

    def leave(self, slot: int, output: Sequence[int]) -> None:
        """Nothing."""

    def draft(self, view: DraftView) -> Drafts:
        """The best token of each depth carries on, the next best are leaves."""
        tip_M, base_M = roots(view)
        tokens, kinds = [], []
        features_ME: Tensor | None = None
        depth = max(min(DEPTH, view.num_nodes - 1), 1)
        for level in range(depth):
            rows = next_rows(view, tip_M, base_M + level)
            features_ME = self._attend(rows, self._before(rows) if features_ME is None else features_ME)
            logits_MV = self._target.logits(rms_norm(features_ME, self._ones_E, 1e-6)).contiguous()
            found_Mk, log_q_Mk = view.rank(logits_MV, base_M + level, WIDTH)
            tokens.append(torch.where(log_q_Mk > -math.inf, found_Mk, -1))
            kinds.append(self._confidence.of(level, log_q_Mk))
            tip_M = found_Mk[:, 0]
        parents_MC = self._parents_1C[:, : depth * WIDTH].expand(len(tip_M), -1)
        return Drafts(Candidates(torch.cat(tokens, 1), parents_MC, torch.cat(kinds, 1)))

    def observe(self, view: ObserveView) -> None:
        """Features and keys and values of all rows."""
        found_RF = torch.cat([view.hidden[name] for name in self.reads], 1)
        features_RE = linear(found_RF, self._features)
        pages = self._caches.view(self._first_layer + 1, view.rows)
        size, half = pages.keys.shape[2], features_RE.shape[1] // 2
        page_R, place_R = view.rows.entries_R // size, view.rows.entries_R % size
        pages.keys[page_R, 0, place_R] = features_RE[:, :half].to(pages.keys.dtype)
        pages.values[page_R, 0, place_R] = features_RE[:, half:].to(pages.values.dtype)
        self._attend(view.rows, self._before(view.rows))

    def _attend(self, rows: Rows, features_RE: Tensor) -> Tensor:
        """[R, E]: the layer, given the features of the position before each row. Keys and values go where the rows say."""
        embedded_RE = self._target.embed(rows.tokens_R[: rows.num_rows])
        stream_RE = linear(torch.cat((embedded_RE, features_RE), 1), self._inputs)
        qkv_RC = linear(rms_norm(stream_RE, self._ones_E, 1e-6), self._qkv)
        out = self._caches.view(self._first_layer, rows).attend(qkv_RC, self._heads)
        return linear(out, self._output, residual_RN=stream_RE)

    def _before(self, rows: Rows) -> Tensor:
        """[R, E]: what is kept of the position before each row, on the row's own path; zeros before the text."""
        pages, tables = self._caches.view(self._first_layer + 1, rows), rows.attention
        size, chunk = tables.page_size, tables.num_chunk
        at_R, table_RP = tables.positions_R - 1, tables.page_table_MP[tables.sequences_R]
        entries_R = table_RP.gather(1, at_R.clamp(min=0)[:, None] // size)[:, 0] * size + at_R % size
        depth_T1 = (at_R - tables.bases_M[tables.sequences_R])[chunk:, None]
        above_T = tables.ancestor_entries_TD.gather(1, depth_T1.clamp(min=0))[:, 0]
        entries_R[chunk:] = torch.where(depth_T1[:, 0] >= 0, above_T, entries_R[chunk:])
        found_RE = torch.cat([part[entries_R // size, 0, entries_R % size] for part in (pages.keys, pages.values)], 1)
        return torch.where(at_R[:, None] >= 0, found_RE, 0.0).to(self._target.dtype)
