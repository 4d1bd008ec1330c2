"""`specdec bench tune` on a GPU: tiles are found and kept, and no token changes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from specdec import assemble, user_tiles
from specdec.bench import tune
from specdec.config import EngineConfig
from specdec.kernels.tile_tables import Product, Tile, instead, read
from specdec.llm import LLM
from specdec.progress import NoProgress
from specdec.request import Request, SamplingParams

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def answers(loaded: assemble.LoadedModel) -> list[list[int]]:
    config = EngineConfig(model=loaded.name, dtype="bfloat16", device="cuda", cache_gb=0.05, drafters=("ngram",))
    llm = LLM(assemble.build(config, loaded=loaded))
    sampling = SamplingParams(max_tokens=24, temperature=1.0, ignore_eos=True)
    requests = [
        Request(request_id=str(i), prompt_ids=tuple(range(3 + i, 30)), sampling=replace(sampling, seed=i)) for i in range(5)
    ]
    return [done.token_ids for done in llm.generate(requests)]


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_tuning_changes_no_token(
    family: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path))
    loaded = assemble.load(EngineConfig(model=str(tiny_checkpoint(family)), dtype="bfloat16", device="cuda"))
    before = answers(loaded)
    path = user_tiles.table_path(loaded.model.device)
    data = tune.run(tune.TuneSettings(rows=(4, 32), output=path), loaded, NoProgress())
    rounds = data["results"]["rounds"]
    assert [round_["rows"] for round_ in rounds] == [4, 32]
    assert all(found["tried"] for round_ in rounds for found in round_["found"])
    kept = {Product(**f["product"]): Tile(**f["after"]) for round_ in rounds for f in round_["found"] if f["gain"] > 0}
    assert read(path) == kept
    assert answers(loaded) == before
    others = {
        Product(**found["product"]): replace(Tile(**found["before"]), n=max(8, found["before"]["n"] // 2))
        for round_ in rounds
        for found in round_["found"]
    }
    with instead(torch.cuda.get_device_name(), others):
        assert answers(loaded) == before
