"""How results are shown: tables for people, one JSON line for programs, a Markdown report with a plot for keeping."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from specdec.bench.environment import describe

_FILE_WIDTH = 180
_SHORT_CELL = 20  # characters that a first column keeps on one line
_FEWEST_TRIES = 5  # rounds that a point of the plot stands for
_MOST_DEPTH = 16  # that the plot shows
Row = Sequence[str]
Rows = tuple[Row, Sequence[Row]]  # header and rows of a table


def console() -> Console:
    """Standard output, wide enough for the tables where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)


def show(out: Console, title: str, header: Row, rows: Sequence[Row], data: dict[str, Any], more: Sequence[Rows] = ()) -> None:
    """One table or several with their conditions, then the JSON object as the last line."""
    tables = [(header, rows), *more]
    for number, (names, cells) in enumerate(tables):
        table = Table(title=title if number == 0 else None, title_justify="left")
        for index, name in enumerate(names):
            short = all(len(row[index]) <= _SHORT_CELL for row in cells)
            table.add_column(name, justify="left" if index == 0 else "right", no_wrap=index == 0 and short)
        for row in cells:
            table.add_row(*row)
        out.print(table)
    out.print(describe(data), highlight=False, markup=False, soft_wrap=True)
    for name, value in data["settings"].items():
        out.print(f"  {name}: {_plain(value)}", highlight=False, markup=False, soft_wrap=True)
    out.out(json.dumps(data, ensure_ascii=False, allow_nan=False), highlight=False)


def speed_rows(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of `bench speed`: tokens per second."""
    results = data["results"]
    contenders = list(next(iter(results.values()))["tokens_per_second"])
    rows = [
        [content, *(f"{found['tokens_per_second'][name]['median']:.1f}" for name in contenders)]
        for content, found in results.items()
    ]
    return ["tokens per second", *contenders], rows


def ratio_rows(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of `bench speed`: ratios, and the fewest tokens that another contender shares with plain decoding."""
    results = data["results"]
    ratios = list(next(iter(results.values()))["ratios"])
    rows = [
        [
            content,
            *(spread(found["ratios"][name]) for name in ratios),
            f"{min(found['equal_tokens'].values(), default=1.0):.1%}",
        ]
        for content, found in results.items()
    ]
    return ["ratio", *ratios, "equal tokens"], rows


def acceptance_rows(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of `bench acceptance`."""
    header = [
        "content",
        "cases",
        "acceptance length",
        "rate",
        "depth 1",
        "depth 4",
        "accepted by",
        "plain tok/s",
        "tok/s",
        "speed-up",
    ]
    rows = []
    for content, found in data["results"].items():
        depths = found["rate_by_depth"]
        rows.append([
            content,
            str(found["cases"]),
            spread(found["acceptance_length"]),
            f"{found['draft_acceptance_rate']:.1%}",
            *(f"{depths[depth]:.1%}" if depth < len(depths) else "-" for depth in (0, 3)),
            ", ".join(f"{name} {share:.0%}" for name, share in found["accepted_share_by_drafter"].items()) or "-",
            f"{found['tokens_per_second']['plain']:.1f}",
            f"{found['tokens_per_second']['drafted']:.1f}",
            spread(found["speedup"]),
        ])  # fmt: skip
    return header, rows


def write_acceptance(data: dict[str, Any], folder: Path) -> None:
    """`acceptance.json`, `acceptance.md` and `acceptance.png` in a folder, made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "acceptance.json").write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "acceptance.md").write_text(_markdown(data), encoding="utf-8")
    plot_acceptance(data["results"], folder / "acceptance.png")


def plot_acceptance(results: dict[str, Any], path: Path) -> None:
    """Acceptance length with its interval per content type, and the acceptance rate by depth."""
    import matplotlib  # slow to import, and nothing else needs it

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (lengths, depths) = plt.subplots(1, 2, figsize=(13, 0.45 * len(results) + 2.5), layout="constrained")
    names = list(results)
    found = [results[name]["acceptance_length"] for name in names]
    middles = [item["median"] for item in found]
    errors = [[max(m - item["low"], 0) for m, item in zip(middles, found, strict=True)],
              [max(item["high"] - m, 0) for m, item in zip(middles, found, strict=True)]]  # fmt: skip
    lengths.barh(names, middles, xerr=errors, capsize=3, color="tab:blue")
    lengths.invert_yaxis()
    lengths.axvline(1.0, color="black", linewidth=0.8)
    lengths.set(xlabel="tokens per round (bars: 95 % of bootstrap draws over prompts)", title="Acceptance length")
    for name in names:
        tries = results[name]["drafted_by_depth"][:_MOST_DEPTH]
        rates = [rate for rate, count in zip(results[name]["rate_by_depth"], tries, strict=False) if count >= _FEWEST_TRIES]
        style = {"color": "black", "linewidth": 2.5} if name == "all" else {}
        depths.plot(range(1, len(rates) + 1), rates, marker=".", label=name, **style)
    depths.set(xlabel=f"depth in the tree (points of {_FEWEST_TRIES} rounds and more)", ylabel="accepted / drafted")
    depths.set(xlim=(0.5, _MOST_DEPTH + 0.5), ylim=(-0.02, 1.02), title="Acceptance rate by depth")
    depths.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def lossless_rows(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of `bench lossless`."""
    names = {
        "requests": "requests",
        "tokens": "tokens",
        "differing_tokens": "differing tokens",
        "differing_logprobs": "differing logprobs",
        "differing_ends": "differing ends",
        "cached_prompt_tokens": "cached",
        "preemptions": "preempted",
        "accepted_drafts": "accepted",
    }
    rows = [[row["setting"], *(str(row[name]) for name in names)] for row in data["results"]["settings"]]
    return ["setting", *names.values()], rows


def _markdown(data: dict[str, Any]) -> str:
    header, rows = acceptance_rows(data)
    settings = [f"- {name}: {_plain(value)}" for name, value in data["settings"].items()]
    equal = data["results"]["all"]["equal_tokens"]
    return "\n".join([
        "# Acceptance of drafts by content type",
        "",
        describe(data),
        "",
        *settings,
        "",
        "Acceptance length is tokens per round, the target's own token counted. Ranges are 95 % bootstrap intervals over",
        "prompts. The speed-up compares tokens per second, prefill included, with plain decoding of the same cases.",
        f"Answers that equal those of plain decoding token for token: {equal:.1%}.",
        "",
        "| " + " | ".join(header) + " |",
        "| --- |" + " ---: |" * (len(header) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "![Acceptance length and rate by depth](acceptance.png)",
        "",
    ])  # fmt: skip


def spread(found: Mapping[str, float]) -> str:
    """A median with its range, which is left out where there is none to tell: one repeat, one prompt."""
    median, low, high = found["median"], found["low"], found["high"]
    return f"{median:.2f} ({low:.2f}..{high:.2f})" if low != high else f"{median:.2f}"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    return "none" if value is None else str(value)
