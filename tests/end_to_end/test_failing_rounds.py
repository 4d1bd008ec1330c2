"""A round that fails takes along whoever was in it, and those whose rounds were underway."""

from collections.abc import Callable
from pathlib import Path

import pytest

from specdec.config import EngineConfig
from specdec.llm import LLM
from specdec.request import FinishReason, Request, RequestOutput, SamplingParams
from specdec.round.outcome import Outcome


def test_who_was_in_the_round_that_failed_hears_of_it(
    tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has its only token in a round whose outcome cannot be read, and no part in the one behind it."""
    folder = str(tiny_checkpoint("llama"))
    llm = LLM.from_config(EngineConfig(model=folder, dtype="float32", device="cpu", cache_gb=0.01, drafters=(), depth=1))
    heard: dict[str, list[RequestOutput]] = {"one token": [], "many": []}
    for name, count in (("one token", 1), ("many", 20)):
        request = Request(request_id=name, prompt_ids=(5, 6, 7), sampling=SamplingParams(max_tokens=count, ignore_eos=True))
        llm.engine.submit(request, heard[name].append)

    def collect() -> Outcome:
        raise RuntimeError("the outcome is lost")

    with monkeypatch.context() as broken:
        broken.setattr(llm.engine._round, "collect", collect)
        for _ in range(3):
            llm.engine.step()
    for outputs in heard.values():
        assert [output.finish_reason for output in outputs] == [FinishReason.ERROR]
        assert "the outcome is lost" in (outputs[0].error or "")
    assert not llm.engine.has_work
    llm.engine.check()
