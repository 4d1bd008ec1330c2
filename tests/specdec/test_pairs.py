"""Draft pairs and padded vocabularies: tokenizers are compared, not sizes; what is no token is neither drawn nor drafted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from specdec.assemble import load
from specdec.config import EngineConfig
from specdec.errors import ConfigError
from specdec.llm import LLM
from specdec.models.checkpoint import SafetensorsCheckpoint
from specdec.models.source import resolve
from specdec.request import Request, SamplingParams
from specdec.text.pair import draftable
from specdec.text.tokenizer import Tokenizer

TinyCheckpoint = Callable[..., Path]
NAMED = 267  # tokens of the tests' tokenizer


def loud(folder: Path, to: Path) -> Path:
    """The same model, but that it would always say an id of its padding."""
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    tensors["lm_head.weight"][NAMED:] = 50 * tensors["lm_head.weight"][5]
    tensors["lm_head.weight"][NAMED + 1 :] *= -1
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def config(target: Path, draft: Path | None = None, acceptance: str = "shared-noise") -> EngineConfig:
    return EngineConfig(
        model=str(target),
        draft_model=None if draft is None else str(draft),
        drafters=() if draft is None else ("draft-model",),
        acceptance=acceptance,
        adaptive=False,
        dtype="float32",
        cache_gb=0.02,
        num_threads=1,
    )


def answers(engine: EngineConfig, prompt: tuple[int, ...] = (5, 6, 7)) -> list[list[int]]:
    llm = LLM.from_config(engine)
    wishes = [SamplingParams(temperature=heat, seed=3, max_tokens=24, ignore_eos=True, logprobs=2) for heat in (0.0, 1.5)]
    requests = [Request(request_id=str(i), prompt_ids=prompt, sampling=wish) for i, wish in enumerate(wishes)]
    completions = llm.generate(requests)
    assert all(token < NAMED for done in completions for entry in done.logprobs for token, _ in entry.top)
    return [done.token_ids for done in completions]


def test_ids_of_the_padding_are_never_emitted(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    padded = loud(tiny_checkpoint("llama", vocab_size=280), tmp_path / "loud")
    assert all(token < NAMED for ids in answers(config(padded)) for token in ids)


@pytest.mark.parametrize("acceptance", ["shared-noise", "rejection"])
@pytest.mark.parametrize(("target", "draft"), [(272, NAMED), (NAMED, 272), (280, 272)])
def test_one_tokenizer_in_two_sizes_of_padding_makes_a_pair(
    target: int, draft: int, acceptance: str, tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    large = tiny_checkpoint("llama", vocab_size=target)
    small = tiny_checkpoint("llama", seed=1, vocab_size=draft)
    small = loud(small, tmp_path / "loud") if draft > NAMED else small
    found, plain = answers(config(large, small, acceptance)), answers(config(large))
    assert found[0] == plain[0]
    if acceptance == "shared-noise":
        assert found == plain


def test_ids_of_the_padding_are_never_drafted(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    """A draft model that is the target itself is always right, unless it drafts its padding."""
    target = tiny_checkpoint("llama", vocab_size=280)
    llm = LLM.from_config(config(target, loud(target, tmp_path / "loud")))
    sampling = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    stats = llm.generate([Request(request_id="1", prompt_ids=(5, 6, 7), sampling=sampling)])[0].stats
    assert stats.num_accepted_tokens > 12


def test_a_prompt_may_have_ids_that_the_draft_model_does_not_know(tiny_checkpoint: TinyCheckpoint) -> None:
    large, small = tiny_checkpoint("llama", vocab_size=272), tiny_checkpoint("llama", seed=1)
    assert answers(config(large, small), (271, 5, 270)) == answers(config(large), (271, 5, 270))


def test_another_tokenizer_of_the_same_size_is_refused_before_weights_are_read(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "other"))
    fields = json.loads((folder / "tokenizer.json").read_text())
    vocab = fields["model"]["vocab"]
    vocab["A"], vocab["B"] = vocab["B"], vocab["A"]
    (folder / "tokenizer.json").write_text(json.dumps(fields))

    def read(*_: object) -> torch.Tensor:
        raise AssertionError("nothing may be read")

    monkeypatch.setattr(SafetensorsCheckpoint, "read", read)
    with pytest.raises(ConfigError, match=r"has another tokenizer: token .* is 'B' there and 'A' in the target"):
        load(config(tiny_checkpoint("llama"), folder))


def test_tokens_that_one_of_a_pair_lacks_are_not_drafted(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "more"))
    more = Tokenizer.load(resolve(str(folder)))._backend
    more.add_special_tokens(["<extra>"])
    more.save(str(folder / "tokenizer.json"))
    less, more_tokens = Tokenizer.load(resolve(str(tiny_checkpoint("llama")))), Tokenizer.load(resolve(str(folder)))
    assert draftable(less, more_tokens) == draftable(more_tokens, less) == set(range(NAMED))
    assert draftable(more_tokens, more_tokens) == set(range(NAMED + 1))


def test_lengths_are_refused_or_granted_before_weights_are_read(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "scaled"))
    fields = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 64}
    fields["rope_parameters"] = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    (folder / "config.json").write_text(json.dumps(fields))
    engine = EngineConfig(model=str(folder), dtype="float32", drafters=(), cache_gb=0.02, num_threads=1, max_model_len=256)
    sampling = SamplingParams(temperature=0, max_tokens=120, ignore_eos=True)
    done = LLM.from_config(engine).generate([Request(request_id="1", prompt_ids=(5,) * 100, sampling=sampling)])
    assert len(done[0].token_ids) == 120
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="max_model_len is 257, but the model knows 256 positions"):
        load(EngineConfig(model=str(folder), max_model_len=257))
