"""Runner: the rows of a round through the target, to logits and hidden states."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specdec.cache.attention import KVPool
from specdec.kernels.linear import least_rows, uses_triton
from specdec.kernels.tree_attention import TilePlan, plan_tiles, tree_attention
from specdec.models.base import CacheSpec, Heads, Model
from specdec.models.layers.rope import Rotation
from specdec.round.batch import RoundRows
from specdec.round.graphs import DeviceForward


@dataclass(frozen=True, slots=True)
class RunnerOutput:
    """What the target says.

    logits_TV: float32, one row per tree row; None when the round has no tree.
    hidden_RC: [rows, hidden size * captured layers], in the model's dtype; None when none were asked for.
    """

    logits_TV: Tensor | None
    hidden_RC: Tensor | None


class Runner:
    """One forward pass per round.

    Args:
        model: the target (or a draft model).
        pool: its K/V pages.
        capture: layers whose output the drafters want.
        row_multiple: rows are padded to a multiple of this; the self-test raises it where the machine's matrix products
            need it to keep a row's bits.
    """

    def __init__(self, model: Model, pool: KVPool, capture: Sequence[int] = (), row_multiple: int = 1) -> None:
        self.model = model
        self.pool = pool
        self.row_multiple = row_multiple
        self.capture = tuple(capture)
        self._least_rows = least_rows(model.dtype, pool.device)
        self._on_device = DeviceForward(model, pool) if uses_triton(pool.device) else None

    @property
    def device(self) -> torch.device:
        """Where the rows are computed."""
        return self.pool.device

    def device_seconds(self) -> float | None:
        """What the layers of the last round took on a device that the host runs ahead of; None where nothing tells."""
        return self._on_device.seconds() if self._on_device is not None else None

    @torch.inference_mode()
    def forward(self, rows: RoundRows) -> RunnerOutput:
        """Compute every row; their keys and values are in the pool afterwards."""
        hidden, layers = self._forward(rows)
        captured = torch.cat([layers[layer][: rows.num_rows] for layer in self.capture], dim=-1) if self.capture else None
        if rows.tree is None:
            return RunnerOutput(None, captured)
        num_tree = len(rows.tree.rows_T)
        if num_tree != rows.num_rows:
            hidden = hidden[self._pad(rows.tree.rows_T)]
        elif self._on_device is not None:
            hidden = hidden[:num_tree]
        return RunnerOutput(self.model.logits(hidden)[:num_tree], captured)

    def _forward(self, rows: RoundRows) -> tuple[Tensor, dict[int, Tensor]]:
        """Hidden states of all rows and of padding behind them, and what was captured."""
        if self._on_device is not None:
            return self._on_device(rows, self.capture)
        context = _RoundContext.build(rows, self.pool, self.model.cache_specs, self.capture, self._pad(rows.positions_R))
        return self.model.forward(self._pad(rows.tokens_R), context), context.captured

    def _pad(self, values_R: Tensor) -> Tensor:
        """Repeat the last value up to as many rows as are computed."""
        wanted = max(-(-len(values_R) // self.row_multiple) * self.row_multiple, self._least_rows)
        missing = wanted - len(values_R)
        return values_R if missing == 0 else torch.cat([values_R, values_R[-1:].expand(missing)])


@dataclass(slots=True)
class _RoundContext:
    """The model's view of the round: `specdec.models.base.RoundContext`."""

    positions_R: Tensor
    specs: Sequence[CacheSpec]
    pool: KVPool
    plans: list[TilePlan]
    num_rows: int  # without padding
    write_pages_R: Tensor
    write_offsets_R: Tensor
    wanted: tuple[int, ...]
    rotation: Rotation | None = None  # of the round's rows, the same in all layers
    captured: dict[int, Tensor] = field(default_factory=dict)

    @staticmethod
    def build(
        rows: RoundRows, pool: KVPool, specs: Sequence[CacheSpec], wanted: tuple[int, ...], positions_R: Tensor
    ) -> "_RoundContext":
        return _RoundContext(
            positions_R=positions_R,
            specs=specs,
            pool=pool,
            plans=tile_plans(rows, pool.page_size),
            num_rows=rows.num_rows,
            write_pages_R=rows.slots_R // pool.page_size,
            write_offsets_R=rows.slots_R % pool.page_size,
            wanted=wanted,
        )

    def attend(self, layer: int, qkv_RC: Tensor, heads: Heads) -> Tensor:
        """See `RoundContext.attend`."""
        if self.rotation is None:
            self.rotation = heads.rope.rotation(self.positions_R)
        q_RHD, k_RKD, v_RKD = heads.split(qkv_RC, self.rotation)
        if len(k_RKD) != self.num_rows:
            k_RKD, v_RKD = k_RKD[: self.num_rows], v_RKD[: self.num_rows]
        self.pool.write(layer, self.write_pages_R, self.write_offsets_R, k_RKD, v_RKD)
        keys, values = self.pool.layer(layer)
        spec = self.specs[layer]
        out_RHD = tree_attention(q_RHD, keys, values, self.plans, scale=heads.head_dim**-0.5, window=spec.window)
        return out_RHD.reshape(len(q_RHD), -1)

    def capture(self, layer: int, hidden_RE: Tensor) -> None:
        """Keep a layer's output where a drafter asked for it."""
        if layer in self.wanted:
            self.captured[layer] = hidden_RE


def tile_plans(rows: RoundRows, page_size: int) -> list[TilePlan]:
    """The attention's plan of each sequence."""
    positions, slots = rows.positions_R.cpu().numpy(), rows.ancestor_slots_RD.cpu().numpy()
    plans = []
    for segment in rows.segments:
        own = slice(segment.row_start, segment.row_start + segment.num_chunk + segment.num_tree)
        plans.append(
            plan_tiles(
                row_start=segment.row_start,
                positions=positions[own],
                ancestor_slots=slots[own],
                num_chain=segment.num_chunk + segment.num_spine,
                base=segment.base,
                pages=segment.pages,
                page_size=page_size,
                device=rows.positions_R.device,
            )
        )
    return plans
