"""Runs of steady traffic over an engine that follows a script, and how requests go to a server."""

import json
from dataclasses import replace
from typing import Any

import pytest

from specdec.bench.load import bench, odd
from specdec.bench.load.client import message_of
from specdec.bench.load.engine import EngineContender, drive
from specdec.bench.load.events import EventLog
from specdec.bench.load.measures import measure
from specdec.bench.load.prompts import Question
from specdec.bench.load.results import PLAIN
from specdec.bench.load.run import Asks, Plan, asks_for, perform, staggered
from specdec.bench.load.traffic import Closed, Limits, Open, Session
from specdec.cli.options import arguments
from specdec.config import EngineConfig
from specdec.engine.sequence import Sink
from specdec.errors import ConfigError, RoundError
from specdec.progress import NoProgress
from specdec.request import FinishReason, Request, RequestOutput, SamplingParams, SpeculationParams, SpeculationStats

QUESTIONS = [Question((1, 2, 3 + i)) for i in range(100)]
SAMPLING = SamplingParams(temperature=0.0, max_tokens=8, min_tokens=8)


class Scripted:
    """An engine that gives each request one token in a round of one second."""

    def __init__(self, failing: str | None = None) -> None:
        self.now = 0.0
        self.running: dict[str, tuple[Request, Sink, int]] = {}
        self.widths: list[int] = []
        self.names: list[set[str]] = []
        self.aborted: list[str] = []
        self.forgotten = 0
        self._failing = failing

    def clock(self) -> float:
        return self.now

    def submit(self, request: Request, sink: Sink) -> None:
        assert request.request_id not in self.running
        self.running[request.request_id] = request, sink, 0

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        _, sink, _ = self.running.pop(request_id)
        sink(RequestOutput(request_id=request_id, finish_reason=FinishReason.ABORT))

    def forget(self) -> None:
        assert not self.running
        self.forgotten += 1

    def step(self) -> bool:
        self.now += 1.0
        self.widths.append(len(self.running))
        self.names.append(set(self.running))
        for name, (request, sink, done) in list(self.running.items()):
            ends = done + 1 == request.sampling.max_tokens or name == self._failing
            if ends:
                del self.running[name]
            else:
                self.running[name] = request, sink, done + 1
            error = "broken" if name == self._failing else None
            reason = FinishReason.LENGTH if ends else None
            stats = SpeculationStats(num_steps=done + 1) if ends else None
            sink(RequestOutput(request_id=name, token_ids=(5,), finish_reason=reason, error=error, stats=stats))
        return bool(self.widths[-1])


def test_a_closed_loop_keeps_its_requests_in_flight() -> None:
    engine = Scripted()
    session = Session(Closed(4), Limits(warm_up=4, requests=12), available=100)
    asks = staggered(asks_for(QUESTIONS, SAMPLING, SpeculationParams()), 4)
    traces = drive(engine, Asks(asks), session, engine.clock)
    assert session.window is not None
    assert set(engine.widths[:-1]) == {4}, "in every round but the last look"
    found = measure(traces, session.window)
    assert found.mean_in_flight == pytest.approx(4.0)
    assert found.output_tokens_per_second == pytest.approx(4.0)
    assert found.requests_per_second == pytest.approx(0.5)
    assert found.acceptance_length == 1.0
    assert (found.first_token_seconds_p50, found.between_tokens_seconds_p99) == (1.0, 1.0)
    assert not engine.running, "what was in flight is aborted"
    assert engine.aborted


def test_answers_that_begin_together_end_one_after_another() -> None:
    asks = staggered(asks_for(QUESTIONS, SAMPLING, SpeculationParams()), 4)
    assert [ask.request.sampling.max_tokens for ask in asks[:6]] == [2, 4, 6, 8, 8, 8]
    assert all(ask.request.sampling.min_tokens == ask.request.sampling.max_tokens for ask in asks)
    assert len({ask.request.sampling.seed for ask in asks}) == len(asks)


def test_an_odd_request_runs_all_the_time_beside_the_others() -> None:
    engine = Scripted()
    plan = Plan(
        traffic=Closed(3),
        limits=Limits(warm_up=3, requests=9),
        questions=QUESTIONS,
        sampling=SAMPLING,
        odd=odd.ODD["biases"](()),
        odd_questions=QUESTIONS[:2],
    )
    found = perform(EngineContender(PLAIN, lambda: engine, ()), plan)
    busy = engine.names[:-1]
    assert all(sum(name.startswith("odd") for name in names) == 1 for names in busy)
    assert all(sum(name.startswith("load") for name in names) == 3 for names in busy)
    assert {name for names in busy for name in names if name.startswith("odd")} == {"odd 0", "odd 1"}
    assert 2.0 < found.mean_in_flight <= 3.0, "the ordinary ones alone are measured"


def test_odd_requests_are_what_they_are_called() -> None:
    made = {name: kind(("suffix",)) for name, kind in odd.ODD.items()}
    assert all(made.values())
    assert odd.ODD["drafter"](()) is None
    for name, fields in (("biases", "logit_bias"), ("logprobs", "logprobs"), ("nucleus", "top_p"), ("stop", "stop")):
        found = made[name]
        assert found is not None
        assert getattr(odd.changed(SAMPLING, found), fields) != getattr(SAMPLING, fields)
    assert made["drafter"] == odd.Odd({}, SpeculationParams(drafter="suffix"))
    with pytest.raises(ConfigError, match="crystal"):
        odd.check(["crystal"])


