"""A context that does attention the plain way, so that models can be tested without the runner."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from specdec.models.base import Heads, Model


class PlainContext:
    """One sequence, dense causal attention in float32 over a cache that grows."""

    def __init__(self, model: Model) -> None:
        self._keys: list[list[Tensor]] = [[] for _ in model.cache_specs]
        self._values: list[list[Tensor]] = [[] for _ in model.cache_specs]
        self.positions_R = torch.empty(0, dtype=torch.int64)
        self.captured: dict[int, Tensor] = {}

    def at(self, first: int, count: int) -> "PlainContext":
        """The next `count` positions, from `first` on."""
        self.positions_R = torch.arange(first, first + count)
        return self

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

    def capture(self, layer: int, hidden_RE: Tensor) -> None:
        self.captured[layer] = hidden_RE


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
