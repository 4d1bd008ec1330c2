"""Rows through a model: hidden states and logits.

Legend of shape suffixes: R rows, E hidden size, V vocabulary.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.cache.kinds import Caches
from specdec.cache.rows import Rows
from specdec.kernels.linear import least_rows
from specdec.models.base import Model

FINAL_NORM = "norm"  # the hidden state behind the final norm, beside the names of `RoundContext.capture`


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of an engine, where a model's are not the same.

    size: of the logits. Tokens that the model does not know are read as its last. banned: ids of the model that are not to be
    drawn or drafted, being no tokens, or none of the target's.
    """

    size: int
    banned: Sequence[int] = ()


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
        vocabulary: what its tokens are; None: the model's own, whole.
    """

    def __init__(
        self,
        model: Model,
        caches: Caches,
        first_layer: int = 0,
        row_multiple: int = 1,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self.model = model
        self.caches = caches
        self.row_multiple = row_multiple
        self._first_layer = first_layer
        own = model.config.vocab_size
        self._vocab_size = vocabulary.size if vocabulary is not None else own
        self._foreign = self._vocab_size > own  # tokens may come that the model does not know
        banned = vocabulary.banned if vocabulary is not None else ()
        self._banned = torch.tensor(list(banned), device=model.device) if banned else None
        self._least_rows = least_rows(model.dtype, model.device)

    def __call__(self, rows: Rows, wanted: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Hidden states behind the final norm, [R, E], and those that are wanted by name, [R, E] each. The rows' caches are
        written afterwards."""
        tokens_R, positions_R = self._pad(rows.tokens_R), self._pad(rows.positions_R)
        if self._foreign:
            tokens_R = tokens_R.clamp(max=self.model.config.vocab_size - 1)
        padded = rows if tokens_R is rows.tokens_R else replace(rows, tokens_R=tokens_R, positions_R=positions_R)
        context = ForwardContext(self.caches, padded, wanted, self._first_layer)
        hidden_RE = self.model.forward(tokens_R, context)[: rows.num_rows]
        if FINAL_NORM in wanted:
            context.captured[FINAL_NORM] = hidden_RE
        return hidden_RE, context.captured

    def logits(self, hidden_RE: Tensor) -> Tensor:
        """float32 [R, V] of some rows of hidden states, contiguous; -inf for what is banned."""
        logits_RV = self.model.logits(self._pad(hidden_RE))[: len(hidden_RE)]
        if self._banned is not None:
            logits_RV.index_fill_(1, self._banned, -torch.inf)
        missing = self._vocab_size - logits_RV.shape[1]
        return F.pad(logits_RV, (0, missing), value=-torch.inf).contiguous() if missing else logits_RV

    def _pad(self, values: Tensor) -> Tensor:
        """Repeat the last row up to as many as are computed."""
        wanted = max(-(-len(values) // self.row_multiple) * self.row_multiple, self._least_rows)
        missing = wanted - len(values)
        return values if missing == 0 else torch.cat([values, values[-1:].expand(missing, *values.shape[1:])])
