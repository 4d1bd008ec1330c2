"""Folders as people have them: files and flags that contradict each other, one tensor for both ends, damage that is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from specdec.errors import ConfigError
from specdec.models.base import Model
from specdec.models.checkpoint import SafetensorsCheckpoint
from specdec.models.info import describe
from specdec.models.loader import load_model, read_source_config
from specdec.models.source import resolve

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENS = list(range(20, 60))
AllLogits = Callable[[Model, list[int]], Tensor]
TinyCheckpoint = Callable[..., Path]


@pytest.fixture
def folder(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model"))


def load(folder: Path) -> Model:
    return load_model(resolve(str(folder)), dtype="float32", device="cpu")


def edit(folder: Path, **fields: Any) -> Path:
    """Change config.json; a field of value ... is taken out."""
    path = folder / "config.json"
    found = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not ...}))
    return folder


def change(folder: Path, **tensors: Tensor | None) -> Path:
    path = folder / "model.safetensors"
    found = load_file(path) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, path, metadata={"format": "pt"})
    return folder


def theirs(folder: Path) -> Tensor:
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        logits: Tensor = model(torch.tensor([TOKENS])).logits[0].float()
    return logits


def test_a_head_of_its_own_counts_whatever_the_flag_says(folder: Path, all_logits: AllLogits) -> None:
    edit(folder, tie_word_embeddings=True)
    model = load(folder)
    assert torch.allclose(all_logits(model, TOKENS), theirs(folder), atol=1e-4)
    assert model.config.tie_word_embeddings is False


def test_a_head_that_is_the_embedding_is_kept_once(folder: Path, all_logits: AllLogits) -> None:
    embedding = load_file(folder / "model.safetensors")[EMBEDDING]
    apart = all_logits(load(change(folder, lm_head__weight=embedding.clone())), TOKENS)
    model = load(edit(folder, tie_word_embeddings=True))
    assert model.config.tie_word_embeddings is True
    assert torch.equal(all_logits(model, TOKENS), apart)
    untied = load(edit(folder, tie_word_embeddings=False)).config
    assert describe(untied, "untied").num_parameters - describe(model.config, "tied").num_parameters == embedding.numel()


@pytest.mark.parametrize("flag", [True, ...])
def test_one_tensor_for_both_ends_may_have_either_name(flag: object, folder: Path, all_logits: AllLogits) -> None:
    embedding = load_file(folder / "model.safetensors")[EMBEDDING]
    edit(folder, tie_word_embeddings=flag)
    as_embedding = all_logits(load(change(folder, lm_head__weight=None)), TOKENS)
    change(folder, model__embed_tokens__weight=None, lm_head__weight=embedding)
    assert torch.equal(all_logits(load(folder), TOKENS), as_embedding)
    with pytest.raises(ConfigError, match=rf"no tensor {EMBEDDING}.*tie_word_embeddings"):
        load(edit(folder, tie_word_embeddings=False))


OLD = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_scaling": OLD},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 700.0},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 700.0},
        {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 3.0}},
        {
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
            "original_max_position_embeddings": 64,
        },
    ],
)
def test_old_and_new_keys_are_merged_as_transformers_merges_them(
    fields: dict[str, Any], folder: Path, all_logits: AllLogits
) -> None:
    edit(folder, rope_parameters={"rope_type": "default", "rope_theta": 300.0}, **fields)
    assert torch.allclose(all_logits(load(folder), TOKENS), theirs(folder), atol=1e-4)


def test_two_names_of_a_number_that_differ_are_refused(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("qwen3_moe"), tmp_path / "moe"))
    with pytest.raises(ConfigError, match=r"num_experts and num_local_experts .* contradict"):
        load(edit(folder, num_experts=8, num_local_experts=4))


def test_a_window_that_no_flag_turns_on_is_off_where_transformers_has_it_off(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("qwen2"), tmp_path / "qwen2"))
    load(edit(folder, use_sliding_window=..., sliding_window=64, layer_types=...))
    mistral = Path(shutil.copytree(tiny_checkpoint("mistral"), tmp_path / "mistral"))
    load(edit(mistral, sliding_window=...))  # 4096, more than it has positions
    with pytest.raises(ConfigError, match="sliding_window 4096"):
        load(edit(mistral, max_position_embeddings=8192))


def test_a_stale_index_beside_a_whole_file_does_not_count(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {EMBEDDING: "model-00001-of-00002.safetensors"}}))
    load(folder)
    (folder / "model.safetensors").rename(folder / "weights_of_mine.safetensors")
    with pytest.raises(ConfigError, match=r"model-00001-of-00002\.safetensors is missing, and .*index\.json lists it"):
        load(folder)
    index.write_text(json.dumps({"weight_map": dict.fromkeys([EMBEDDING, HEAD], "weights_of_mine.safetensors")}))
    load(folder)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{}", "has no weight_map"),
        ("<html>", "is not JSON"),
        ("[]", "holds no JSON object"),
        ('{"weight_map": {"a": 3}}', "has no weight_map"),
        ('{"weight_map": {"a": "../secret"}}', r"lists \.\./secret, which is not in its folder"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
)
def test_a_damaged_index_is_named(content: str, named: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ConfigError, match=rf"index\.json .*{named}"):
        load(folder)


def _header(path: Path, **fields: Any) -> None:
    """Change what the header says of one tensor."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header[HEAD] |= fields
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + data[8 + size :])


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:8] + b"x" * 100),
        lambda path: path.write_bytes((2).to_bytes(8, "little") + b"[]"),
        lambda path: path.write_bytes((2**63).to_bytes(8, "little") + b"{}"),
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        lambda path: path.write_bytes(b""),
        lambda path: _header(path, data_offsets=[0, 10**18]),
        lambda path: _header(path, data_offsets=[10, 4]),
        lambda path: _header(path, shape=[10**9, 10**9]),
        lambda path: _header(path, shape=None),
        lambda path: _header(path, shape=[-1, 64]),
    ],
)
def test_a_damaged_safetensors_file_is_one_line_that_names_it(damage: Callable[[Path], object], folder: Path) -> None:
    damage(folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"model\.safetensors") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": 10**15}, "hidden_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "no tensor model.layers.3"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": 3}, "no multiple of num_key_value_heads"),
        ({"head_dim": 15}, "head_dim"),
        ({"head_dim": 10**9}, "head_dim"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"vocab_size": [1]}, "vocab_size"),
        ({"eos_token_id": "two"}, "eos_token_id"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta"),
        ({"rope_parameters": "yarn"}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "linear", "factor": -2}}, "factor"),
    ],
)
def test_absurd_numbers_in_a_config_are_named(fields: dict[str, Any], named: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        load(edit(folder, **fields))


def test_a_config_that_is_no_object_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")
    with pytest.raises(ConfigError, match=r"config\.json is damaged: it holds no JSON object but a list"):
        load(folder)


def test_what_does_not_fit_is_refused_before_a_tensor_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> Tensor:
        raise AssertionError("nothing may be read")

    monkeypatch.setattr(SafetensorsCheckpoint, "read", read)
    with pytest.raises(ConfigError, match=r"no tensor model\.layers\.3\."):
        load(edit(folder, num_hidden_layers=4))
    with pytest.raises(ConfigError, match=r"model\.norm\.weight has shape"):
        load(change(edit(folder, num_hidden_layers=3), model__norm__weight=torch.ones(3)))
    with pytest.raises(ConfigError, match=r"Tensor lm_head\.weight has dtype I32, which is not supported"):
        load(change(folder, model__norm__weight=torch.ones(64), lm_head__weight=torch.ones(267, 64, dtype=torch.int32)))


def test_a_scaled_rotation_reaches_farther_than_its_file(folder: Path) -> None:
    def longest(scaling: dict[str, Any], positions: int = 64) -> int:
        edit(folder, rope_parameters=..., rope_scaling=scaling, max_position_embeddings=positions)
        return read_source_config(resolve(str(folder))).longest

    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    assert longest(yarn) == longest(yarn, 256) == 256
    assert longest(yarn, 1024) == 1024
    assert longest({"type": "linear", "factor": 2.0}) == 128