def test_seen_prompts_are_answered_before() -> None:
    engine = Scripted()
    plan = Plan(traffic=Closed(2), limits=Limits(2, 4), questions=QUESTIONS[:12], sampling=SAMPLING, seen=True)
    perform(EngineContender(PLAIN, lambda: engine, ()), plan)
    for number in range(12):
        done = sum(f"load {number}" in names for names in engine.names)
        assert done >= 8, "each was answered whole"
    assert engine.names.count({"load 10", "load 11"}) == 8, "the last two of the first pass"
    assert engine.names.count({"load 0", "load 1"}) > 8, "and the measured pass begins anew"


def test_an_engine_forgets_between_runs() -> None:
    made: list[Scripted] = []

    def make() -> Scripted:
        made.append(Scripted())
        return made[-1]

    plan = Plan(traffic=Closed(1), limits=Limits(1, 1), questions=QUESTIONS[:5], sampling=SAMPLING)
    contender = EngineContender("A", make, ())
    for run in range(3):
        perform(contender, plan)
        assert [engine.forgotten for engine in made] == [run]


def test_a_failed_request_ends_the_run() -> None:
    engine = Scripted(failing="load 3")
    plan = Plan(traffic=Closed(2), limits=Limits(2, 10), questions=QUESTIONS, sampling=SAMPLING)
    with pytest.raises(RoundError, match="broken"):
        perform(EngineContender("A", lambda: engine, ()), plan)
    assert not engine.running


def test_traffic_beyond_what_is_answered_is_refused() -> None:
    plan = Plan(traffic=Open(1e6), limits=Limits(50, 10), questions=QUESTIONS, sampling=SAMPLING)
    with pytest.raises(ConfigError, match="lower --rate"):
        perform(EngineContender("A", Scripted, ()), plan)


def settings(**fields: Any) -> bench.LoadSettings:
    return bench.LoadSettings(**{"config": EngineConfig(), "traffic": [Closed(4)], "repeats": 2, **fields})


def test_limits_follow_the_traffic() -> None:
    assert bench.limits_for(settings(), Closed(32)) == (Limits(32, 64), 32 + 64 + 96)
    assert bench.limits_for(settings(warm_up=5, requests=7), Closed(32)) == (Limits(32, 7), 32 + 7 + 96)
    assert bench.limits_for(settings(warm_up=5, requests=7), Open(3.0)) == (Limits(5, 7), 24)
    timed, number = bench.limits_for(settings(seconds=9.0), Closed(1))
    assert (timed.seconds, timed.requests < number) == (9.0, True)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"odd": ("crystal",)}, "no odd request 'crystal'"),
        ({"odd": ("biases",), "traffic": [Closed(1)]}, "2 or more"),
        ({"odd": ("biases",), "traffic": [Open(1.0)]}, "2 or more"),
        ({"shape": "smollm2-135m", "url": "http://127.0.0.1:1"}, "have no server"),
        ({"url": "http://127.0.0.1:1"}, "no specdec server"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        bench.run(settings(**fields), NoProgress())


def test_a_config_survives_the_command_line() -> None:
    config = EngineConfig(
        model="a/b", drafters=("ngram", "draft-model"), draft_model="small", adaptive=False, num_threads=3, cache_gb=0.25
    )
    words = arguments(config)
    assert words[0] == "a/b"
    assert {"--no-adaptive", "--threads", "ngram,draft-model"} <= set(words)
    assert arguments(EngineConfig(drafters=())) == ["--drafter", "none"]
    assert EngineConfig.of({"drafters": "none"}) == EngineConfig(drafters=())


def test_events_are_counted_without_being_read() -> None:
    events = [
        {"text": ""},
        {"text": 'a\n\ndata: {"b"'},
        {"text": "c"},
        {"finish": "length"},
        {"usage": {"completion_tokens": 5}},
    ]
    stream = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
    log = EventLog()
    log.add(1.0, b": keep-alive\n\n")
    log.add(2.0, stream[0])
    log.add(3.0, stream[1] + stream[2][:9])
    log.add(4.0, stream[2][9:] + stream[3] + stream[4])
    log.add(5.0, b"data: [DONE]\n\n")
    assert log.arrivals(num_leading=1) == [(2.0, 0), (3.0, 1), (4.0, 1)]
    assert log.usage() == events[-1]
    broken = EventLog()
    broken.add(1.0, stream[1])
    with pytest.raises(ValueError, match="without its usage"):
        broken.usage()


def test_a_request_is_sent_as_the_engine_would_get_it() -> None:
    sampling = replace(SAMPLING, logit_bias={7: 0.5}, logprobs=4, stop=("end",))
    chat, tokens = asks_for([Question((1, 2), "hello"), Question((1, 2))], sampling, SpeculationParams(drafter="ngram"))
    sent = message_of(chat, "tiny")
    body = json.loads(sent.body)
    assert (sent.path, sent.prompt_tokens) == ("/v1/chat/completions", 2)
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert (body["logprobs"], body["top_logprobs"], body["logit_bias"], body["stop"]) == (True, 4, {"7": 0.5}, ["end"])
    assert (body["stream"], body["min_tokens"], body["seed"], body["speculative"]["drafter"]) == (True, 8, 0, "ngram")
    body = json.loads(message_of(tokens, "tiny").body)
    assert (body["prompt"], body["logprobs"], body["seed"]) == ([1, 2], 4, 1)
