"""What a model needs, from its config alone: no weight is read."""

from dataclasses import dataclass

import torch

from specdec.models.base import CacheSpec
from specdec.models.config import ModelConfig
from specdec.models.loader import read_source_config
from specdec.models.outline import OutlineWeights
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
    counted = OutlineWeights()
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
