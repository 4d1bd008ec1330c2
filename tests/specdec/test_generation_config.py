"""A model's own sampling defaults: read as they are, refused by name where they cannot be, never drawn where suppressed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from specdec.config import EngineConfig
from specdec.errors import ConfigError
from specdec.llm import LLM
from specdec.models.generation_config import read_sampling_defaults
from specdec.models.source import resolve
from specdec.request import Request, SamplingDefaults, SamplingParams

TinyCheckpoint = Callable[..., Path]


@pytest.fixture
def folder(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model"))


def recommended(folder: Path, **fields: object) -> SamplingDefaults:
    (folder / "generation_config.json").write_text(json.dumps(fields))
    return read_sampling_defaults(resolve(str(folder)))


def test_what_the_file_says_is_read_and_nothing_else(folder: Path) -> None:
    assert recommended(folder, eos_token_id=2, do_sample=True) == SamplingDefaults()
    assert recommended(folder, eos_token_id=2).given() == {}
    found = recommended(folder, temperature=0.6, top_k=20, top_p=0.95, min_p=None, repetition_penalty=1, suppress_tokens=[5])
    assert found.given() == {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "repetition_penalty": 1.0,
        "suppress_tokens": (5,),
    }
    assert recommended(folder, top_k=-1).top_k == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", "warm"), ("top_p", 1.5), ("repetition_penalty", 0), ("suppress_tokens", 7), ("min_p", True)],
)
def test_what_cannot_be_is_refused_by_name(folder: Path, field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"{field}.*--generation-config none"):
        recommended(folder, **{field: value})


def test_an_engine_knows_them_unless_told_otherwise(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"top_k": 1, "suppress_tokens": [4, 9]}')
    config = EngineConfig(model=str(folder), dtype="float32", drafters=(), cache_gb=0.02, num_threads=1)
    llm = LLM.from_config(config)
    assert llm.sampling_defaults == SamplingDefaults(top_k=1, suppress_tokens=(4, 9))
    plain = llm.generate([_asking(SamplingParams(temperature=0, max_tokens=1))])[0].token_ids
    banned = llm.generate([_asking(SamplingParams(temperature=0, max_tokens=1, suppress_tokens=tuple(plain)))])[0].token_ids
    assert banned != plain
    with pytest.raises(ConfigError, match="generation_config must be one of auto, none"):
        EngineConfig(generation_config="vllm")


def test_defaults_can_be_switched_off(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"top_k": 1}')
    config = EngineConfig(
        model=str(folder), generation_config="none", dtype="float32", drafters=(), cache_gb=0.02, num_threads=1
    )
    assert LLM.from_config(config).sampling_defaults == SamplingDefaults()


def _asking(sampling: SamplingParams) -> Request:
    return Request(request_id="1", prompt_ids=(5, 6, 7), sampling=sampling)
