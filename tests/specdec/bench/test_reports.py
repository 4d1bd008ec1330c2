"""Statistics, summaries and reports of `bench speed` and `bench acceptance`, on samples made by hand; no model."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from specdec.bench import acceptance, report, speed
from specdec.bench.contenders import Sample, decode_tokens_per_second, tokens_per_second
from specdec.bench.environment import conditions
from specdec.bench.statistics import over_repeats, ratio_over_prompts
from specdec.request import SpeculationStats


def test_ratio_over_prompts_weighs_by_size_and_widens_with_disagreement() -> None:
    alike = ratio_over_prompts([2.0, 20.0], [1.0, 10.0])
    assert (alike.median, alike.low, alike.high) == (2.0, 2.0, 2.0)
    mixed = ratio_over_prompts([1.0] * 10 + [9.0] * 10, [1.0] * 20)
    assert mixed.median == 5.0
    assert 1.0 < mixed.low < 4.0
    assert 6.0 < mixed.high < 9.0


def test_over_repeats_is_median_and_range() -> None:
    assert str(over_repeats([3.0, 1.0, 10.0])) == "3.00 (1.00..10.00)"


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
