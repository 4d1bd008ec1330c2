"""Qwen2 and Qwen2.5: Llama with biases on the queries, keys and values."""

from specdec.models.config import Fields, ModelConfig, read_common
from specdec.models.families.llama import build

__all__ = ["build", "read_config"]


def read_config(fields: Fields) -> ModelConfig:
    """See `registry.Family.read_config`."""
    return read_common(fields, "qwen2", qkv_bias=True)
