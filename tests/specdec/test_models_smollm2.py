"""The small real model against transformers, which reads the same weights written out as a folder."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from specdec.models.base import Model, ModelConfig
from specdec.models.checkpoint import SafetensorsCheckpoint
from specdec.models.loader import load_model, read_source_config
from specdec.models.source import Source, resolve
from specdec.text.tokenizer import Tokenizer

pytestmark = pytest.mark.weights

PROMPTS = [
    "Write a haiku about rain on a tin roof.",
    "def fibonacci(n):\n    ",
    "List three uses for an old newspaper.",
    "What is 17 times 23? Show your steps.",
    "Translate to French: The library opens at nine.",
    "Explain why the sky looks blue to a child of six.",
    '{"name": "Ada", "born": 1815, "fields": [',
    "Summarise: The ferry was late, the crew were tired, and the last bus had gone.",
    "Once upon a time, a lighthouse keeper found a letter",
    "Sort these words: pear, apple, fig, plum, apple.",
    "SELECT name, COUNT(*) FROM visits WHERE",
    "Dear Sir or Madam, I am writing to complain about",
    "Who wrote Romeo and Juliet?",
    "# Shopping list\n- milk\n- eggs\n-",
    "Fix the grammar: me and him goes to school yesterday.",
    "The three laws of motion are",
    "Give me a name for a bakery that sells only rye bread.",
    "1, 1, 2, 3, 5, 8,",
    "Compare a bicycle with a train in two sentences.",
    "<html>\n<head>\n<title>",
]
NUM_TOKENS = 64
# logits of two float32 implementations differ by about 1e-4 here; a gap below this is a tie that either may win
TIE = 1e-3
CACHE_GB = 0.1


@pytest.fixture(scope="module")
def source(smollm2: str) -> Source:
    return resolve(smollm2)


@pytest.fixture(scope="module")
def model(source: Source) -> Model:
    return load_model(source, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def tokenizer(source: Source) -> Tokenizer:
    return Tokenizer.load(source)


def _transformers_config(config: ModelConfig) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        tie_word_embeddings=config.tie_word_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
        bos_token_id=1,
        eos_token_id=list(config.eos_token_ids),
    )


@pytest.fixture(scope="module")
def theirs(source: Source) -> Any:
    """transformers' model of the checkpoint. Its own GGUF reader takes a minute, so it is given the tensors of ours."""
    if not source.is_gguf:
        return AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32).eval()
    with torch.device("meta"):
        model = LlamaForCausalLM(_transformers_config(read_source_config(source)))
    tensors = {name: source.gguf.read(name, torch.float32) for name in source.gguf.names()}
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = LlamaRotaryEmbedding(model.config)
    return model.eval()


def test_the_weights_are_read_in_the_right_order(
    model: Model, tokenizer: Tokenizer, all_logits: Callable[[Model, list[int]], Tensor]
) -> None:
    """Rows of the query and key weights are stored in another order in a GGUF file; in the wrong one, nothing is known."""
    for prompt, answer in [("The capital of France is", " Paris"), ("1, 2, 3, 4, 5, 6, 7,", " "), ("Once upon a", " time")]:
        best = int(all_logits(model, tokenizer.encode(prompt))[-1].argmax())
        assert tokenizer.decode([best]) == answer


def test_logits_agree_with_transformers(
    model: Model, theirs: Any, tokenizer: Tokenizer, all_logits: Callable[[Model, list[int]], Tensor]
) -> None:
    ids = tokenizer.encode(" ".join(PROMPTS))[:300]
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0]
    # thirty layers of float32 rounding
    assert (all_logits(model, ids) - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_greedy_continuations_equal_transformers(
    model: Model,
    theirs: Any,
    tokenizer: Tokenizer,
    all_logits: Callable[[Model, list[int]], Tensor],
    capsys: pytest.CaptureFixture[str],
) -> None:
    ties = []
    for prompt in PROMPTS:
        ids = tokenizer.chat([{"role": "user", "content": prompt}])
        with torch.inference_mode():
            out = theirs.generate(
                torch.tensor([ids]), max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS, do_sample=False, pad_token_id=0
            )
        tie = _first_difference(model, all_logits(model, out[0].tolist()), len(ids), out[0])
        if tie is not None:
            step, gap = tie
            ties.append(f"{prompt!r}: step {step}, gap {gap:.2e}")
            assert gap < TIE, ties[-1]
    with capsys.disabled():
        print(f"\nnear-ties: {ties or 'none'}")
    assert len(ties) <= 2


def _first_difference(model: Model, logits_RV: Tensor, num_prompt: int, tokens_R: Tensor) -> tuple[int, float] | None:
    """The first step at which greedy decoding would have emitted another token, and how far apart the two logits are.

    Greedy decoding equals `tokens_R` up to the first position whose argmax is not the next token.
    """
    logits_RV = logits_RV.clone()
    logits_RV[:, list(model.config.eos_token_ids)] = -torch.inf  # as transformers does below min_new_tokens
    got, want = logits_RV[num_prompt - 1 : -1].argmax(-1), tokens_R[num_prompt:]
    different = (got != want).nonzero()
    if not len(different):
        return None
    step = int(different[0])
    row = logits_RV[num_prompt - 1 + step]
    return step, float(row[got[step]] - row[want[step]])


def test_a_folder_of_the_same_weights_gives_the_same_bits(
    model: Model, theirs: Any, tmp_path: Path, all_logits: Callable[[Model, list[int]], Tensor]
) -> None:
    theirs.config.save_pretrained(tmp_path)
    names = {name: tensor.contiguous() for name, tensor in theirs.state_dict().items() if name != "lm_head.weight"}
    save_file(names, tmp_path / "model.safetensors")
    with SafetensorsCheckpoint(tmp_path) as checkpoint:
        assert checkpoint.names() == names.keys()
    copy = load_model(resolve(str(tmp_path)), dtype="float32", device="cpu")
    ids = list(range(100, 140))
    assert torch.equal(all_logits(copy, ids), all_logits(model, ids))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_is_that_of_one_copy_of_the_weights_and_the_cache(smollm2: str, dtype: str) -> None:
    code = (
        "import torch\n"
        "from specdec.assemble import build\n"
        "from specdec.config import EngineConfig\n"
        f"config = EngineConfig(model={smollm2!r}, dtype={dtype!r}, device='cpu', cache_gb={CACHE_GB}, adaptive=False)\n"
        "assembled = build(config)\n"
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(assembled.model_info.weight_bytes(getattr(torch, assembled.dtype)), int(peak) * 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    weights, peak = map(int, done.stdout.split())
    assert peak <= weights + CACHE_GB * 1e9 + 600 * 2**20
