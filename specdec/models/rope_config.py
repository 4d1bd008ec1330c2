"""The rotary position embedding of a model, read from config.json as transformers reads it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specdec.errors import ConfigError

_KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeConfig:
    """Rotary position embedding; `kind` says which of the scaling fields are read."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    original_max_position: int = 0  # all but default
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn
    attention_factor: float = 1.0  # yarn: scales cos and sin
    divisors: tuple[float, ...] = ()  # of the frequencies, where a checkpoint carries them ready made (GGUF)

    @property
    def longest(self) -> int:
        """Positions that a scaling reaches which spreads those of the training evenly; 0 for others."""
        return int(self.original_max_position * self.factor) if self.kind in ("linear", "yarn") else 0


def read_rope(fields: Mapping[str, Any], default_theta: float) -> RopeConfig:
    """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4). Where a file has both
    styles, the older one counts, whole, as in transformers.

    Raises:
        ConfigError: a field is missing, no number, or asks for what is not supported.
    """
    scaling = _scaling(fields)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in _KINDS:
        raise ConfigError(f"rope type {kind!r} in the model's config is not supported; known: {', '.join(_KINDS)}.")
    if (scaling.get("partial_rotary_factor") or fields.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ConfigError("partial_rotary_factor in the model's config is not supported.")
    theta = _number({"rope_theta": scaling.get("rope_theta") or fields.get("rope_theta") or default_theta}, "rope_theta")
    if kind == "default":
        return RopeConfig(theta=theta)
    factor = _number(scaling, "factor")
    original = int(_number(_originals(fields, scaling), "original_max_position_embeddings"))
    common: dict[str, Any] = {"theta": theta, "kind": kind, "factor": factor, "original_max_position": original}
    if kind == "linear":
        return RopeConfig(**common)
    if kind == "llama3":
        low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
        return RopeConfig(**common, low_freq_factor=low, high_freq_factor=high)
    if scaling.get("mscale") or scaling.get("mscale_all_dim"):
        raise ConfigError("mscale in the model's rope scaling is not supported.")
    return RopeConfig(
        **common,
        beta_fast=_number(scaling, "beta_fast", 32.0),
        beta_slow=_number(scaling, "beta_slow", 1.0),
        truncate=scaling.get("truncate", True),
        attention_factor=_number(scaling, "attention_factor", 0.0),  # 0: from the factor, as the paper says
    )


def _scaling(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in ("rope_scaling", "rope_parameters"):
        if (found := fields.get(name)) is not None and not isinstance(found, Mapping):
            raise ConfigError(f"{name} in the model's config must be an object, not {found!r}.")
        if found:
            return found
    return {}


def _originals(fields: Mapping[str, Any], scaling: Mapping[str, Any]) -> Mapping[str, Any]:
    name = "original_max_position_embeddings"
    return {name: fields.get(name) or scaling.get(name) or fields.get("max_position_embeddings")}


def _number(fields: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A number above 0, or the default where there is none."""
    value = fields.get(name) or default
    if value is None:
        raise ConfigError(f"{name} is missing in the model's rope scaling.")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ConfigError(f"{name} in the model's rope scaling must be a number above 0, not {value!r}.")
    return float(value)
