"""Suites, statistics, summaries and reports, on samples made by hand; no model."""

import json
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from specdec.bench import acceptance, lossless, report, speed, suite
from specdec.bench.cases import Case, prepare
from specdec.bench.contenders import EngineContender, Sample, decode_tokens_per_second, interleave, tokens_per_second
from specdec.bench.environment import conditions
from specdec.bench.lossless_settings import TEMPERATURES, make_requests, settings_for, under_pressure
from specdec.bench.statistics import over_repeats, ratio_over_prompts
from specdec.config import EngineConfig
from specdec.errors import ConfigError, RoundError
from specdec.llm import Completion
from specdec.progress import NoProgress
from specdec.request import FinishReason, Request, RequestOutput, SamplingParams, SpeculationStats, TokenLogprob

GOOD = {"id": "a", "content_type": "chat", "turns": ["Hello"]}


def write(folder: Path, *lines: object) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "chat.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_built_in_suite_has_ten_content_types_of_eight_prompts() -> None:
    prompts = suite.load()
    types = [prompt.content_type for prompt in prompts]
    assert len(set(types)) == 10
    assert {types.count(name) for name in types} == {8}
    edits = [prompt for prompt in prompts if prompt.content_type == "code-editing"]
    assert all(prompt.prediction and prompt.prediction in prompt.turns[0] for prompt in edits)
    assert all(len(prompt.turns) > 1 for prompt in prompts if prompt.content_type == "multi-turn")


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("{", "not JSON"),
        ([1], "the line"),
        ({"id": "a", "turns": ["x"]}, "content_type"),
        (GOOD | {"turns": "x"}, "turns"),
        (GOOD | {"turns": []}, "turns"),
        (GOOD | {"turns": ["x", ""]}, "turns"),
        (GOOD | {"id": 7}, "id"),
        (GOOD | {"tools": ["x"]}, "tools"),
        (GOOD | {"prediction": 1}, "prediction"),
        (GOOD | {"predicton": "x"}, "predicton"),
        (GOOD, "used twice"),
    ],
)
def test_bad_line_names_file_line_and_field(tmp_path: Path, line: object, field: str) -> None:
    with pytest.raises(ConfigError, match=field) as caught:
        suite.load(write(tmp_path, GOOD, "", line))
    assert "chat.jsonl:3" in str(caught.value)


def test_suite_without_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a folder"):
        suite.load(tmp_path / "none")
    with pytest.raises(ConfigError, match="no prompts"):
        suite.load(write(tmp_path, "", ""))


def test_select_keeps_order_and_refuses_unknown_types() -> None:
    prompts = suite.load()
    chosen = suite.select(prompts, ("math", "chat"), 3)
    assert [prompt.content_type for prompt in chosen] == ["math"] * 3 + ["chat"] * 3
    with pytest.raises(ConfigError, match="poetry"):
        suite.select(prompts, ("poetry",), None)


class Letters:
    """A tokenizer whose tokens are characters."""

    has_chat_template = True

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text]

    def chat(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None) -> list[int]:
        return self.encode("|".join(message["content"] for message in messages))


def test_later_turns_follow_the_answers_of_earlier_ones() -> None:
    prompt = suite.Prompt(id="p", content_type="chat", turns=("one", "two"), prediction="yes")
    cases = prepare([prompt], Letters(), lambda _, ids: f"answer of {len(ids)}", 100, NoProgress()).fitting
    assert [case.id for case in cases] == ["p/1", "p/2"]
    assert bytes(cases[1].prompt_ids) == b"one|answer of 3|two"
    assert (cases[0].prediction_ids, bytes(cases[1].prediction_ids)) == ((), b"yes")


def test_prompts_that_do_not_fit_are_named() -> None:
    prompts = [
        suite.Prompt(id="short", content_type="chat", turns=("abc",)),
        suite.Prompt(id="long", content_type="chat", turns=("abcd", "never asked")),
    ]
    cases = prepare(prompts, Letters(), lambda *_: pytest.fail("asked for an answer"), 3, NoProgress())
    assert ([case.id for case in cases.fitting], cases.skipped) == (["short"], ("long/1",))
    with pytest.raises(ConfigError, match="No prompt has at most 1"):
        prepare(prompts, Letters(), lambda *_: "", 1, NoProgress())


def test_ratio_over_prompts_weighs_by_size_and_widens_with_disagreement() -> None:
    alike = ratio_over_prompts([2.0, 20.0], [1.0, 10.0])
    assert (alike.median, alike.low, alike.high) == (2.0, 2.0, 2.0)
    mixed = ratio_over_prompts([1.0] * 10 + [9.0] * 10, [1.0] * 20)
    assert mixed.median == 5.0
    assert 1.0 < mixed.low < 4.0
    assert 6.0 < mixed.high < 9.0


