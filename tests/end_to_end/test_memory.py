"""Memory: what an engine is given, what it makes of it, and what it says about that."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from specdec import assemble
from specdec.cache.attention import AttentionCache
from specdec.cli.info import banner
from specdec.config import EngineConfig

TinyCheckpoint = Callable[..., Path]


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: TinyCheckpoint) -> assemble.LoadedModel:
    return assemble.load(EngineConfig(model=str(tiny_checkpoint("llama")), dtype="float32", device="cpu"))


def sized(loaded: assemble.LoadedModel, config: EngineConfig, num_pages: int) -> assemble.Assembled:
    cache_gb = assemble.cache_gb_for(config, loaded.model, num_pages)
    return assemble.build(replace(config, cache_gb=cache_gb), loaded=loaded)


@pytest.mark.parametrize("num_pages", [8, 21])
@pytest.mark.parametrize("drafted", [False, True], ids=["alone", "with a draft model"])
def test_the_least_memory_holds_so_many_pages(
    loaded: assemble.LoadedModel, tiny_checkpoint: TinyCheckpoint, num_pages: int, drafted: bool
) -> None:
    draft_model = str(tiny_checkpoint("llama", seed=1, num_hidden_layers=1)) if drafted else None
    drafters = ("draft-model",) if drafted else ()
    config = EngineConfig(
        model=loaded.name, dtype="float32", device="cpu", page_size=16, drafters=drafters, draft_model=draft_model, max_batch=2
    )
    assert sized(loaded, config, num_pages).engine.status().pages_total == num_pages


def test_fewer_pages_than_an_engine_starts_with_are_not_asked_for(loaded: assemble.LoadedModel) -> None:
    config = EngineConfig(model=loaded.name, dtype="float32", device="cpu", page_size=16, drafters=(), max_batch=2)
    assert sized(loaded, config, 1).engine.status().pages_total == 8


def test_states_have_their_room_beside_the_pages(loaded: assemble.LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AttentionCache, "slot_bytes", staticmethod(lambda *_: 1_000_000))
    config = EngineConfig(model=loaded.name, dtype="float32", device="cpu", page_size=16, drafters=(), max_batch=2)
    assembled = sized(loaded, config, 10)
    assert assembled.engine.status().pages_total == 10
    assert assembled.state_bytes == 3 * 1_000_000 * (2 + 1 + 2 + 1), "of both slots, of two prefixes, of a spare one each"
    of_page = 3 * 2 * 2 * 16 * 16 * 4  # layers, K and V, heads, head size, tokens, bytes
    assert assembled.page_bytes == of_page
    assert "caches 0 MB for 160 tokens and 18 MB for states" in banner(assembled)
