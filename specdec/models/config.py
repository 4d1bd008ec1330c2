"""A model's configuration, read from Hugging Face's config.json in the styles of transformers 4 and 5.

What the forward pass cannot honour is refused by name: a field is either read, known not to matter, or an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specdec.errors import ConfigError
from specdec.models.rope_config import RopeConfig as RopeConfig
from specdec.models.rope_config import read_rope

Fields = Mapping[str, Any]

_MOST = 1 << 31  # of any count; beyond, a file is damaged
_LARGEST_HEAD = 1 << 16


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
    tie_word_embeddings: bool | None  # None: the file does not say, and what the checkpoint holds decides
    dtype: str | None  # the checkpoint's own, where it says
    eos_token_ids: tuple[int, ...]
    qkv_bias: bool = False
    output_bias: bool = False  # of the attention's output projection
    mlp_bias: bool = False
    clip_qkv: float | None = None
    moe: MoeConfig | None = None

    @property
    def longest(self) -> int:
        """Positions that may be asked for: a scaled rotation knows more than the file may have been written for."""
        return max(self.max_position_embeddings, self.rope.longest)


def read_common(fields: Fields, family: str, *, default_theta: float = 10_000.0, **overrides: Any) -> ModelConfig:
    """The part of config.json that all families share; `overrides` are ModelConfig fields that a family knows better.

    Raises:
        ConfigError: a required field is missing or no number, or a field asks for what is not supported.
    """
    refuse_unsupported(fields)
    num_heads, hidden_size = count(fields, "num_attention_heads"), count(fields, "hidden_size")
    tied = fields.get("tie_word_embeddings")
    values: dict[str, Any] = {
        "family": family,
        "vocab_size": count(fields, "vocab_size"),
        "hidden_size": hidden_size,
        "num_layers": count(fields, "num_hidden_layers"),
        "num_heads": num_heads,
        "num_kv_heads": count(fields, "num_key_value_heads", num_heads),
        "head_dim": count(fields, "head_dim", max(hidden_size // num_heads, 1)),
        "intermediate_size": count(fields, "intermediate_size"),
        "rms_norm_eps": number(fields, "rms_norm_eps"),
        "rope": read_rope(fields, default_theta),
        "max_position_embeddings": count(fields, "max_position_embeddings"),
        "tie_word_embeddings": None if tied is None else bool(tied),
        "dtype": fields.get("dtype") or fields.get("torch_dtype"),
        "eos_token_ids": as_ids(fields.get("eos_token_id")),
    }
    config = ModelConfig(**(values | overrides))
    if config.num_heads % config.num_kv_heads:
        raise ConfigError(
            f"num_attention_heads {config.num_heads} in the model's config is no multiple of num_key_value_heads "
            f"{config.num_kv_heads}."
        )
    if config.head_dim % 2 or config.head_dim > _LARGEST_HEAD:
        raise ConfigError(f"head_dim {config.head_dim} in the model's config must be even, and at most {_LARGEST_HEAD}.")
    return config


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
    used = fields.get("use_sliding_window", not str(fields.get("model_type")).startswith("qwen"))
    if window and used and window < count(fields, "max_position_embeddings"):
        raise ConfigError(f"sliding_window {window} in the model's config is not supported.")


def required(fields: Fields, name: str) -> Any:
    """The value of a field that must be there."""
    if fields.get(name) is None:
        raise ConfigError(f"The model's config has no {name}.")
    return fields[name]


def count(fields: Fields, name: str, default: int | None = None) -> int:
    """A whole number above 0. default: where the field is not there, or 0."""
    value = fields.get(name) or default or required(fields, name)
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(whole, bool) or not isinstance(whole, int) or not 1 <= whole < _MOST:
        raise ConfigError(f"{name} in the model's config must be a whole number above 0, not {value!r}.")
    return whole


def number(fields: Fields, name: str) -> float:
    """A number of 0 or more."""
    value = required(fields, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ConfigError(f"{name} in the model's config must be a number, not {value!r}.")
    return float(value)


def agreed(fields: Fields, *names: str) -> Any:
    """The value of a field that has had several names; None where it has none of them.

    Raises:
        ConfigError: they contradict each other.
    """
    said = {name: fields[name] for name in names if fields.get(name) is not None}
    if len({str(value) for value in said.values()}) > 1:
        raise ConfigError(f"{' and '.join(said)} in the model's config contradict each other; take out the wrong one.")
    return next(iter(said.values()), None)


def as_ids(value: object) -> tuple[int, ...]:
    """A token id field, which may hold none, one or several."""
    if value is None:
        return ()
    ids = tuple(value) if isinstance(value, list | tuple) else (value,)
    for token in ids:
        if type(token) is not int:
            raise ConfigError(f"eos_token_id in the model's config must be a token id or several, not {value!r}.")
    return ids