def test_over_repeats_is_median_and_range() -> None:
    assert str(over_repeats([3.0, 1.0, 10.0])) == "3.00 (1.00..10.00)"


class Scripted:
    """An engine that gives the tokens 0, 1, ... in two steps."""

    def __init__(self, finish: FinishReason = FinishReason.LENGTH) -> None:
        self.finish = finish
        self.requests: list[Request] = []
        self.ended: list[str] = []

    def stream(self, request: Request) -> Generator[RequestOutput, None, None]:
        self.requests.append(request)
        tokens = tuple(range(request.sampling.max_tokens))
        yield RequestOutput(request_id=request.request_id, token_ids=tokens[:2])
        error = "broken" if self.finish is FinishReason.ERROR else None
        stats = SpeculationStats(num_steps=2, num_accepted_tokens=len(tokens) - 2)
        yield RequestOutput(
            request_id=request.request_id, token_ids=tokens[2:], finish_reason=self.finish, error=error, stats=stats
        )
        self.ended.append(request.request_id)


CASES = [Case(id=f"c{i}", content_type="chat", prompt_ids=(1, 2), prediction_ids=(3,)) for i in range(3)]


def greedy(_: Case) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=4)


def test_contenders_take_turns_on_every_case() -> None:
    contenders = [EngineContender(name, Scripted, remembers=False) for name in ("A", "B")]
    samples = interleave(contenders, CASES, greedy, 2, NoProgress())
    assert [(s.repeat, s.case_id, s.contender) for s in samples[:4]] == [
        (0, "c0", "A"),
        (0, "c0", "B"),
        (0, "c1", "A"),
        (0, "c1", "B"),
    ]
    assert len(samples) == 12
    assert all((s.token_ids, s.num_first_tokens) == ((0, 1, 2, 3), 2) for s in samples)
    assert all(0.0 < s.first_token_seconds <= s.seconds for s in samples)


def test_an_engine_that_learns_answers_meets_no_prompt_twice() -> None:
    made: list[Scripted] = []

    def make() -> Scripted:
        made.append(Scripted())
        return made[-1]

    interleave([EngineContender("A", make, remembers=True)], CASES, greedy, 2, NoProgress())
    assert [engine.ended for engine in made] == [[f"c{i}#{repeat}" for i in range(3)] for repeat in range(2)]


@pytest.mark.parametrize(("device", "warm"), [("cpu", ["c0"]), ("cuda:0", ["c0", "c1", "c2"])])
def test_an_engine_is_warm_before_it_is_measured(device: str, warm: list[str]) -> None:
    engine = Scripted()
    interleave([EngineContender("A", lambda: engine, remembers=False)], CASES, greedy, 2, NoProgress(), device)
    begun = [request.request_id for request in engine.requests if request.request_id not in engine.ended]
    assert begun == [f"{name}#warm-up" for name in warm]
    assert [request.request_id for request in engine.requests[: len(begun)]] == begun
    assert len(engine.ended) == 2 * len(CASES)
    assert all(request.sampling.ignore_eos for request in engine.requests[: len(begun)]), "none ends by itself"


def test_predictions_are_given_only_when_asked_for() -> None:
    engine = Scripted()
    EngineContender("A", lambda: engine, remembers=False).answer(CASES[0], greedy(CASES[0]), 0)
    EngineContender("A", lambda: engine, remembers=False, predictions=True).answer(CASES[0], greedy(CASES[0]), 0)
    assert [request.prediction_ids for request in engine.requests] == [(), (3,)]


def test_a_failed_answer_is_not_a_sample() -> None:
    with pytest.raises(RoundError, match="A failed on c0: broken"):
        EngineContender("A", lambda: Scripted(FinishReason.ERROR), remembers=False).answer(CASES[0], greedy(CASES[0]), 0)


def sample(
    contender: str, seconds: float, *, content: str = "chat", repeat: int = 0, tokens: Sequence[int] = range(10)
) -> Sample:
    stats = SpeculationStats(
        num_steps=4,
        num_draft_tokens=12,
        num_accepted_tokens=6,
        accepted_histogram=[1, 1, 1, 1],
        drafted_by_depth=[4, 4, 4],
        accepted_by_depth=[3, 2, 1],
        drafted_by_drafter={"ngram": 12},
        accepted_by_drafter={"ngram": 6},
    )
    return Sample(
        contender=contender,
        repeat=repeat,
        case_id=f"{content}-1",
        content_type=content,
        token_ids=tuple(tokens),
        seconds=seconds,
        first_token_seconds=seconds / 2,
        num_first_tokens=1,
        stats=stats if contender in (speed.DRAFTED, "drafted") else None,
    )


