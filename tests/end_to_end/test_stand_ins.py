"""Rounds that run as larger ones, in which most of what there is room for is padding, change no bit."""

from typing import Any

import pytest

from specdec.round.graphs import Graphs
from specdec.round.plan import RoundShape
from tests.end_to_end.conftest import ALL_DRAFTERS, Pool, Stage, hold, stages, traffic


class Recorded:
    """A recording that computes the round again."""

    def __init__(self, graphs: Graphs, shape: RoundShape) -> None:
        self._graphs, self._shape = graphs, shape

    def replay(self) -> None:
        self._graphs._launch(self._shape)


def record(graphs: Graphs, shape: RoundShape) -> None:
    graphs._graphs[shape] = Recorded(graphs, shape)  # type: ignore[assignment]
    graphs.version += 1


@pytest.mark.parametrize("fields", [{}, {"adaptive": False}, {"chunk_tokens": 20, "adaptive": False}], ids=str)
@pytest.mark.parametrize("stage", stages(("qwen3_moe", "cpu", True), ("llama", "cuda", False)), indirect=True)
def test_no_bit_changes(stage: Stage, pool: Pool, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]) -> None:
    llm = stage.llm(pool.oracle, drafters=ALL_DRAFTERS, depth=1, **fields)
    round_, ran = llm.engine._round, list[tuple[RoundShape, RoundShape]]()
    if stage.device == "cpu":
        monkeypatch.setattr(Graphs, "record", record)
        monkeypatch.setattr(round_.graphs, "_on_gpu", True)
    choose = round_.stand_ins.choose

    def noted(wanted: RoundShape, *arguments: Any) -> RoundShape:
        ran.append((wanted, choose(wanted, *arguments)))
        return ran[-1][1]

    monkeypatch.setattr(round_.stand_ins, "choose", noted)
    monkeypatch.setattr("specdec.round.stand_ins._SHARE", 1e9)  # some get recordings of their own
    monkeypatch.setattr("specdec.round.stand_ins._WANTS", 4)
    for name, found in traffic(llm, {0: pool.requests[:3], 4: pool.requests[3:9], 7: pool.requests[9:24]}).items():
        hold(found, pool.expected[name])
    several = [(wanted, shape) for wanted, shape in ran if wanted.members > 1]
    assert sum(wanted != shape for wanted, shape in several) > len(several) // 4
    if fields:  # what an adaptive planner asks for depends on the clock: at times there are few shapes
        assert len({shape for _, shape in several}) < len({wanted for wanted, _ in several})
