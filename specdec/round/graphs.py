"""The forward pass on a GPU: a round's tables in one transfer, one CUDA graph per bucket of shapes.

A round is padded to its bucket. Padding rows repeat the round's last row, whose experts are read anyway, and write to a slot
that nobody reads; so they cost next to nothing and, rows being independent, change nothing. A bucket is recorded when it comes
for the second time; before that, and where there are more rows, rounds are launched kernel by kernel: a device that computes
many rows is busy for longer than the host needs for that.
"""

import gc
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from specdec.cache.attention import KVPool
from specdec.models.base import Heads, Model
from specdec.round.batch import RoundRows, Segment

ROW_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
GRAPH_ROWS = ROW_BUCKETS[-1]
PROMPT_ROWS = 1024  # of a lone sequence, so many are recorded too
_PROMPT_STEP = 64
MAX_GRAPHS = 128  # the one used longest ago is dropped
_FEWEST_PAGES = 4
_CHUNK_ROWS = 16  # of a sequence that reads its prompt, at least
_MOST_PARTS = 4  # more launches of attention cost more than they save


@dataclass(frozen=True, slots=True)
class Bucket:
    """The shapes that a graph is made for: rows, sequences, depths of the ancestor table, pages of the longest sequence."""

    rows: int
    sequences: int
    depths: int
    pages: int

    @staticmethod
    def of(rows: RoundRows) -> "Bucket":
        """The smallest bucket that holds a round."""
        return Bucket(
            rows=row_bucket(rows.num_rows) if rows.num_rows <= GRAPH_ROWS else -(-rows.num_rows // _PROMPT_STEP) * _PROMPT_STEP,
            sequences=_power_of_two(len(rows.bases_S)),
            depths=_power_of_two(rows.ancestor_slots_RD.shape[1]),
            pages=half_octave(rows.page_table_SP.shape[1]),
        )

    @property
    def recorded(self) -> bool:
        """Whether it is worth a graph."""
        return self.rows <= GRAPH_ROWS or (self.sequences == 1 and self.rows <= PROMPT_ROWS)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Entries of each table, in the order of `Tables`."""
        return *(self.rows,) * 4, *(self.sequences,) * 2, self.sequences * self.pages, self.rows * self.depths


@dataclass(frozen=True, slots=True)
class Part:
    """Neighbouring rows of a round whose sequences bring about as many each, and the number of those sequences."""

    rows: slice
    sequences: int

    @staticmethod
    def of(segments: Sequence[Segment]) -> "tuple[Part, ...]":
        """A round's sequences that read a prompt, and those that decode, as runs of neighbours; padding goes with the last."""
        parts = []
        for _, run in groupby(segments, lambda segment: segment.num_chunk + segment.num_tree >= _CHUNK_ROWS):
            mine = list(run)
            end = mine[-1].row_start + mine[-1].num_chunk + mine[-1].num_tree
            parts.append(Part(slice(mine[0].row_start, end), len(mine)))
        parts[-1] = Part(slice(parts[-1].rows.start, None), parts[-1].sequences)
        return tuple(parts) if len(parts) <= _MOST_PARTS else ()


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of `RoundRows` on the device, all int64."""

    tokens_R: Tensor
    positions_R: Tensor
    sequences_R: Tensor
    slots_R: Tensor
    bases_S: Tensor
    starts_S: Tensor
    page_table_SP: Tensor
    ancestor_slots_RD: Tensor

    @staticmethod
    def of(flat: Tensor, bucket: Bucket) -> "Tables":
        """Views of `flat`, which has as many entries as the bucket asks for."""
        tokens, positions, sequences, slots, bases, starts, pages, ancestors = torch.split(flat, list(bucket.sizes))
        return Tables(
            tokens_R=tokens,
            positions_R=positions,
            sequences_R=sequences,
            slots_R=slots,
            bases_S=bases,
            starts_S=starts,
            page_table_SP=pages.view(bucket.sequences, bucket.pages),
            ancestor_slots_RD=ancestors.view(bucket.rows, bucket.depths),
        )

    def attend(
        self, q_RHD: Tensor, k_pages: Tensor, v_pages: Tensor, window: int | None = None, parts: Sequence[Part] = ()
    ) -> Tensor:
        """[R, H, D]: every row over its own history, see `tree_attention_triton`; the round's keys and values are written.

        parts: together all rows, each launched by itself; empty for one launch.
        """
        from specdec.kernels.tree_attention.kernel import tree_attention_triton

        out_RHD = torch.empty_like(q_RHD)
        for part in parts or (Part(slice(0, len(q_RHD)), len(self.bases_S)),):
            tree_attention_triton(
                q_RHD[part.rows],
                k_pages,
                v_pages,
                page_table_SP=self.page_table_SP,
                sequences_R=self.sequences_R[part.rows],
                positions_R=self.positions_R[part.rows],
                bases_S=self.bases_S,
                starts_S=self.starts_S,
                ancestor_slots_RD=self.ancestor_slots_RD[part.rows],
                max_positions=self.page_table_SP.shape[1] * k_pages.shape[2],
                scale=q_RHD.shape[-1] ** -0.5,
                window=window,
                num_sequences=part.sequences,
                out=out_RHD[part.rows],
            )
        return out_RHD

    def fill(self, rows: RoundRows, spare_slot: int) -> None:
        """Write a round's tables and the padding rows; these write their keys to `spare_slot`."""
        count, num_sequences = rows.num_rows, len(rows.bases_S)
        for mine, theirs in (
            (self.tokens_R, rows.tokens_R),
            (self.positions_R, rows.positions_R),
            (self.sequences_R, rows.sequences_R),
        ):
            mine[:count] = theirs
            mine[count:] = theirs[-1]
        self.slots_R[:count] = rows.slots_R
        self.slots_R[count:] = spare_slot
        self.bases_S[:num_sequences] = rows.bases_S
        self.starts_S[:num_sequences] = rows.starts_S
        self.page_table_SP[:num_sequences, : rows.page_table_SP.shape[1]] = rows.page_table_SP
        depths = rows.ancestor_slots_RD.shape[1]
        self.ancestor_slots_RD[:count, :depths] = rows.ancestor_slots_RD
        self.ancestor_slots_RD[:count, depths:] = rows.ancestor_slots_RD[:, -1:]
        self.ancestor_slots_RD[count:] = self.ancestor_slots_RD[count - 1]


@dataclass(slots=True)
class DeviceContext:
    """A round as the model sees it on a GPU: `specdec.models.base.RoundContext`."""

    tables: Tables
    pool: KVPool
    windows: Sequence[int | None]  # of each layer
    wanted: tuple[int, ...]
    captured: dict[int, Tensor] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()

    def attend(self, layer: int, qkv_RC: Tensor, heads: Heads) -> Tensor:
        """See `RoundContext.attend`."""
        from specdec.kernels.tree_attention.heads import heads_triton

        keys, values = self.pool.layer(layer)
        tables, norm = self.tables, heads.per_head_norm
        cos, sin = heads.rope.table
        q_RHD = heads_triton(
            heads.packed(qkv_RC),
            norm.of_query if norm else None,
            norm.of_key if norm else None,
            cos,
            sin,
            positions_R=tables.positions_R,
            slots_R=tables.slots_R,
            k_pages=keys,
            v_pages=values,
            eps=norm.eps if norm else 0.0,
        )
        out_RHD = tables.attend(q_RHD, keys, values, self.windows[layer], self.parts)
        return out_RHD.view(len(q_RHD), -1)

    def capture(self, layer: int, hidden_RE: Tensor) -> None:
        """Keep a layer's output where a drafter asked for it."""
        if layer in self.wanted:
            self.captured[layer] = hidden_RE


@dataclass(slots=True)
class _Prepared:
    """What a bucket needs: pinned and device tables, and the graph once it is captured, with what it leaves behind."""

    host_flat: Tensor
    device_flat: Tensor
    host: Tables
    context: DeviceContext
    copied: torch.cuda.Event  # after the last transfer from `host`
    seen: bool = False  # ran before, so that its kernels are compiled
    graph: torch.cuda.CUDAGraph | None = None
    hidden_RE: Tensor | None = None


class DeviceForward:
    """Runs a model's forward pass for rounds of any shape.

    Args:
        model: on a GPU.
        pool: its K/V pages.
    """

    def __init__(self, model: Model, pool: KVPool) -> None:
        self._model = model
        self._pool = pool
        self._windows = tuple(spec.window for spec in model.cache_specs)
        self._prepared: OrderedDict[tuple[Bucket, tuple[int, ...]], _Prepared] = OrderedDict()
        self._memory = torch.cuda.graph_pool_handle()
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self._timed = False

    def __call__(self, rows: RoundRows, wanted: tuple[int, ...]) -> tuple[Tensor, dict[int, Tensor]]:
        """Hidden states after the final norm, [rows of the bucket, E], and the output of the layers that are wanted.

        Both are overwritten by the next call.
        """
        bucket = Bucket.of(rows)
        prepared = self._prepare(bucket, wanted)
        prepared.copied.synchronize()
        prepared.host.fill(rows, self._pool.spare_slot)
        prepared.device_flat.copy_(prepared.host_flat, non_blocking=True)
        prepared.copied.record()
        # a bucket that comes once is not worth a graph
        self._timed = bucket.recorded and prepared.seen
        if not self._timed:
            prepared.seen = True
            prepared.context.parts = () if bucket.recorded else Part.of(rows.segments)
            return self._run(prepared.context), prepared.context.captured
        if prepared.graph is None:
            prepared.graph = torch.cuda.CUDAGraph()
            with recording(prepared.graph, self._memory):
                prepared.hidden_RE = self._run(prepared.context)
        assert prepared.hidden_RE is not None, "recorded above"
        self._begin.record()
        prepared.graph.replay()
        self._end.record()
        return prepared.hidden_RE, prepared.context.captured

    def seconds(self) -> float | None:
        """What the last call's graph took on the device; waits for it. None where it was launched kernel by kernel."""
        if not self._timed:
            return None
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) / 1e3

    def _run(self, context: DeviceContext) -> Tensor:
        return self._model.forward(context.tables.tokens_R, context)

    def _prepare(self, bucket: Bucket, wanted: tuple[int, ...]) -> _Prepared:
        key = (bucket, wanted)
        if key not in self._prepared:
            host = torch.zeros(sum(bucket.sizes), dtype=torch.int64, pin_memory=True)
            device = torch.zeros(sum(bucket.sizes), dtype=torch.int64, device=self._pool.device)
            self._prepared[key] = _Prepared(
                host_flat=host,
                device_flat=device,
                host=Tables.of(host, bucket),
                context=DeviceContext(Tables.of(device, bucket), self._pool, self._windows, wanted),
                copied=torch.cuda.Event(),  # type: ignore[no-untyped-call]
            )
            if len(self._prepared) > MAX_GRAPHS:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return self._prepared[key]


@contextmanager
def recording(graph: torch.cuda.CUDAGraph, memory: Any) -> Iterator[None]:
    """Capture a CUDA graph, its memory from that pool.

    No garbage is collected meanwhile: to free an older graph's memory on this thread would spoil the capture.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
            yield
    finally:
        if collected:
            gc.enable()


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def prompt_buckets() -> list[int]:
    """Rows of a lone sequence's prompt: those that are recorded, and some more that are not."""
    recorded = range(GRAPH_ROWS + _PROMPT_STEP, PROMPT_ROWS + 1, _PROMPT_STEP)
    return [*ROW_BUCKETS[1:], *recorded, *(PROMPT_ROWS << power for power in (1, 2, 3))]


def row_bucket(count: int) -> int:
    """The smallest of the row buckets that holds `count`."""
    return ROW_BUCKETS[bisect_left(ROW_BUCKETS, count)]


def octave(count: int) -> int:
    """The next of 4, 8, 16, ..."""
    return max(_power_of_two(count), _FEWEST_PAGES)


def half_octave(count: int) -> int:
    """The next of 4, 6, 8, 12, 16, 24, ..."""
    power = octave(count)
    return power * 3 // 4 if power > _FEWEST_PAGES and count <= power * 3 // 4 else power
