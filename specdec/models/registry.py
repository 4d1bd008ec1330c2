"""The model families, by the `model_type` of their config.json. To add one: a module here beside, and a line below."""

import importlib
from typing import Protocol, cast

from specdec.errors import ConfigError
from specdec.models.base import Model, Weights
from specdec.models.config import Fields, ModelConfig, required

_FAMILIES = {
    "llama": "specdec.models.families.llama",
    "mistral": "specdec.models.families.mistral",
    "mixtral": "specdec.models.families.mixtral",
    "olmoe": "specdec.models.families.olmoe",
    "qwen2": "specdec.models.families.qwen2",
    "qwen3": "specdec.models.families.qwen3",
    "qwen3_moe": "specdec.models.families.qwen3_moe",
}


class Family(Protocol):
    """What a family's module has to offer."""

    def read_config(self, fields: Fields) -> ModelConfig:
        """From the fields of config.json; ConfigError where they ask for what the family's code does not do."""
        ...

    def build(self, config: ModelConfig, weights: Weights) -> Model:
        """Read every tensor once, in the order of use, and put the model together."""
        ...


def family(model_type: str) -> Family:
    """The module of a family.

    Raises:
        ConfigError: an unknown family; the message lists the known ones.
    """
    if model_type not in _FAMILIES:
        raise ConfigError(f"model_type {model_type!r} is not supported; known: {', '.join(_FAMILIES)}.")
    return cast(Family, importlib.import_module(_FAMILIES[model_type]))


def read_config(fields: Fields) -> ModelConfig:
    """The configuration in a config.json, by its own family's rules."""
    return family(required(fields, "model_type")).read_config(fields)