def test_decode_speed_leaves_the_first_step_out() -> None:
    samples = [sample("A", 2.0), sample("A", 4.0)]
    assert tokens_per_second(samples) == pytest.approx(20 / 6)
    assert decode_tokens_per_second(samples) == pytest.approx(18 / 3)
    assert decode_tokens_per_second([replace(samples[0], token_ids=(1,))]) is None


def speed_samples() -> list[Sample]:
    samples = []
    for repeat, slow in enumerate((1.0, 3.0, 1.0)):  # the second repeat meets a busy machine
        for content in ("chat", "summarising"):
            samples += [
                sample(speed.PLAIN, 1.0 * slow, content=content, repeat=repeat),
                sample(speed.DRAFTED, 0.5 * slow, content=content, repeat=repeat),
                sample(speed.HF_PLAIN, 1.5 * slow, content=content, repeat=repeat),
                sample(speed.HF_LOOKUP, 0.6 * slow, content=content, repeat=repeat, tokens=[*range(6), 0, 0, 0, 0]),
            ]
    return samples


def test_speed_ratios_are_taken_within_each_repeat() -> None:
    found = speed.summarise(speed_samples(), ["chat", "summarising"])[speed.ALL]
    ratio = found["ratios"][speed.ratio_name(speed.PLAIN, speed.HF_PLAIN)]
    assert ratio == {"median": pytest.approx(1.5), "low": pytest.approx(1.5), "high": pytest.approx(1.5)}
    assert found["tokens_per_second"][speed.PLAIN] == {"median": 10.0, "low": pytest.approx(10 / 3), "high": 10.0}
    assert found["equal_tokens"] == {speed.DRAFTED: 1.0, speed.HF_PLAIN: 1.0, speed.HF_LOOKUP: 0.6}
    assert found["acceptance_length"] == {speed.DRAFTED: 2.5}


def test_missed_floors_are_told_one_by_one() -> None:
    results = speed.summarise(speed_samples(), ["chat", "summarising"])
    assert speed.missed(results, speed.Floors(plain=1.49, ngram=1.19, content=1.99)) == []
    lines = speed.missed(results, speed.Floors(plain=1.6, ngram=1.3, content=2.1))
    assert [line.partition(":")[0] for line in lines] == ["all", "summarising", "chat", "summarising"]


def test_a_floor_that_was_not_measured_is_missed() -> None:
    samples = [entry for entry in speed_samples() if entry.contender == speed.PLAIN]
    results = speed.summarise(samples, ["chat", "summarising"])
    assert len(speed.missed(results, speed.Floors(content=0.97))) == 2


def acceptance_data() -> dict[str, Any]:
    samples = [
        sample("plain", 2.0),
        sample("drafted", 1.0),
        sample("plain", 2.0, content="math"),
        sample("drafted", 4.0, content="math"),
    ]
    return {
        "bench": "acceptance",
        **conditions("cpu"),
        "settings": {"model": "tiny", "drafters": ["ngram"]},
        "results": acceptance.summarise(samples, ["chat", "math"]),
    }


def test_acceptance_summary() -> None:
    results = acceptance_data()["results"]
    assert list(results) == ["chat", "math", "all"]
    found = results["all"]
    assert found["acceptance_length"]["median"] == 2.5
    assert found["draft_acceptance_rate"] == 0.5
    assert found["rate_by_depth"] == [0.75, 0.5, 0.25]
    assert found["accepted_share_by_drafter"] == {"ngram": 1.0}
    assert results["chat"]["speedup"]["median"] == 2.0
    assert found["speedup"]["median"] == pytest.approx(4.0 / 5.0)
    assert (found["speedup"]["low"], found["speedup"]["high"]) == (0.5, 2.0)


def test_merge_adds_lists_of_unequal_length() -> None:
    merged = acceptance.merge([
        SpeculationStats(num_steps=1, accepted_by_depth=[1], drafted_by_drafter={"a": 2}),
        SpeculationStats(num_steps=2, accepted_by_depth=[1, 4], drafted_by_drafter={"a": 1, "b": 5}),
    ])  # fmt: skip
    assert (merged.num_steps, merged.accepted_by_depth, merged.drafted_by_drafter) == (3, [2, 4], {"a": 3, "b": 5})
    assert acceptance.rates([3], [4, 0]) == [0.75, 0.0]


