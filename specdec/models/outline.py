"""A model without its weights: built of tensors that have a shape and no storage, to count them or to check a checkpoint."""

import math

import torch
from torch import Tensor

from specdec.errors import ConfigError
from specdec.kernels.linear import PackedWeight, pack
from specdec.kernels.moe import Experts
from specdec.models.checkpoint import Checkpoint
from specdec.models.config import ModelConfig
from specdec.models.names import EMBEDDING, HEAD

# buffers that old exports carry along and nobody reads
_HARMLESS = ("rotary_emb.inv_freq", "self_attn.bias", "self_attn.masked_bias")


class OutlineWeights:
    """See `specdec.models.base.Weights`. Where there is a checkpoint, its tensors have to be what is asked for."""

    def __init__(self, checkpoint: Checkpoint | None = None) -> None:
        self.sizes: dict[str, int] = {}
        self.num_router_parameters = 0
        self._checkpoint = checkpoint
        self._names = checkpoint.names() if checkpoint is not None else self.sizes.keys()
        self._unread = set(checkpoint.names()) if checkpoint is not None else set()

    def has(self, name: str) -> bool:
        return name in self._names

    def plain(self, name: str, *shape: int) -> Tensor:
        self._check(name, shape)
        self.sizes[name] = math.prod(shape)
        # vectors are small, and families compute with them: for those without storage torch would load its compiler
        return torch.empty(shape, device="meta" if len(shape) > 1 else "cpu")

    def packed(self, *parts: tuple[str, int, int]) -> PackedWeight:
        for name, *shape in parts:
            self.plain(name, *shape)
        return pack(torch.empty((sum(rows for _, rows, _ in parts), parts[0][2]), device="meta"))

    def router(self, name: str, *shape: int) -> PackedWeight:
        self.num_router_parameters += math.prod(shape)
        return pack(self.plain(name, *shape))

    def experts(self, num_experts: int, *parts: tuple[str, int, int]) -> Experts:
        rows, columns = sum(part[1] for part in parts), parts[0][2]
        for name, *shape in parts:
            if "{}" in name:
                for index in range(num_experts):
                    self._check(name.format(index), tuple(shape))
            else:
                self._check(name, (num_experts, *shape))
            self.sizes[name] = num_experts * math.prod(shape)
        return torch.empty((num_experts, rows, columns), device="meta")

    def shared(self, plain: Tensor) -> PackedWeight:
        return pack(plain, keep_plain=True)

    def check_all_read(self, config: ModelConfig) -> None:
        """ConfigError where a tensor was not asked for: the model would not be the one in the checkpoint."""
        shared = {EMBEDDING, HEAD} if config.tie_word_embeddings else set()
        left = sorted(name for name in self._unread - shared if not name.endswith(_HARMLESS))
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise ConfigError(
                f"The checkpoint's tensor {left[0]}{more} has no place in a {config.family} model of this config."
            )

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if self._checkpoint is None:
            return
        if name not in self._names:
            raise ConfigError(f"The checkpoint has no tensor {name}.")
        found = self._checkpoint.shape(name)
        if found != shape:
            raise ConfigError(f"Tensor {name} has shape {list(found)}, but the config asks for {list(shape)}.")
        self._unread.discard(name)
