"""Rows through a model: hidden states and logits.

Legend of shape suffixes: R rows, E hidden size, V vocabulary.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from specdec.cache.kinds import Caches
from specdec.cache.rows import Rows
from specdec.kernels.linear import least_rows
from specdec.models.base import Model

FINAL_NORM = "norm"  # the hidden state behind the final norm, beside the names of `RoundContext.capture`


@dataclass(slots=True)
class ForwardContext:
    """See `specdec.models.base.RoundContext`. first_layer: the place of the model's first layer among all caches."""

    caches: Caches
    rows: Rows
    wanted: Collection[str]
    first_layer: int
    captured: dict[str, Tensor] = field(default_factory=dict)

    def cache(self, layer: int) -> Any:
        """See `RoundContext.cache`."""
        return self.caches.view(self.first_layer + layer, self.rows)

    def capture(self, name: str, hidden_RE: Tensor) -> None:
        """See `RoundContext.capture`."""
        if name in self.wanted:
            self.captured[name] = hidden_RE[: self.rows.num_rows]


class Forward:
    """One model's forward pass.

    Args:
        model: the target, or a drafter's.
        caches: of all models.
        first_layer: where this model's layers begin among them.
        row_multiple: rows are padded to a multiple of this; the self-test raises it where the machine's matrix products need it
            to keep a row's bits.
    """

    def __init__(self, model: Model, caches: Caches, first_layer: int = 0, row_multiple: int = 1) -> None:
        self.model = model
        self.caches = caches
        self.row_multiple = row_multiple
        self._first_layer = first_layer
        self._least_rows = least_rows(model.dtype, model.device)

    def __call__(self, rows: Rows, wanted: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Hidden states behind the final norm, [R, E], and those that are wanted by name, [R, E] each. The rows' caches are
        written afterwards."""
        tokens_R, positions_R = self._pad(rows.tokens_R), self._pad(rows.positions_R)
        padded = rows if tokens_R is rows.tokens_R else replace(rows, tokens_R=tokens_R, positions_R=positions_R)
        context = ForwardContext(self.caches, padded, wanted, self._first_layer)
        hidden_RE = self.model.forward(tokens_R, context)[: rows.num_rows]
        if FINAL_NORM in wanted:
            context.captured[FINAL_NORM] = hidden_RE
        return hidden_RE, context.captured

    def logits(self, hidden_RE: Tensor) -> Tensor:
        """float32 [R, V] of some rows of hidden states, contiguous."""
        return self.model.logits(self._pad(hidden_RE))[: len(hidden_RE)]

    def _pad(self, values: Tensor) -> Tensor:
        """Repeat the last row up to as many as are computed."""
        wanted = max(-(-len(values) // self.row_multiple) * self.row_multiple, self._least_rows)
        missing = wanted - len(values)
        return values if missing == 0 else torch.cat([values, values[-1:].expand(missing, *values.shape[1:])])