def test_acceptance_report_files(tmp_path: Path) -> None:
    data = acceptance_data()
    report.write_acceptance(data, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "acceptance.json").read_text()) == data
    text = (tmp_path / "new" / "acceptance.md").read_text()
    assert "| math | 1 | 2.50 |" in text
    assert "| all | 2 | 2.50 | " in text
    assert "token for token: 100.0%" in text
    assert "model: tiny" in text
    assert (tmp_path / "new" / "acceptance.png").read_bytes().startswith(b"\x89PNG")


def test_last_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    data = acceptance_data()
    report.show(Console(width=40), "title", *report.acceptance_rows(data), data)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == data


def test_speed_is_shown_in_two_tables(capsys: pytest.CaptureFixture[str]) -> None:
    data = {**conditions("cpu"), "settings": {}, "results": speed.summarise(speed_samples(), ["chat", "summarising"])}
    report.show(Console(width=100), "title", *report.speed_rows(data), data, [report.ratio_rows(data)])
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines()[:-3]) <= 100
    assert [line.split() for line in shown.splitlines() if "│ all" in line] == [
        ["│", "all", "│", "10.0", "│", "20.0", "│", "6.7", "│", "16.7", "│"],
        ["│", "all", "│", "1.50", "│", "1.20", "│", "2.00", "│", "60.0%", "│"],
    ]


def completion(tokens: list[int], logprob: float = -0.5) -> Completion:
    logprobs = [TokenLogprob(token, logprob, ((token, logprob),)) for token in tokens]
    return Completion(request_id="r", token_ids=tokens, logprobs=logprobs, finish_reason=FinishReason.LENGTH)


@pytest.mark.parametrize(
    ("found", "differing"),
    [
        (completion([1, 2, 3]), (0, 0, 0)),
        (completion([1, 9, 3]), (1, 1, 0)),
        (completion([1, 2]), (1, 1, 0)),
        (completion([1, 2, 3], -0.5000000000000001), (0, 3, 0)),
        (replace(completion([1, 2, 3]), finish_reason=FinishReason.STOP), (0, 0, 1)),
    ],
)
def test_every_difference_counts(found: Completion, differing: tuple[int, int, int]) -> None:
    comparison = lossless.Comparison(setting="s")
    comparison.add(completion([1, 2, 3]), found)
    assert (comparison.differing_tokens, comparison.differing_logprobs, comparison.differing_ends) == differing
    assert comparison.same is (differing == (0, 0, 0))
    assert (comparison.first_difference is None) is comparison.same


def test_lossless_requests_cover_temperatures_seeds_and_parameters() -> None:
    requests = make_requests(CASES, 1000, 2, 8)
    assert len({request.request_id for request in requests}) == len(CASES) * len(TEMPERATURES) * 2
    used = [request.sampling for request in requests]
    assert {(s.temperature, s.seed) for s in used} == {(t, seed) for t in TEMPERATURES for seed in (0, 1)}
    assert all(s.logprobs is not None for s in used)
    for field in ("top_k", "min_p", "stop", "logit_bias", "presence_penalty", "ignore_eos"):
        assert any(getattr(s, field) for s in used), field


@pytest.mark.parametrize("lengths", [[40, 41, 300], [10, 10, 30], [100, 900, 90, 95]])
def test_requests_under_pressure_fit_alone_and_not_together(lengths: list[int]) -> None:
    requests = [
        Request(request_id=str(i), prompt_ids=(1,) * length, sampling=SamplingParams(max_tokens=20))
        for i, length in enumerate(lengths)
    ]
    chosen, pages = under_pressure(requests, 16)
    assert len(chosen) >= 2
    assert all(-(-(len(request.prompt_ids) + 20) // 16) <= pages for request in chosen)
    first, second = (-(-len(request.prompt_ids) // 16) for request in chosen[:2])
    assert first + second + 1 <= pages  # both are admitted
    assert sum(-(-(len(request.prompt_ids) + 20) // 16) for request in chosen[:2]) > pages  # and cannot both end


def test_lossless_settings_cover_the_ways_of_serving() -> None:
    config = EngineConfig()
    small = replace(config, page_size=16)
    settings = settings_for(config, small, replace(small, cache_gb=0.01), (1, 8), on_gpu=False)
    names = [name for setting in settings for name, _ in setting.passes]
    assert len(set(names)) == len(names)
    assert any(not setting.config.drafters for setting in settings)
    assert {setting.config.prefix_cache for setting in settings} == {True, False}
    assert 0.01 in {setting.config.cache_gb for setting in settings}
    assert {size for setting in settings for _, size in setting.passes} >= {1, 8}
    assert not any(setting.config.device_loop for setting in settings), "the host is in every round"
    ahead = settings_for(config, small, replace(small, cache_gb=0.01), (1, 8), on_gpu=True)[len(settings) :]
    assert ahead
    assert all(setting.config.device_loop for setting in ahead)
