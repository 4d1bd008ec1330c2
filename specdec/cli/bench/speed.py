"""`specdec bench speed`: tokens per second of one request after another, or of random weights."""

from functools import partial
from typing import Annotated

import typer

from specdec.cli.bench.options import Content, Shape, Suite, numbers
from specdec.cli.bench.output import end, show
from specdec.cli.options import takes_engine
from specdec.cli.progress import on_stderr
from specdec.config import EngineConfig, names
from specdec.errors import ConfigError

_BASELINES = ("none", "transformers")
_DRAFTERS = ("ngram",)
_of_shape = partial(typer.Option, rich_help_panel="With --shape")


@takes_engine(drafters=_DRAFTERS, prefix_cache=False)
def speed(
    config: EngineConfig,
    against: Annotated[str, typer.Option(help="none, or transformers: the same prompts through its generate.")] = "none",
    repeats: Annotated[int, typer.Option(help="Interleaved repeats; medians are shown.", min=1)] = 3,
    content: Content = "",
    prompts: Annotated[int, typer.Option(help="Prompts of each content type.", min=1)] = 2,
    max_tokens: Annotated[int, typer.Option(help="New tokens of each answer, exactly.", min=2)] = 128,
    suite: Suite = None,
    predictions: Annotated[bool, typer.Option("--predictions", help="Give specdec the suite's predictions.")] = False,
    shape: Shape = None,
    streams: Annotated[str, _of_shape(help="Numbers of concurrent requests, with commas; '' for none.")] = "1,8,32,64",
    context: Annotated[int, _of_shape(help="Prompt tokens of one stream; 0 leaves it out.", min=0)] = 1024,
    contenders: Annotated[str, _of_shape(help="Who is measured: plain, ngram, told its answer.")] = "plain,ngram,told",
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
    if shape is not None:
        _speed_of_shape(shape, config, streams, context, contenders, repeats, max_tokens)
        return
    from specdec.bench import report, speed  # bring torch, which --help should not wait for

    compared = against == "transformers"
    settings = speed.SpeedSettings(
        config=config,
        against_transformers=compared,
        repeats=repeats,
        max_tokens=max_tokens,
        prompts_per_type=prompts,
        content=names(content),
        suite=suite,
        predictions=predictions,
    )
    data = speed.run(settings, on_stderr())
    floors = speed.Floors(
        plain=min_plain_ratio if compared else None, ngram=min_ngram_ratio if compared else None, content=min_content_ratio
    )
    missed = speed.missed(data["results"], floors) if check else []
    data["check"] = {"asked": check, "missed": missed}
    title = f"Speed of {config.model}: medians of {repeats} interleaved repeats (min..max)"
    show(title, report.speed_rows(data), data, report.ratio_rows(data))
    end(missed)


def _speed_of_shape(
    shape: str, config: EngineConfig, streams: str, context: int, contenders: str, repeats: int, max_tokens: int
) -> None:
    if config.drafters != _DRAFTERS:
        raise ConfigError("With --shape the drafter ngram is measured, and no other; leave --drafter out.")
    from specdec.bench import synthetic  # brings torch, which --help should not wait for

    settings = synthetic.ShapeSettings(
        shape=shape,
        config=config,
        contenders=names(contenders),
        context=context or None,
        tokens=max_tokens,
        repeats=repeats,
        streams=numbers(streams, "streams") if streams.strip() else (),
    )
    data = synthetic.run(settings, on_stderr())
    title = f"Speed of random weights of the shape {shape}: medians of {repeats} repeats"
    more = [synthetic.cost_rows(data)] if data["results"]["cost of a round"] else []
    show(title, synthetic.rows(data), data, *more)
