"""`specdec bench lossless`: does anything but prompt, parameters and seed change a bit?"""

from typing import Annotated

import typer

from specdec.cli.bench.output import end, show
from specdec.cli.options import ALL, takes_engine
from specdec.cli.progress import on_stderr
from specdec.config import EngineConfig

_VARIED = {"max_batch", "chunk_tokens", "prefix_cache"}  # by the bench itself


@takes_engine(ALL - _VARIED)
def lossless(
    config: EngineConfig,
    tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=2)] = 32,
    prompts: Annotated[int, typer.Option(help="Prompts, each of another content type.", min=1)] = 8,
    seeds: Annotated[int, typer.Option(help="Seeds for each prompt and temperature.", min=1)] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="Few prompts, tokens and batch sizes.")] = False,
) -> None:
    """Whether anything but prompt, parameters and seed changes a bit. Exit code 1 if so."""
    from specdec.bench import lossless, report  # bring torch, which --help should not wait for

    settings = lossless.LosslessSettings(config=config, max_tokens=tokens, prompts=prompts, seeds=seeds)
    if quick:
        settings = lossless.quick(settings)
    data = lossless.run(settings, on_stderr())
    tokens = data["results"]["tokens"]
    title = f"Losslessness of {config.model}: every setting against plain decoding, one request at a time; {tokens:,} tokens"
    show(title, report.lossless_rows(data), data)
    end(
        [
            f"{row['setting']}: differs first at {row['first_difference']}"
            for row in data["results"]["settings"]
            if row["first_difference"] is not None
        ]
        + [f"{name}: nothing was preempted, so nothing is shown; raise --tokens" for name in data["results"]["not_tried"]]
    )
