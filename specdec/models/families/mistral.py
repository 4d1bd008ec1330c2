"""Mistral, where its attention has no window: what Llama computes."""

from specdec.models.config import Fields, ModelConfig, read_common
from specdec.models.families.llama import build

__all__ = ["build", "read_config"]

_WINDOW = 4096  # where config.json does not say, as transformers has it


def read_config(fields: Fields) -> ModelConfig:
    """See `registry.Family.read_config`."""
    return read_common({"sliding_window": _WINDOW, **fields}, "mistral")
