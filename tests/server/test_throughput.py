"""A line of the log while there is work, with the rates of the seconds that it is about."""

from typing import cast

import pytest

from specdec.engine.engine import Engine
from specdec.request import Request, SamplingParams
from specdec.server.throughput import ThroughputLines
from tests.server.fake_engine import FakeEngine, Script


def test_rates_are_of_the_seconds_since_the_last_line(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    now = [100.0]
    lines = ThroughputLines(cast(Engine, engine), seconds=10.0, clock=lambda: now[0])
    now[0] = 110.0
    lines.look()
    assert not caplog.messages, "nothing has come yet"
    engine.scripts[""] = Script(per_step=3, pause_after=6)
    for name in ("a", "b"):
        engine.submit(Request(request_id=name, prompt_ids=(5, 6, 7), sampling=SamplingParams(max_tokens=50)), lambda _: None)
    for _ in range(3):
        engine.step()
        lines.look()
    assert not caplog.messages, "no line is due"
    now[0] = 122.0
    lines.look()
    assert caplog.messages == [
        "1.0 tokens/s (acceptance length 3.00), prompts 0.5 tokens/s; 2 running, 0 waiting; 2 % of the cache held."
    ]
    now[0] = 132.0
    lines.look()
    assert caplog.messages[1:] == [
        "0.0 tokens/s (acceptance length 0.00), prompts 0.0 tokens/s; 2 running, 0 waiting; 2 % of the cache held."
    ]
    for name in ("a", "b"):
        engine.abort(name)
    engine.step()
    now[0] = 142.0
    lines.look()
    assert len(caplog.messages) == 2, "nothing runs, and nothing has come"
