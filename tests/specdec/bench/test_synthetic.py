"""The speed of random weights: which engines are built, what is measured, and what is printed."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from specdec import assemble
from specdec.bench import synthetic
from specdec.bench.synthetic import NGRAM, PLAIN, TOLD, ShapeSettings
from specdec.config import EngineConfig
from specdec.errors import ConfigError
from specdec.progress import NoProgress

CONFIG = EngineConfig(dtype="float32", device="cpu", drafters=("ngram",), prefix_cache=False, num_threads=1)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[EngineConfig]:
    """The configs of all engines that are built."""
    configs: list[EngineConfig] = []
    build = assemble.build

    def count(config: EngineConfig, *others: Any) -> assemble.Assembled:
        configs.append(config)
        return build(config, *others)

    monkeypatch.setattr(assemble, "build", count)
    monkeypatch.setattr(synthetic, "_BATCH_TOKENS", 6)
    monkeypatch.setattr(synthetic, "_BATCH_PROMPT", 8)
    return configs


def run(**fields: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"shape": "tiny", "config": CONFIG, "repeats": 1, "context": 40, "tokens": 12, "streams": (1, 3)}
    return synthetic.run(ShapeSettings(**settings | fields), NoProgress())


def test_all_lines(built: list[EngineConfig]) -> None:
    data = run()
    results = data["results"]
    assert list(results["one stream"]) == [PLAIN, NGRAM, TOLD]
    assert [*results["many streams"]] == ["1", "3"]
    assert all([*found] == [PLAIN, NGRAM] for found in results["many streams"].values())
    assert results["same tokens everywhere"]
    for found in (results["one stream"], *results["many streams"].values()):
        assert found[PLAIN]["over_plain"]["median"] == 1.0
        assert all(of["tokens_per_second"]["median"] > 0 for of in found.values())
    header, lines = synthetic.rows(data)
    assert len(lines) == 3 + 2 * 2
    assert {len(line) for line in lines} == {len(header)}
    header, lines = synthetic.cost_rows(data)
    assert header[:3] == ["round, context", "1 row", "2"]
    assert {len(line) for line in lines} == {len(header)}
    assert torch.get_num_threads() == 1, "as the settings ask, though no checkpoint is loaded"


@pytest.mark.parametrize(
    ("fields", "drafters", "lines"),
    [
        ({"streams": (), "contenders": ("plain",)}, [()], 1),
        ({"streams": (), "contenders": ("plain", "told")}, [(), ("ngram", "prediction")], 2),
        ({"context": None}, [(), ("ngram",)], 4),
        ({"context": None, "contenders": ("plain", "told")}, [()], 2),
    ],
)
def test_engines_are_built_for_the_lines_that_run(
    fields: dict[str, Any], drafters: list[tuple[str, ...]], lines: int, built: list[EngineConfig]
) -> None:
    data = run(**fields)
    assert [config.drafters for config in built] == drafters
    assert len(synthetic.rows(data)[1]) == lines
    assert bool(data["results"]["cost of a round"]) == (("ngram",) in drafters)


def test_without_plain_nothing_is_compared_with_it(built: list[EngineConfig]) -> None:
    data = run(streams=(), contenders=("ngram",))
    assert "over_plain" not in data["results"]["one stream"][NGRAM]
    assert synthetic.rows(data)[1][0][2] == ""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"contenders": ("plain", "fast")}, "no contender 'fast'"),
        ({"contenders": ("told",)}, "name plain or ngram beside it"),
        ({"context": None, "streams": ()}, "Nothing is to be measured"),
        ({"context": None, "contenders": ("told",)}, "Nothing is to be measured"),
        ({"shape": "round"}, "no shape 'round'"),
    ],
)
def test_what_cannot_be_measured_is_said(fields: dict[str, Any], message: str, built: list[EngineConfig]) -> None:
    with pytest.raises(ConfigError, match=message):
        run(**fields)
    assert not built
