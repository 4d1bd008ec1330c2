"""GGUF files (llama.cpp's format): config, tensors, and what the tokenizer needs, in Hugging Face's terms.

Legend: llama.cpp stores the query and key rows of the llama architecture with each head's two rotation halves interleaved.
"""

import dataclasses
import math
import re
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from specdec.errors import ConfigError
from specdec.models.config import ModelConfig
from specdec.models.damage import damaged
from specdec.models.gguf_reader import GgufReader, GgufTensor
from specdec.models.registry import read_config

_FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3moe": "qwen3_moe", "olmoe": "olmoe"}
_GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_EXPERT_NAMES = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
_MIXTRAL_EXPERT_NAMES = {"ffn_gate_exps": "w1", "ffn_up_exps": "w3", "ffn_down_exps": "w2"}
_EMBEDDING, _ROPE_DIVISORS = "token_embd.weight", "rope_freqs.weight"
_LAYER = re.compile(r"blk\.(?P<layer>\d+)\.(?P<role>.+)\.(?P<kind>weight|bias)")
_THETA = 10_000.0  # llama.cpp's, where a file does not say


class GgufFile:
    """A model in a GGUF file. It is a `Checkpoint`."""

    def __init__(self, path: Path) -> None:
        """path: of the file, or of any of its parts. ConfigError where a file is missing or damaged, or the architecture is not
        supported."""
        self._reader = GgufReader(path)
        self.path = self._reader.path
        self.architecture = str(self._reader.metadata.get("general.architecture"))
        if self.architecture not in _FAMILIES:
            raise ConfigError(f"GGUF architecture {self.architecture!r} is not supported; known: {', '.join(_FAMILIES)}.")

    def value(self, key: str, default: Any = None) -> Any:
        """A metadata value; `{arch}` in the key stands for the architecture."""
        return self._reader.metadata.get(key.replace("{arch}", self.architecture), default)

    @cached_property
    def config(self) -> ModelConfig:
        """The model's configuration; ConfigError for a feature that is not supported, or a value that is missing."""
        tensors = self._reader.tensors
        if _EMBEDDING not in tensors:
            raise ConfigError(f"{self.path} has no tensor {_EMBEDDING}; fetch a whole model.")
        hidden_size, num_heads = self._number("embedding_length"), self._number("attention.head_count")
        head_dim = self._number("attention.key_length", hidden_size // num_heads)
        if self._number("rope.dimension_count", head_dim) != head_dim:
            raise ConfigError(
                "rope.dimension_count in the GGUF file differs from the head size: partial rotation is not supported."
            )
        config = read_config(
            {
                "model_type": self._model_type,
                "vocab_size": tensors[_EMBEDDING].shape[0],
                "hidden_size": hidden_size,
                "num_hidden_layers": self._number("block_count"),
                "num_attention_heads": num_heads,
                "num_key_value_heads": self._number("attention.head_count_kv", num_heads),
                "head_dim": head_dim,
                "intermediate_size": self._number("feed_forward_length"),
                "rms_norm_eps": self.value("{arch}.attention.layer_norm_rms_epsilon"),
                "max_position_embeddings": self._number("context_length"),
                "sliding_window": self.value("{arch}.attention.sliding_window"),
                "use_sliding_window": True,
                "tie_word_embeddings": "output.weight" not in tensors,
                "attention_bias": "blk.0.attn_q.bias" in tensors,
                "eos_token_id": self._ending_tokens(),
                "num_local_experts": self.value("{arch}.expert_count"),
                "num_experts_per_tok": self.value("{arch}.expert_used_count"),
                "moe_intermediate_size": self.value("{arch}.expert_feed_forward_length"),
                "norm_topk_prob": self.architecture == "qwen3moe",  # llama.cpp knows it by the architecture, too
                "rope_theta": self.value("{arch}.rope.freq_base", _THETA),
                "rope_scaling": self._rope_scaling(),
            }
        )
        if _ROPE_DIVISORS not in tensors:
            return config
        if tensors[_ROPE_DIVISORS].shape != (head_dim // 2,):
            raise damaged(self.path, f"{_ROPE_DIVISORS} has shape {list(tensors[_ROPE_DIVISORS].shape)}")
        divisors = tuple(tensors[_ROPE_DIVISORS].read(torch.float32).tolist())
        return dataclasses.replace(config, rope=dataclasses.replace(config.rope, divisors=divisors))

    def _number(self, key: str, default: int | None = None) -> int:
        """A count that the architecture needs; llama.cpp may keep one for each layer, which is not supported."""
        name = f"{{arch}}.{key}"
        value = self.value(name, default)
        if type(value) is not int or value < 1:
            raise ConfigError(f"{name.replace('{arch}', self.architecture)} in {self.path} must be a number, not {value!r}.")
        return value

    @property
    def _model_type(self) -> str:
        if self.architecture == "llama" and self.value("{arch}.expert_count"):
            return "mixtral"
        return _FAMILIES[self.architecture]

    def _ending_tokens(self) -> list[int]:
        found = {self.value(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
        return sorted(token for token in found if type(token) is int)

    def _rope_scaling(self) -> dict[str, Any]:
        """As config.json has it. A factor without a type is linear, and `rope.scale_linear` is the older name of the factor."""
        factor = self.value("{arch}.rope.scaling.factor") or self.value("{arch}.rope.scale_linear")
        kind = self.value("{arch}.rope.scaling.type", "linear" if factor else "none")
        if kind == "none" or (kind == "linear" and not factor):
            return {}
        fields = {"rope_type": kind, "factor": factor}
        fields["original_max_position_embeddings"] = self.value("{arch}.rope.scaling.original_context_length")
        return fields | (self._yarn(factor) if kind == "yarn" and factor else {})

    def _yarn(self, factor: float) -> dict[str, Any]:
        if self.value("{arch}.rope.scaling.yarn_ext_factor", 1.0) not in (1.0, -1.0):
            raise ConfigError("rope.scaling.yarn_ext_factor in the GGUF file is not supported, but for 1.")
        scale = 1.0  # llama.cpp multiplies the paper's factor with both
        for key in ("attn_factor", "yarn_attn_factor"):
            scale *= self.value(f"{{arch}}.rope.scaling.{key}", 1.0)
        return {
            "beta_fast": self.value("{arch}.rope.scaling.yarn_beta_fast"),
            "beta_slow": self.value("{arch}.rope.scaling.yarn_beta_slow"),
            "attention_factor": None if scale == 1.0 else scale * (0.1 * math.log(factor) + 1.0),
        }

    @cached_property
    def _places(self) -> dict[str, GgufTensor]:
        places: dict[str, GgufTensor] = {}
        for name, tensor in self._reader.tensors.items():
            found = _LAYER.fullmatch(name)
            if found is not None:
                places |= self._layer_places(f"model.layers.{found['layer']}", found["role"], found["kind"], tensor)
            elif name != _ROPE_DIVISORS:
                places[_GLOBAL_NAMES.get(name, name)] = tensor
        return places

    def _layer_places(self, layer: str, role: str, kind: str, tensor: GgufTensor) -> dict[str, GgufTensor]:
        mixtral = self._model_type == "mixtral"
        block = "block_sparse_moe" if mixtral else "mlp"
        names = _MIXTRAL_EXPERT_NAMES if mixtral else _EXPERT_NAMES
        if role in names:
            return {f"{layer}.{block}.experts.{i}.{names[role]}.{kind}": tensor.stacked(i) for i in range(tensor.shape[0])}
        one, _, index = role.partition(".")  # older files have a tensor for each expert
        if index and f"{one}_exps" in names:
            return {f"{layer}.{block}.experts.{index}.{names[f'{one}_exps']}.{kind}": tensor}
        if role == "ffn_gate_inp":
            return {f"{layer}.{block}.gate.{kind}": tensor}
        return {f"{layer}.{_LAYER_NAMES.get(role, role)}.{kind}": tensor}

    def names(self) -> Collection[str]:
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        self._places[name].check_type()
        return self._places[name].shape

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        values = self._places[name].read(dtype)
        if self.architecture == "llama" and ".self_attn.q_proj." in name:
            return _halves_apart(values, self.config.num_heads)
        if self.architecture == "llama" and ".self_attn.k_proj." in name:
            return _halves_apart(values, self.config.num_kv_heads)
        return values

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        pass


def _halves_apart(rows: Tensor, num_heads: int) -> Tensor:
    """Undo the interleaving of each head's rotation halves: rows [heads * D, ...] or a bias [heads * D]."""
    return rows.view(num_heads, len(rows) // num_heads // 2, 2, -1).transpose(1, 2).reshape(rows.shape)
