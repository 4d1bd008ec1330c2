"""The figures of all runs: medians over repeats, ratios within them, tables."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from specdec.bench.load.measures import Measures
from specdec.bench.report import spread
from specdec.bench.statistics import over_repeats

PLAIN, DRAFTED, SERVER = "plain", "drafted", "server "
RATIOS = ((DRAFTED, PLAIN), (SERVER + DRAFTED, SERVER + PLAIN), (SERVER + PLAIN, PLAIN), (SERVER + DRAFTED, DRAFTED))
_MEASURES = tuple(field.name for field in fields(Measures))
_Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True, slots=True)
class Row:
    """One contender under one traffic, each repeat's measures. beside: the odd request that ran beside the ordinary ones."""

    traffic: str
    contender: str
    repeats: Sequence[Measures]
    beside: str | None = None

    @property
    def name(self) -> str:
        """Of the contender with its company."""
        return self.contender if self.beside is None else f"{self.contender} beside {self.beside}"


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One object for each traffic: what each contender did, and the ratios of tokens per second that can be told."""
    levels = dict.fromkeys(row.traffic for row in rows)
    return [_level(level, [row for row in rows if row.traffic == level]) for level in levels]


def _level(traffic: str, rows: Sequence[Row]) -> dict[str, Any]:
    by_name = {row.name: row for row in rows}
    pairs = [*RATIOS, *((row.name, row.contender) for row in rows if row.beside is not None)]
    return {
        "traffic": traffic,
        "contenders": {row.name: _spreads(row.repeats) for row in rows},
        "tokens_per_second_ratios": {
            f"{above} / {below}": _ratio(by_name[above], by_name[below])
            for above, below in pairs
            if above in by_name and below in by_name
        },
    }


def _spreads(repeats: Sequence[Measures]) -> dict[str, Any]:
    """Median, minimum and maximum of each measure that every repeat has; null for the others."""
    found = {}
    for name in _MEASURES:
        values = [getattr(measures, name) for measures in repeats]
        found[name] = None if None in values else asdict(over_repeats(values))
    return found


def _ratio(above: Row, below: Row) -> dict[str, float]:
    """Each repeat's own, so that a slow minute of the machine meets both sides."""
    pairs = zip(above.repeats, below.repeats, strict=True)
    return asdict(over_repeats([a.output_tokens_per_second / b.output_tokens_per_second for a, b in pairs]))


def speed_table(levels: Sequence[Mapping[str, Any]]) -> _Table:
    """Header and rows: what was done in a second."""
    header = ["traffic, contender", "tok/s", "requests/s", "prompt tok/s", "acceptance length", "prompt from cache"]
    return header, [
        [
            f"{level['traffic']}, {name}",
            spread(found["output_tokens_per_second"]),
            f"{found['requests_per_second']['median']:.2f}",
            f"{found['prompt_tokens_per_second']['median']:.0f}",
            _median(found["acceptance_length"], 1, ".2f"),
            _median(found["cached_prompt_share"], 1, ".0%"),
        ]
        for level in levels
        for name, found in level["contenders"].items()
    ]


def latency_table(levels: Sequence[Mapping[str, Any]]) -> _Table:
    """Header and rows: what a client waits for, in milliseconds."""
    waits = ("first_token_seconds_p50", "first_token_seconds_p99", "between_tokens_seconds_p50", "between_tokens_seconds_p99")
    header = ["traffic, contender", "first token p50 ms", "p99 ms", "between tokens p50 ms", "p99 ms", "in flight"]
    return header, [
        [
            f"{level['traffic']}, {name}",
            *(_median(found[wait], 1e3, ".1f") for wait in waits),
            f"{found['mean_in_flight']['median']:.1f}",
        ]
        for level in levels
        for name, found in level["contenders"].items()
    ]


def ratio_table(levels: Sequence[Mapping[str, Any]]) -> _Table:
    """Header and rows: ratios of tokens per second."""
    return ["traffic, ratio of tok/s", "median (min..max)"], [
        [f"{level['traffic']}, {name}", spread(found)]
        for level in levels
        for name, found in level["tokens_per_second_ratios"].items()
    ]


def _median(found: Mapping[str, float] | None, scale: float, form: str) -> str:
    return "-" if found is None else format(found["median"] * scale, form)
