"""`specdec bench speed|acceptance|lossless`. Tables on standard output, its last line one JSON object."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from specdec.cli import options
from specdec.cli.progress import RichProgress
from specdec.config import DEFAULT_MODEL, EngineConfig
from specdec.errors import ConfigError

_FAILED = 1
_BASELINES = ("none", "transformers")
_TUNED_ROWS = "1,2,4,8,16,32,64,128,256,8192"
_Table = tuple[list[str], list[list[str]]]  # header and rows

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Measure speed, acceptance and losslessness.")


@app.command()
def speed(
    model: options.Model = DEFAULT_MODEL,
    against: Annotated[str, typer.Option(help="none, or transformers: the same prompts through its generate.")] = "none",
    repeats: Annotated[int, typer.Option(help="Interleaved repeats; medians are shown.", min=1)] = 3,
    content: options.Content = "",
    prompts: Annotated[int, typer.Option(help="Prompts of each content type.", min=1)] = 2,
    max_tokens: Annotated[int, typer.Option(help="New tokens of each answer, exactly.", min=2)] = 128,
    suite: options.Suite = None,
    predictions: Annotated[bool, typer.Option("--predictions", help="Give specdec the suite's predictions.")] = False,
    drafter: options.Drafter = "ngram",
    draft_model: options.DraftModel = None,
    dtype: options.Dtype = options.DEFAULTS.dtype,
    device: options.Device = options.DEFAULTS.device,
    threads: options.Threads = None,
    depth: options.Depth = None,
    max_model_len: options.MaxModelLen = None,
    shape: options.Shape = None,
    streams: Annotated[str, typer.Option(help="With --shape: numbers of concurrent requests, with commas.")] = "1,8,32,64",
    cache_gb: options.CacheGb = options.DEFAULTS.cache_gb,
    chunk_tokens: options.ChunkTokens = options.DEFAULTS.chunk_tokens,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if a floor is missed.")] = False,
    min_plain_ratio: Annotated[float, typer.Option(help="Floor of plain decoding over transformers.")] = 1.4,
    min_ngram_ratio: Annotated[
        float, typer.Option(help="Floor over transformers' prompt lookup, on code-editing and on summarising.")
    ] = 1.25,
    min_content_ratio: Annotated[float, typer.Option(help="Floor over own plain decoding, on every content type.")] = 0.97,
) -> None:
    """Tokens per second: plain, with drafters, and transformers beside them."""
    if against not in _BASELINES:
        raise ConfigError(f"against must be {' or '.join(_BASELINES)}, not {against!r}.")
    from specdec.bench import report, speed  # bring torch, which --help should not wait for

    compared = against == "transformers"
    config = _config(
        model, drafter, draft_model, dtype, device, threads, max_model_len,
        cache_gb=cache_gb, chunk_tokens=chunk_tokens, depth=depth,
    )  # fmt: skip
    if shape is not None:
        _speed_of_shape(shape, config, _numbers(streams, "streams"), repeats, max_tokens)
        return
    settings = speed.SpeedSettings(
        config=config,
        against_transformers=compared,
        repeats=repeats,
        max_tokens=max_tokens,
        prompts_per_type=prompts,
        content=options.names(content),
        suite=suite,
        predictions=predictions,
    )
    data = speed.run(settings, _progress())
    floors = speed.Floors(
        plain=min_plain_ratio if compared else None, ngram=min_ngram_ratio if compared else None, content=min_content_ratio
    )
    missed = speed.missed(data["results"], floors) if check else []
    data["check"] = {"asked": check, "missed": missed}
    _show(
        f"Speed of {model}: medians of {repeats} interleaved repeats (min..max)",
        report.speed_rows(data),
        data,
        report.ratio_rows(data),
    )
    _end(missed)


def _speed_of_shape(shape: str, config: EngineConfig, streams: tuple[int, ...], repeats: int, max_tokens: int) -> None:
    from specdec.bench import synthetic  # brings torch, which --help should not wait for

    settings = synthetic.ShapeSettings(shape=shape, config=config, streams=streams, repeats=repeats, tokens=max_tokens)
    data = synthetic.run(settings, _progress())
    _show(f"Speed of random weights of the shape {shape}: medians of {repeats} repeats", synthetic.rows(data), data)


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        found = tuple(int(item) for item in options.names(text))
    except ValueError as error:
        raise ConfigError(f"{option} must be numbers with commas between them, not {text!r}.") from error
    if not found or min(found) < 1:
        raise ConfigError(f"{option} must name numbers of 1 or more, not {text!r}.")
    return found


@app.command()
def acceptance(
    model: options.Model = DEFAULT_MODEL,
    suite: options.Suite = None,
    content: options.Content = "",
    prompts: Annotated[int | None, typer.Option(help="Prompts of each content type; all if not given.", min=1)] = None,
    temperature: Annotated[float, typer.Option(help="0 always takes the most likely token.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=2)] = 128,
    repeats: Annotated[int, typer.Option(help="Repeats, for steadier seconds.", min=1)] = 1,
    output: Annotated[Path | None, typer.Option(help="Folder for a JSON and a Markdown report with a plot.")] = None,
    drafter: options.Drafter = options.DEFAULT_DRAFTER_LIST,
    draft_model: options.DraftModel = None,
    rule: options.Acceptance = options.DEFAULTS.acceptance,
    max_tree_nodes: options.MaxTreeNodes = options.DEFAULTS.max_tree_nodes,
    no_adaptive: options.NoAdaptive = False,
    dtype: options.Dtype = options.DEFAULTS.dtype,
    device: options.Device = options.DEFAULTS.device,
    threads: options.Threads = None,
    max_model_len: options.MaxModelLen = None,
) -> None:
    """How often drafts are right, by content type, and what that is worth."""
    from specdec.bench import acceptance, report  # bring torch, which --help should not wait for

    config = _config(
        model, drafter, draft_model, dtype, device, threads, max_model_len,
        acceptance=rule, max_tree_nodes=max_tree_nodes, adaptive=not no_adaptive,
    )  # fmt: skip
    settings = acceptance.AcceptanceSettings(
        config=config,
        temperature=temperature,
        repeats=repeats,
        max_tokens=max_tokens,
        prompts_per_type=prompts,
        content=options.names(content),
        suite=suite,
    )
    data = acceptance.run(settings, _progress())
    if output is not None:
        report.write_acceptance(data, output)
    _show(f"Acceptance of {model} (95 % bootstrap intervals over prompts)", report.acceptance_rows(data), data)


@app.command()
def lossless(
    model: options.Model = DEFAULT_MODEL,
    tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=2)] = 32,
    prompts: Annotated[int, typer.Option(help="Prompts, each of another content type.", min=1)] = 8,
    seeds: Annotated[int, typer.Option(help="Seeds for each prompt and temperature.", min=1)] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="Few prompts, tokens and batch sizes.")] = False,
    drafter: options.Drafter = options.DEFAULT_DRAFTER_LIST,
    draft_model: options.DraftModel = None,
    dtype: options.Dtype = options.DEFAULTS.dtype,
    device: options.Device = options.DEFAULTS.device,
    threads: options.Threads = None,
    max_model_len: options.MaxModelLen = None,
) -> None:
    """Whether anything but prompt, parameters and seed changes a bit. Exit code 1 if so."""
    from specdec.bench import lossless, report  # bring torch, which --help should not wait for

    config = _config(model, drafter, draft_model, dtype, device, threads, max_model_len)
    settings = lossless.LosslessSettings(config=config, max_tokens=tokens, prompts=prompts, seeds=seeds)
    if quick:
        settings = lossless.quick(settings)
    data = lossless.run(settings, _progress())
    title = f"Losslessness of {model}: every setting against plain decoding, one request at a time"
    _show(title, report.lossless_rows(data), data)
    _end(
        [
            f"{row['setting']}: differs first at {row['first_difference']}"
            for row in data["results"]["settings"]
            if row["first_difference"] is not None
        ]
        + [f"{name}: nothing was preempted, so nothing is shown; raise --tokens" for name in data["results"]["not_tried"]]
    )


@app.command()
def tune(
    model: options.Model = DEFAULT_MODEL,
    shape: options.Shape = None,
    rows: Annotated[
        str, typer.Option(help="Rows of the rounds to tune: powers of two, with commas; above 256 a prompt's.")
    ] = _TUNED_ROWS,
    output: Annotated[
        Path | None, typer.Option(help="Table to add to; if not given, the one that specdec reads for this GPU.")
    ] = None,
    dtype: options.Dtype = options.DEFAULTS.dtype,
) -> None:
    """Find the fastest tiles of this GPU's matrix products for a model. Takes minutes; changes speed only."""
    import torch  # which --help should not wait for

    from specdec import assemble, user_tiles
    from specdec.bench import tune
    from specdec.bench.shapes import load_shape

    config = EngineConfig(model=model, dtype=dtype)
    if not torch.cuda.is_available():
        raise ConfigError("Tiles are measured on an NVIDIA GPU, and PyTorch finds none here.")
    loaded = load_shape(shape, dtype=dtype, device="cuda") if shape is not None else assemble.load(config, _progress())
    settings = tune.TuneSettings(rows=_numbers(rows, "rows"), output=output or user_tiles.table_path(loaded.model.device))
    data = tune.run(settings, loaded, _progress())
    _show(f"Tiles of {loaded.name}, written to {settings.output}", tune.rows(data), data)


def _config(
    model: str,
    drafter: str,
    draft_model: str | None,
    dtype: str,
    device: str,
    threads: int | None,
    max_model_len: int | None,
    **others: Any,
) -> EngineConfig:
    return EngineConfig(
        model=model,
        drafters=options.drafters(drafter, draft_model),
        draft_model=draft_model,
        dtype=dtype,
        device=device,
        num_threads=threads,
        max_model_len=max_model_len,
        **others,
    )


def _progress() -> RichProgress:
    return RichProgress(Console(stderr=True))


def _show(title: str, table: _Table, data: dict[str, Any], *more: _Table) -> None:
    from specdec.bench import report

    report.show(report.console(), title, *table, data, more)


def _end(failures: list[str]) -> None:
    """Exit with 1 where something failed, and say what on the error stream: the JSON stays the last line."""
    console = Console(stderr=True)
    for line in failures:
        console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)
    if failures:
        raise typer.Exit(_FAILED)
