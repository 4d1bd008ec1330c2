"""Checkpoints in their forms: sharded, fused experts, GGUF; and what is wrong with one, named."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file
from torch import Tensor

from specdec.cache.kinds import page_bytes
from specdec.errors import ConfigError
from specdec.models.base import Model
from specdec.models.info import describe, model_info
from specdec.models.loader import choose_device, choose_dtype, load_model
from specdec.models.registry import read_config
from specdec.models.source import resolve

TOKENS = list(range(20, 60))
AllLogits = Callable[[Model, list[int]], Tensor]
TinyCheckpoint = Callable[..., Path]


def load(folder: Path) -> Model:
    return load_model(resolve(str(folder)), dtype="float32", device="cpu")


def copied(folder: Path, to: Path, tensors: dict[str, Tensor] | None = None, **fields: Any) -> Path:
    """A checkpoint with other tensors or config fields; a field of value None is taken out."""
    config = json.loads((folder / "config.json").read_text()) | fields
    (to / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    save_file(load_file(folder / "model.safetensors") if tensors is None else tensors, to / "model.safetensors")
    return to


def test_shards_give_the_same_model(tiny_checkpoint: TinyCheckpoint, tmp_path: Path, all_logits: AllLogits) -> None:
    whole = tiny_checkpoint("llama")
    tensors = sorted(load_file(whole / "model.safetensors").items())
    (tmp_path / "config.json").write_text((whole / "config.json").read_text())
    weight_map: dict[str, str] = {}
    for shard in range(3):
        name = f"model-{shard}.safetensors"
        part = dict(tensors[shard::3])
        save_file(part, tmp_path / name)
        weight_map |= dict.fromkeys(part, name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(all_logits(load(tmp_path), TOKENS), all_logits(load(whole), TOKENS))
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model-1\.safetensors is missing"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("family", "block", "names"),
    [
        ("qwen3_moe", "mlp", ("gate_proj", "up_proj", "down_proj")),
        ("olmoe", "mlp", ("gate_proj", "up_proj", "down_proj")),
        ("mixtral", "block_sparse_moe", ("w1", "w3", "w2")),
    ],
)
def test_fused_experts_give_the_same_model(
    family: str, block: str, names: tuple[str, str, str], tiny_checkpoint: TinyCheckpoint, tmp_path: Path, all_logits: AllLogits
) -> None:
    whole = tiny_checkpoint(family)
    tensors = load_file(whole / "model.safetensors")
    assert f"model.layers.0.{block}.experts.0.{names[0]}.weight" in tensors, "transformers writes single experts"
    for layer in range(3):
        prefix = f"model.layers.{layer}"
        count = sum(name.startswith(f"{prefix}.{block}.experts.") for name in tensors) // 3
        gate, up, down = (
            torch.stack([tensors.pop(f"{prefix}.{block}.experts.{i}.{name}.weight") for i in range(count)]) for name in names
        )
        tensors[f"{prefix}.mlp.gate.weight"] = tensors.pop(f"{prefix}.{block}.gate.weight")
        tensors[f"{prefix}.mlp.experts.gate_up_proj"] = torch.cat((gate, up), 1)
        tensors[f"{prefix}.mlp.experts.down_proj"] = down
    fused = copied(whole, tmp_path, tensors)
    assert torch.equal(all_logits(load(fused), TOKENS), all_logits(load(whole), TOKENS))


def test_a_config_of_transformers_4_means_the_same(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, all_logits: AllLogits
) -> None:
    rope = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}
    new = tiny_checkpoint("llama", rope_parameters=rope)
    old = copied(new, tmp_path, rope_parameters=None, rope_theta=500.0, rope_scaling={"type": "linear", "factor": 2.0})
    assert torch.equal(all_logits(load(old), TOKENS), all_logits(load(new), TOKENS))


@pytest.mark.parametrize(
    ("family", "fields", "named"),
    [
        ("llama", {"model_type": "mamba"}, "model_type 'mamba'"),
        ("llama", {"model_type": None}, "model_type"),
        ("llama", {"hidden_size": None}, "hidden_size"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ("llama", {"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "'longrope'"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("mixtral", {"sliding_window": 64}, "sliding_window 64"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "layer_types": None}, "sliding_window 64"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ("mixtral", {"num_local_experts": None}, "num_local_experts"),
        ("llama", {"intermediate_size": 95}, r"mlp\.gate_proj\.weight has shape \[96, 64\].*\[95, 64\]"),
        ("llama", {"num_hidden_layers": 4}, r"no tensor model\.layers\.3\.self_attn\.q_proj\.weight"),
        ("llama", {"num_hidden_layers": 2}, r"tensor model\.layers\.2\."),
        ("qwen2", {"model_type": "llama"}, r"self_attn\.k_proj\.bias"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    family: str, fields: dict[str, Any], named: str, tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=named):
        load(copied(tiny_checkpoint(family), tmp_path, **fields))


def test_a_window_that_is_off_is_no_obstacle(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    load(copied(tiny_checkpoint("qwen2"), tmp_path, use_sliding_window=False, sliding_window=64))


def test_a_damaged_file_is_refused(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    folder = copied(tiny_checkpoint("llama"), tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="ends in the middle of tensor"):
        load(folder)
    path.write_bytes(b"\x00" * 4)
    with pytest.raises(ConfigError, match="not a safetensors file"):
        load(folder)


def test_stop_tokens_come_from_the_generation_config_first(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    folder = copied(tiny_checkpoint("llama"), tmp_path)
    assert load(folder).config.eos_token_ids == (2,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    assert load(folder).config.eos_token_ids == (2, 5)


def test_progress_counts_every_tensor(tiny_checkpoint: TinyCheckpoint) -> None:
    seen: list[tuple[str, int | None, int]] = []

    class Recorder:
        @contextmanager
        def task(self, description: str, total: int | None) -> Iterator[Callable[[int], None]]:
            done = 0

            def advance(units: int) -> None:
                nonlocal done
                done += units

            yield advance
            seen.append((description, total, done))

    folder = tiny_checkpoint("llama")
    load_model(resolve(str(folder)), dtype="float32", device="cpu", progress=Recorder())
    count = len(load_file(folder / "model.safetensors"))
    assert seen == [("Loading weights", count, count)]


def test_dtype_and_device_names() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("float16", cpu) == torch.float16
    assert choose_dtype("auto", cpu) in (torch.float32, torch.bfloat16)
    with pytest.raises(ConfigError, match="dtype must be"):
        choose_dtype("int8", cpu)
    for name in ("tpu", "meta", "cuda:99"):
        with pytest.raises(ConfigError, match="device"):
            choose_device(name)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "mixtral", "olmoe"])
def test_info_counts_what_the_checkpoint_holds(family: str, tiny_checkpoint: TinyCheckpoint) -> None:
    folder = tiny_checkpoint(family)
    info = model_info(resolve(str(folder)))
    assert info.num_parameters == sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    assert (info.num_active_parameters < info.num_parameters) == (info.config.moe is not None)
    head_dim = info.config.head_dim
    assert page_bytes(info.cache_specs, 1, torch.bfloat16) == 3 * 2 * 2 * head_dim * 2


def test_info_of_a_large_model_needs_its_config_alone() -> None:
    config = read_config(
        {
            "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 48,
            "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144,
            "rms_norm_eps": 1e-6, "max_position_embeddings": 40960, "num_experts": 128, "num_experts_per_tok": 8,
            "moe_intermediate_size": 768, "norm_topk_prob": True,
        }
    )  # fmt: skip
    info = describe(config, "Qwen3-30B-A3B")
    assert info.num_parameters == 30_532_122_624
    assert info.num_active_parameters == 3_353_032_704  # the model card says 30.5 and 3.3 billion


# the llama family's names in a GGUF file, beside those of the layers' norms and projections
_GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "block_sparse_moe.gate": "ffn_gate_inp",
}


def _interleaved(rows: Tensor, num_heads: int) -> Tensor:
    """llama.cpp's order of a head's rotation halves."""
    return rows.view(num_heads, 2, len(rows) // num_heads // 2, -1).transpose(1, 2).reshape(rows.shape)


def _gguf_tensors(tensors: dict[str, Tensor], num_experts: int) -> dict[str, Tensor]:
    out = {
        "token_embd.weight": tensors["model.embed_tokens.weight"],
        "output_norm.weight": tensors["model.norm.weight"],
        "output.weight": tensors["lm_head.weight"],
    }
    for name, tensor in tensors.items():
        if not name.startswith("model.layers."):
            continue
        layer, role = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
        heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(role)
        if role in _GGUF_NAMES:
            out[f"blk.{layer}.{_GGUF_NAMES[role]}.weight"] = _interleaved(tensor, heads) if heads else tensor
    for block in range(3 if num_experts else 0):
        for ours, theirs in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
            names = [f"model.layers.{block}.block_sparse_moe.experts.{i}.{ours}.weight" for i in range(num_experts)]
            out[f"blk.{block}.ffn_{theirs}_exps.weight"] = torch.stack([tensors[name] for name in names])
    return out


def _write_gguf(
    folder: Path,
    path: Path,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    num_experts: int = 0,
    more: Callable[[Any], object] = lambda writer: None,
    part_tensors: int = 0,
) -> dict[str, Tensor]:
    """The checkpoint as a GGUF file, in parts of so many tensors if not 0; returns its tensors as the file can tell them."""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=part_tensors)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(3)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6 if not num_experts else 1e-5)
    writer.add_rope_freq_base(10000.0 if not num_experts else 1e6)
    writer.add_eos_token_id(2)
    more(writer)
    if num_experts:
        writer.add_expert_count(num_experts)
        writer.add_expert_used_count(2)
    stored = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        quantised = tensor.ndim == 2 and ".gate." not in name
        values = dequantize(quantize(tensor.numpy(), kind), kind) if quantised else tensor.numpy()
        stored[name] = torch.from_numpy(values.copy())
    for name, tensor in _gguf_tensors(stored, num_experts).items():
        whole = tensor.ndim == 1 or "gate_inp" in name
        # quantising what was dequantised gives the same blocks again
        raw_kind = gguf.GGMLQuantizationType.F32 if whole else kind
        writer.add_tensor(name, quantize(tensor.numpy(), raw_kind), raw_dtype=raw_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_gguf_file_gives_the_same_model(
    family: str, kind: str, tiny_checkpoint: TinyCheckpoint, tmp_path: Path, all_logits: AllLogits
) -> None:
    folder = tiny_checkpoint(family)
    path = tmp_path / "model.gguf"
    stored = _write_gguf(folder, path, gguf.GGMLQuantizationType[kind], 6 if family == "mixtral" else 0)
    model = load(path)
    assert model.config.family == family
    assert model.config.eos_token_ids == (2,)
    assert torch.equal(all_logits(model, TOKENS), all_logits(load(copied(folder, tmp_path, stored)), TOKENS))


def test_a_damaged_gguf_file_is_refused(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    _write_gguf(tiny_checkpoint("llama"), path, gguf.GGMLQuantizationType.F32, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5000])
    with pytest.raises(ConfigError, match="ends in the middle of tensor"):
        load(path)
    path.write_bytes(whole[:300])
    with pytest.raises(ConfigError, match="not a whole GGUF file"):
        load(path)
    path.write_bytes(b"no model" * 10)
    with pytest.raises(ConfigError, match="not a GGUF file"):
        load(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ConfigError, match=r"model\.gguf is a Git LFS pointer"):
        load(path)


@pytest.mark.parametrize("place", [8, 16, 24], ids=["tensors", "values", "length of a key"])
def test_a_gguf_file_that_counts_more_than_it_holds_is_refused(
    place: int, tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    _write_gguf(tiny_checkpoint("llama"), path)
    whole = path.read_bytes()
    for count in (10**6, 10**15, 2**64 - 1):
        path.write_bytes(whole[:place] + count.to_bytes(8, "little") + whole[place + 8 :])
        with pytest.raises(ConfigError, match=r"model\.gguf is damaged: it is not a whole GGUF file"):
            load(path)


def test_any_part_of_a_gguf_model_leads_to_the_whole(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, all_logits: AllLogits
) -> None:
    folder = tiny_checkpoint("llama")
    _write_gguf(folder, tmp_path / "model.gguf", part_tensors=12)
    parts = sorted(tmp_path.glob("model-*-of-00003.gguf"))
    assert len(parts) == 3
    for part in parts:
        assert torch.equal(all_logits(load(part), TOKENS), all_logits(load(folder), TOKENS))
    parts[1].rename(tmp_path / "other.gguf")
    with pytest.raises(ConfigError, match=r"model-00002-of-00003\.gguf is missing"):
        load(parts[0])
    with pytest.raises(ConfigError, match="one of 3 parts, which are found by their names"):
        load(tmp_path / "other.gguf")


def _yarn(writer: Any) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(64)


SCALINGS: dict[str, tuple[Callable[[Any], object], dict[str, Any] | None]] = {
    "yarn": (_yarn, {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
    "linear": (lambda writer: writer.add_rope_scaling_factor(2.0), {"type": "linear", "factor": 2.0}),
    "older": (lambda writer: writer.add_float32("llama.rope.scale_linear", 2.0), {"type": "linear", "factor": 2.0}),
    "both": (
        lambda writer: (writer.add_float32("llama.rope.scale_linear", 8.0), writer.add_rope_scaling_factor(2.0)),
        {"type": "linear", "factor": 2.0},
    ),
    "none": (
        lambda writer: (writer.add_rope_scaling_factor(2.0), writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)),
        None,
    ),
}


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rope_scaling_in_gguf_is_that_of_a_config(
    scaling: str, tiny_checkpoint: TinyCheckpoint, tmp_path: Path, all_logits: AllLogits
) -> None:
    folder, (more, fields) = tiny_checkpoint("llama"), SCALINGS[scaling]
    _write_gguf(folder, tmp_path / "model.gguf", more=more)
    same = copied(folder, tmp_path, rope_parameters=None, rope_theta=10000.0, rope_scaling=fields)
    assert torch.equal(all_logits(load(tmp_path / "model.gguf"), TOKENS), all_logits(load(same), TOKENS))


def test_all_roles_that_end_a_turn_are_read(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    def more(writer: Any) -> None:
        writer.add_eot_token_id(7)
        writer.add_eom_token_id(9)

    _write_gguf(tiny_checkpoint("llama"), tmp_path / "model.gguf", more=more)
    assert load(tmp_path / "model.gguf").config.eos_token_ids == (2, 7, 9)
