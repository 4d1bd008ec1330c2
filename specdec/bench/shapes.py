"""Models of a named shape with random weights, made where they run: speed needs no checkpoint."""

from collections.abc import Mapping
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models
from torch import Tensor

from specdec.assemble import LoadedModel
from specdec.errors import ConfigError
from specdec.kernels.linear import PackedWeight, pack, uses_triton
from specdec.kernels.moe import Experts
from specdec.models.loader import choose_device, choose_dtype
from specdec.models.registry import family, read_config
from specdec.text.tokenizer import Tokenizer

# the fields of their config.json that size them
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "vocab_size": 151_936,
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
    },
    "llama-3.1-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14_336,
        "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49_152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e5,
        "tie_word_embeddings": True,
    },
    # hardly computes: what is left of a round is what every model pays
    "tiny": {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 512,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "tie_word_embeddings": True,
    },
}


class RandomWeights:
    """Tensors drawn so that values keep their size from layer to layer. See `specdec.models.base.Weights`."""

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> None:
        self._dtype = dtype
        self._device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def has(self, name: str) -> bool:  # noqa: ARG002 (the protocol's)
        return False

    def plain(self, name: str, *shape: int) -> Tensor:
        if "norm" in name:
            return torch.ones(shape, dtype=self._dtype, device=self._device)
        return self._draw(shape, 1.0)

    def packed(self, *parts: tuple[str, int, int]) -> PackedWeight:
        depth = parts[0][2]
        return pack(self._draw((sum(rows for _, rows, _ in parts), depth), depth**-0.5))

    def router(self, name: str, *shape: int) -> PackedWeight:  # noqa: ARG002 (the protocol's)
        weight = self._draw(shape, shape[-1] ** -0.5)
        return pack(weight if uses_triton(self._device) else weight.float())

    def experts(self, num_experts: int, *parts: tuple[str, int, int]) -> Experts:
        depth = parts[0][2]
        stack = self._draw((num_experts, sum(rows for _, rows, _ in parts), depth), depth**-0.5)
        return stack if uses_triton(self._device) else [pack(expert) for expert in stack]

    def shared(self, plain: Tensor) -> PackedWeight:
        return pack(plain.mul_(plain.shape[1] ** -0.5), keep_plain=True)

    def _draw(self, shape: tuple[int, ...], scale: float) -> Tensor:
        drawn = torch.empty(shape, dtype=self._dtype, device=self._device)
        return drawn.normal_(0.0, scale, generator=self._generator)


def load_shape(name: str, *, dtype: str, device: str) -> LoadedModel:
    """A model of shape `name` with random weights and a tokenizer that knows no text.

    Raises:
        ConfigError: an unknown shape, or a dtype or device that cannot be used.
    """
    if name not in SHAPES:
        raise ConfigError(f"There is no shape {name!r}; there are {', '.join(SHAPES)}.")
    on = choose_device(device)
    config = read_config(SHAPES[name])
    model = family(config.family).build(config, RandomWeights(choose_dtype(dtype, on), on))
    backend = tokenizers.Tokenizer(models.BPE({}, []))
    backend.decoder = decoders.ByteLevel()
    return LoadedModel(model, Tokenizer(backend), name)
