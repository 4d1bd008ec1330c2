"""Every family against transformers on tiny random checkpoints, in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from specdec.models.base import Heads, Model
from specdec.models.loader import load_model
from specdec.models.source import resolve

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1}),
    "llama-no-gqa": ("llama", {"num_key_value_heads": 4}),
    "llama-odd-sizes": ("llama", {"hidden_size": 60, "intermediate_size": 77, "head_dim": 10, "num_attention_heads": 6}),
    "llama-rope-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}}),
    "llama-rope-llama3": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-rope-yarn": ("llama", {"rope_parameters": YARN_ROPE}),
    "llama-rope-yarn-not-truncated": ("llama", {"rope_parameters": YARN_ROPE | {"truncate": False, "beta_fast": 16.0}}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "qwen3-biases": ("qwen3", {"attention_bias": True}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe-some-dense": ("qwen3_moe", {"mlp_only_layers": [1], "norm_topk_prob": False}),
    "qwen3_moe-every-other": ("qwen3_moe", {"decoder_sparse_step": 2}),
    "mixtral": ("mixtral", {}),
    "olmoe": ("olmoe", {}),
    "olmoe-clipped": ("olmoe", {"clip_qkv": 0.8, "norm_topk_prob": True}),
}
# of the largest logit; float32 rounding over three layers
TOLERANCE = 1e-5

TOKENS = torch.randint(3, 260, (70,), generator=torch.Generator().manual_seed(7)).tolist()


def load(folder: Path, dtype: str = "float32") -> Model:
    return load_model(resolve(str(folder)), dtype=dtype, device="cpu")


def transformers_logits(folder: Path, dtype: torch.dtype = torch.float32) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)(torch.tensor([TOKENS])).logits[0].float()
    return logits


@pytest.mark.parametrize("case", CASES)
def test_logits_agree_with_transformers(
    case: str, tiny_checkpoint: Callable[..., Path], all_logits: Callable[[Model, list[int]], Tensor]
) -> None:
    family, overrides = CASES[case]
    folder = tiny_checkpoint(family, **overrides)
    theirs = transformers_logits(folder)
    ours = all_logits(load(folder), TOKENS)
    assert ours.dtype == torch.float32
    assert theirs.abs().max() > 0.5, "the checkpoint says something"
    assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe", "olmoe"])
def test_bfloat16_is_as_close_to_float32_as_transformers_is(
    family: str, tiny_checkpoint: Callable[..., Path], all_logits: Callable[[Model, list[int]], Tensor]
) -> None:
    folder = tiny_checkpoint(family)
    exact = transformers_logits(folder)
    theirs = (transformers_logits(folder, torch.bfloat16) - exact).abs().mean()
    ours = (all_logits(load(folder, "bfloat16"), TOKENS) - exact).abs().mean()
    assert ours <= 1.2 * theirs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe", "mixtral", "olmoe"])
def test_a_row_has_the_same_bits_beside_any_number_of_rows(
    family: str, dtype: str, tiny_checkpoint: Callable[..., Path]
) -> None:
    """Everything but attention, which is the context's: each row attends to itself alone."""
    model = load(tiny_checkpoint(family), dtype)

    class Alone:
        def __init__(self, positions_R: Tensor) -> None:
            self.positions_R = positions_R

        def cache(self, layer: int) -> "Alone":
            return self

        def attend(self, qkv_RC: Tensor, heads: Heads) -> Tensor:
            q_RHD, _, v_RKD = heads.split(qkv_RC, heads.rope.rotation(self.positions_R))
            return (v_RKD.repeat_interleave(q_RHD.shape[1] // v_RKD.shape[1], 1) + q_RHD).flatten(1)

        def capture(self, name: str, hidden_RE: Tensor) -> None:
            pass

    tokens, positions = torch.tensor(TOKENS), torch.arange(70) * 7
    with torch.inference_mode():
        whole = model.logits(model.forward(tokens, Alone(positions)))
        for first, count in [(0, 1), (69, 1), (3, 2), (11, 3), (5, 7), (20, 16), (1, 17), (30, 40)]:
            rows = slice(first, first + count)
            part = model.logits(model.forward(tokens[rows], Alone(positions[rows])))
            assert torch.equal(part, whole[rows]), (first, count)


def test_decoding_token_by_token_gives_the_logits_of_one_pass(
    tiny_checkpoint: Callable[..., Path], all_logits: Callable[[Model, list[int]], Tensor], plain_context: Any
) -> None:
    model = load(tiny_checkpoint("llama"))
    ctx = plain_context(model)
    with torch.inference_mode():
        steps = [model.logits(model.forward(torch.tensor([t]), ctx.at(i, 1))) for i, t in enumerate(TOKENS)]
    torch.testing.assert_close(torch.cat(steps), all_logits(model, TOKENS), rtol=1e-5, atol=1e-5)


def test_captured_states_are_the_residual_stream_after_each_layer(
    tiny_checkpoint: Callable[..., Path], plain_context: Any
) -> None:
    folder = tiny_checkpoint("qwen3")
    model = load(folder)
    ctx = plain_context(model).at(0, len(TOKENS))
    with torch.inference_mode():
        model.forward(torch.tensor(TOKENS), ctx)
        theirs = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([TOKENS]), output_hidden_states=True).hidden_states
    names = ["embedding", "layers.0", "layers.1", "layers.2"]
    assert list(ctx.captured) == names
    for name, expected in zip(names[:-1], theirs, strict=False):  # transformers puts its final norm on the last one
        torch.testing.assert_close(ctx.captured[name], expected[0], rtol=1e-5, atol=1e-5)
