"""GGUF files (llama.cpp's format): config, tensors, and what the tokenizer needs, in Hugging Face's terms.

Legend: llama.cpp stores the query and key rows of the llama architecture with each head's two rotation halves interleaved.
"""

import dataclasses
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from specdec.errors import ConfigError
from specdec.models.config import ModelConfig
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
_ROPE_DIVISORS = "rope_freqs.weight"


class GgufFile:
    """A model in a GGUF file. It is a `Checkpoint`."""

    def __init__(self, path: Path) -> None:
        """ConfigError where the file is no GGUF file or its architecture is not supported."""
        self._reader = GgufReader(path)
        self.path = path
        self.architecture = str(self._reader.metadata.get("general.architecture"))
        if self.architecture not in _FAMILIES:
            raise ConfigError(f"GGUF architecture {self.architecture!r} is not supported; known: {', '.join(_FAMILIES)}.")

    def value(self, key: str, default: Any = None) -> Any:
        """A metadata value; `{arch}` in the key stands for the architecture."""
        return self._reader.metadata.get(key.replace("{arch}", self.architecture), default)

    @cached_property
    def config(self) -> ModelConfig:
        """The model's configuration; ConfigError for a feature that is not supported."""
        tensors = self._reader.tensors
        hidden_size = self.value("{arch}.embedding_length")
        head_dim = self.value("{arch}.attention.key_length") or hidden_size // self.value("{arch}.attention.head_count")
        if self.value("{arch}.rope.dimension_count", head_dim) != head_dim:
            raise ConfigError(
                "rope.dimension_count in the GGUF file differs from the head size: partial rotation is not supported."
            )
        eos = {self.value(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")} - {None}
        config = read_config(
            {
                "model_type": self._model_type,
                "vocab_size": tensors["token_embd.weight"].shape[0],
                "hidden_size": hidden_size,
                "num_hidden_layers": self.value("{arch}.block_count"),
                "num_attention_heads": self.value("{arch}.attention.head_count"),
                "num_key_value_heads": self.value("{arch}.attention.head_count_kv"),
                "head_dim": head_dim,
                "intermediate_size": self.value("{arch}.feed_forward_length"),
                "rms_norm_eps": self.value("{arch}.attention.layer_norm_rms_epsilon"),
                "max_position_embeddings": self.value("{arch}.context_length"),
                "sliding_window": self.value("{arch}.attention.sliding_window"),
                "tie_word_embeddings": "output.weight" not in tensors,
                "attention_bias": "blk.0.attn_q.bias" in tensors,
                "eos_token_id": sorted(eos),
                "num_local_experts": self.value("{arch}.expert_count"),
                "num_experts_per_tok": self.value("{arch}.expert_used_count"),
                "moe_intermediate_size": self.value("{arch}.expert_feed_forward_length"),
                "norm_topk_prob": self.architecture == "qwen3moe",  # llama.cpp knows it by the architecture, too
                "rope_theta": self.value("{arch}.rope.freq_base"),
                "rope_scaling": self._rope_scaling(),
            }
        )
        if _ROPE_DIVISORS not in tensors:
            return config
        divisors = tuple(self._reader.read(tensors[_ROPE_DIVISORS], torch.float32).tolist())
        return dataclasses.replace(config, rope=dataclasses.replace(config.rope, divisors=divisors))

    @property
    def _model_type(self) -> str:
        if self.architecture == "llama" and self.value("{arch}.expert_count"):
            return "mixtral"
        return _FAMILIES[self.architecture]

    def _rope_scaling(self) -> dict[str, Any]:
        kind = self.value("{arch}.rope.scaling.type", "none")
        if kind == "none":
            return {}
        if kind != "linear":
            raise ConfigError(f"rope.scaling.type {kind!r} in the GGUF file is not supported; known: none, linear.")
        return {"rope_type": "linear", "factor": self.value("{arch}.rope.scaling.factor")}

    @cached_property
    def _places(self) -> dict[str, GgufTensor]:
        places = {}
        for name, tensor in self._reader.tensors.items():
            if name == _ROPE_DIVISORS:
                continue
            if not name.startswith("blk."):
                places[_GLOBAL_NAMES.get(name, name)] = tensor
                continue
            _, layer, role, kind = name.split(".")
            places |= self._layer_places(f"model.layers.{layer}", role, kind, tensor)
        return places

    def _layer_places(self, layer: str, role: str, kind: str, tensor: GgufTensor) -> dict[str, GgufTensor]:
        mixtral = self._model_type == "mixtral"
        block = "block_sparse_moe" if mixtral else "mlp"
        if role in _EXPERT_NAMES:
            name = (_MIXTRAL_EXPERT_NAMES if mixtral else _EXPERT_NAMES)[role]
            return {f"{layer}.{block}.experts.{i}.{name}.{kind}": tensor.stacked(i) for i in range(tensor.shape[0])}
        if role == "ffn_gate_inp":
            return {f"{layer}.{block}.gate.{kind}": tensor}
        return {f"{layer}.{_LAYER_NAMES.get(role, role)}.{kind}": tensor}

    def names(self) -> Collection[str]:
        return self._places.keys()

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        values = self._reader.read(self._places[name], dtype)
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
