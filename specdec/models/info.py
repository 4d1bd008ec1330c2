"""What a model needs, from its config alone: no weight is read."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.kernels.linear import PackedWeight, pack
from specdec.kernels.moe import Experts
from specdec.models.base import CacheSpec
from specdec.models.config import ModelConfig
from specdec.models.loader import read_source_config
from specdec.models.registry import family
from specdec.models.source import Source


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """Size and shape of a model."""

    name: str
    config: ModelConfig
    num_parameters: int  # a tied output head counted once
    num_active_parameters: int  # read for one token: of the experts, only as many as a token visits
    num_router_parameters: int  # always float32
    cache_specs: tuple[CacheSpec, ...]  # what its layers keep

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the loaded weights."""
        return (self.num_parameters - self.num_router_parameters) * dtype.itemsize + 4 * self.num_router_parameters


def model_info(source: Source) -> ModelInfo:
    """Describe a model. Raises what reading its config raises."""
    return describe(read_source_config(source), source.name)


def describe(config: ModelConfig, name: str) -> ModelInfo:
    """Count parameters by building the model from tensors that have a shape and no storage."""
    counted = _CountedWeights()
    model = family(config.family).build(config, counted)
    total = sum(counted.sizes.values())
    experts = sum(size for tensor, size in counted.sizes.items() if ".experts." in tensor)
    idle = experts - experts * config.moe.experts_per_token // config.moe.num_experts if config.moe else 0
    return ModelInfo(
        name=name,
        config=config,
        num_parameters=total,
        num_active_parameters=total - idle,
        num_router_parameters=counted.num_router_parameters,
        cache_specs=model.cache_specs,
    )


class _CountedWeights:
    """See `specdec.models.base.Weights`."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.num_router_parameters = 0

    def has(self, name: str) -> bool:
        return name in self.sizes

    def plain(self, name: str, *shape: int) -> Tensor:
        self.sizes[name] = math.prod(shape)
        return torch.empty(shape, device="meta")

    def packed(self, *parts: tuple[str, int, int]) -> PackedWeight:
        return pack(torch.cat([self.plain(name, *shape) for name, *shape in parts]))

    def router(self, name: str, *shape: int) -> PackedWeight:
        self.num_router_parameters += math.prod(shape)
        return pack(self.plain(name, *shape))

    def experts(self, num_experts: int, *parts: tuple[str, int, int]) -> Experts:
        return torch.cat([self.plain(name, num_experts, *shape) for name, *shape in parts], dim=1)

    def shared(self, plain: Tensor) -> PackedWeight:
        return pack(plain, keep_plain=True)
