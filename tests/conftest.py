"""Fixtures for all tests: tiny random checkpoints of every family, and the small real model."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, by whichever test comes first

TinyCheckpoint = Callable[..., Path]
_NO_NUMBER = 113  # fits a byte

_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_MERGES = [("h", "e"), ("t", "he"), ("Ġ", "the"), ("i", "n"), ("Ġ", "a"), ("1", "2"), ("e", "r"), ("Ġ", "w")]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_OF_FAMILY: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 16},
    "mistral": {"head_dim": 16, "sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "qwen3_moe": {
        "head_dim": 32,
        "moe_intermediate_size": 40,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
    },
    "mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 3},
}


def tiny_tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE: three special tokens, all bytes, a few merges."""
    pieces = _SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()) + [left + right for left, right in _MERGES]
    tokenizer = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, _MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_SPECIAL)
    return tokenizer


def _write_checkpoint(folder: Path, family: str, seed: int, overrides: dict[str, Any]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = tiny_tokenizer()
    fields = _COMMON | _OF_FAMILY[family] | {"vocab_size": tokenizer.get_vocab_size()} | overrides
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # wide enough for a peaked distribution, norms near one, biases that matter
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else noise * (0.3 if name.endswith("bias") else 0.15))
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": _SPECIAL[1], "eos_token": _SPECIAL[2], "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))


def _poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        made = make(*args, **kwargs)
        if type(made) is torch.Tensor and made.device.type != "meta":
            with torch.no_grad():
                made.fill_(torch.nan if made.is_floating_point() else True if made.dtype == torch.bool else _NO_NUMBER)
        return made

    return poisoned


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nobody has written holds NaN, and integers that are no place of anything."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    """`tiny_checkpoint(family, seed=0, **config fields)`: a float32 folder as transformers writes it, made once per session."""
    made: dict[str, Path] = {}

    def make(family: str, seed: int = 0, **overrides: Any) -> Path:
        key = json.dumps([family, seed, overrides], sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp(family)
            _write_checkpoint(folder, family, seed, overrides)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session", autouse=True)
def measurements_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests leave the user's cache alone, and find nothing there."""
    folder = tmp_path_factory.mktemp("measurements")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("specdec.measurements.folder", lambda: folder)
        yield folder


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The name of the small real model; for tests marked `weights`."""
    return "smollm2-135m"


@pytest.fixture
def triton_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton kernels run on CPU tensors; for machines without a GPU."""
    if torch.cuda.is_available():
        pytest.skip("the GPU tests run the kernels themselves")
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    patch = interpreter._patch_lang_tensor

    def patch_index(tensor: Any, scope: Any) -> None:
        """Triton 3.6 holds scalars as arrays of one element, which numpy 2.4 no longer turns into integers."""
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_index)
