"""`specdec bench load`: steady traffic, through the engine and through the server."""

import sys
from functools import partial
from typing import Annotated

import typer

from specdec.bench.load.odd import ODD
from specdec.bench.load.traffic import Closed, Open, Traffic
from specdec.cli.bench.options import Content, Shape, Suite, numbers
from specdec.cli.bench.output import show
from specdec.cli.options import arguments, takes_engine
from specdec.cli.progress import on_stderr
from specdec.config import EngineConfig, names
from specdec.errors import ConfigError

_of_traffic = partial(typer.Option, rich_help_panel="Traffic")
_of_prompts = partial(typer.Option, rich_help_panel="Prompts and answers")
_of_server = partial(typer.Option, rich_help_panel="Server")
_WARM_UP = "Requests before those that count; if not told, as many as are in flight, in an open loop 16."
_REQUESTS = "Requests that count; if not told, twice as many as are in flight, 16 or more."
_SECONDS = "Measure no longer than this; not more than 2048 requests then, if not told."
_ODD = f"Put one such request beside the others, in turns with none: {', '.join(ODD)}; several with commas."


@takes_engine()
def load(
    config: EngineConfig,
    concurrency: Annotated[str, _of_traffic(help="Closed loop: numbers of requests in flight, with commas.")] = "1,8,32",
    rate: Annotated[
        str | None, _of_traffic(help="Open loop instead: Poisson arrivals, requests a second, with commas.")
    ] = None,
    warm_up: Annotated[int | None, _of_traffic(help=_WARM_UP, min=0)] = None,
    requests: Annotated[int | None, _of_traffic(help=_REQUESTS, min=1)] = None,
    seconds: Annotated[float | None, _of_traffic(help=_SECONDS, min=0.001)] = None,
    repeats: Annotated[int, _of_traffic(help="Repeats in turns; medians are shown.", min=1)] = 3,
    odd: Annotated[str, _of_traffic(help=_ODD)] = "",
    suite: Suite = None,
    content: Content = "",
    shape: Shape = None,
    prompt_tokens: Annotated[
        int | None, _of_prompts(help="Random prompts of so many tokens; with --shape 64, if not told.", min=1)
    ] = None,
    max_tokens: Annotated[int, _of_prompts(help="Tokens of each answer, exactly.", min=2)] = 128,
    temperature: Annotated[float | None, _of_prompts(help="0 for a suite, 1 for random prompts, if not told.", min=0)] = None,
    seen: Annotated[bool, _of_prompts("--seen", help="Answer each prompt once before, unmeasured.")] = False,
    seed: Annotated[int, _of_prompts(help="Of arrivals and random prompts.", min=0)] = 0,
    server: Annotated[bool, _of_server("--server", help="Also through `specdec serve` with the same options.")] = False,
    url: Annotated[str | None, _of_server(help="Only through the server that runs there; it serves MODEL.")] = None,
    api_key: Annotated[
        str | None, _of_server(help="The server's bearer key.", envvar="SPECDEC_API_KEY", show_envvar=True)
    ] = None,
) -> None:
    """Tokens per second and waiting times under steady traffic, plain and with drafters."""
    from specdec.bench.load import bench, results  # bring torch, which --help should not wait for

    settings = bench.LoadSettings(
        config=config,
        traffic=_traffic(concurrency, rate, seed),
        warm_up=warm_up,
        requests=requests,
        seconds=seconds,
        repeats=repeats,
        suite=suite,
        content=names(content),
        shape=shape,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        temperature=temperature,
        seen=seen,
        odd=names(odd),
        serve=_serve_command if server else None,
        url=url,
        api_key=api_key,
        seed=seed,
    )
    data = bench.run(settings, on_stderr())
    title = f"Steady traffic, {data['settings']['model']}: medians of {repeats} repeats (min..max)"
    found = data["results"]
    ratios = results.ratio_table(found)
    more = [ratios] if ratios[1] else []
    show(title, results.speed_table(found), data, results.latency_table(found), *more)


def _traffic(concurrency: str, rate: str | None, seed: int) -> list[Traffic]:
    if rate is None:
        return [Closed(number) for number in numbers(concurrency, "concurrency")]
    try:
        rates = [float(item) for item in names(rate)]
    except ValueError as error:
        raise ConfigError(f"rate must be numbers with commas between them, not {rate!r}.") from error
    if not rates or min(rates) <= 0:
        raise ConfigError(f"rate must name numbers above 0, not {rate!r}.")
    return [Open(item, seed) for item in rates]


def _serve_command(config: EngineConfig) -> list[str]:
    return [sys.executable, "-m", "specdec", "serve", *arguments(config)]
