"""A model's configuration, read from Hugging Face's config.json in the styles of transformers 4 and 5.

What the forward pass cannot honour is refused by name: a field is either read, known not to matter, or an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specdec.errors import ConfigError

Fields = Mapping[str, Any]

_ROPE_KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeConfig:
    """Rotary position embedding; `kind` says which of the scaling fields are read."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    original_max_position: int = 0  # llama3, yarn
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn
    attention_factor: float = 1.0  # yarn: scales cos and sin
    divisors: tuple[float, ...] = ()  # of the frequencies, where a checkpoint carries them ready made (GGUF)


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeConfig:
    """Sparse feed-forward layers."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    renormalise: bool  # the chosen experts' weights are scaled to add up to 1
    dense_layers: frozenset[int] = frozenset()  # layers with an ordinary feed-forward


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Everything that the forward pass and the caches need to know."""

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool
    dtype: str | None  # the checkpoint's own, where it says
    eos_token_ids: tuple[int, ...]
    qkv_bias: bool = False
    output_bias: bool = False  # of the attention's output projection
    mlp_bias: bool = False
    clip_qkv: float | None = None
    moe: MoeConfig | None = None


def read_common(fields: Fields, family: str, **overrides: Any) -> ModelConfig:
    """The part of config.json that all families share; `overrides` are ModelConfig fields that a family knows better.

    Raises:
        ConfigError: a required field is missing, or a field asks for what is not supported.
    """
    refuse_unsupported(fields)
    num_heads = required(fields, "num_attention_heads")
    hidden_size = required(fields, "hidden_size")
    values: dict[str, Any] = {
        "family": family,
        "vocab_size": required(fields, "vocab_size"),
        "hidden_size": hidden_size,
        "num_layers": required(fields, "num_hidden_layers"),
        "num_heads": num_heads,
        "num_kv_heads": fields.get("num_key_value_heads") or num_heads,
        "head_dim": fields.get("head_dim") or hidden_size // num_heads,
        "intermediate_size": required(fields, "intermediate_size"),
        "rms_norm_eps": required(fields, "rms_norm_eps"),
        "rope": read_rope(fields),
        "max_position_embeddings": required(fields, "max_position_embeddings"),
        "tie_word_embeddings": bool(fields.get("tie_word_embeddings", False)),
        "dtype": fields.get("dtype") or fields.get("torch_dtype"),
        "eos_token_ids": as_ids(fields.get("eos_token_id")),
    }
    return ModelConfig(**(values | overrides))


def read_rope(fields: Fields) -> RopeConfig:
    """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4)."""
    scaling = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in _ROPE_KINDS:
        raise ConfigError(f"rope type {kind!r} in the model's config is not supported; known: {', '.join(_ROPE_KINDS)}.")
    if (scaling.get("partial_rotary_factor") or fields.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ConfigError("partial_rotary_factor in the model's config is not supported.")
    theta = float(scaling.get("rope_theta") or fields.get("rope_theta") or 10000.0)
    if kind == "default":
        return RopeConfig(theta=theta)
    factor = float(required(scaling, "factor"))
    if kind == "linear":
        return RopeConfig(theta=theta, kind=kind, factor=factor)
    original = scaling.get("original_max_position_embeddings") or required(fields, "max_position_embeddings")
    if kind == "llama3":
        return RopeConfig(
            theta=theta,
            kind=kind,
            factor=factor,
            original_max_position=original,
            low_freq_factor=required(scaling, "low_freq_factor"),
            high_freq_factor=required(scaling, "high_freq_factor"),
        )
    if scaling.get("mscale") or scaling.get("mscale_all_dim"):
        raise ConfigError("mscale in the model's rope scaling is not supported.")
    return RopeConfig(
        theta=theta,
        kind=kind,
        factor=factor,
        original_max_position=original,
        beta_fast=scaling.get("beta_fast") or 32.0,
        beta_slow=scaling.get("beta_slow") or 1.0,
        truncate=scaling.get("truncate", True),
        attention_factor=scaling.get("attention_factor") or 0.0,  # 0: from the factor, as the paper says
    )


def refuse_unsupported(fields: Fields) -> None:
    """Raise ConfigError for a field that changes the computation in a way that is not implemented."""
    if fields.get("quantization_config"):
        raise ConfigError(
            "quantization_config: quantized safetensors checkpoints are not supported; use a GGUF file or plain weights."
        )
    activation = fields.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ConfigError(f"hidden_act {activation!r} in the model's config is not supported; known: silu.")
    layer_types = set(fields.get("layer_types") or ()) - {"full_attention"}
    if layer_types:
        raise ConfigError(f"layer_types {sorted(layer_types)} in the model's config are not supported; known: full_attention.")
    window = fields.get("sliding_window")
    # the Qwen families name a window that only `use_sliding_window` turns on
    if window and fields.get("use_sliding_window", True) and window < required(fields, "max_position_embeddings"):
        raise ConfigError(f"sliding_window {window} in the model's config is not supported.")


def required(fields: Fields, name: str) -> Any:
    """The value of a field that must be there."""
    if fields.get(name) is None:
        raise ConfigError(f"The model's config has no {name}.")
    return fields[name]


def as_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """A token id field, which may hold none, one or several."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)
