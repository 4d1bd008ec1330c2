"""`specdec bench acceptance`: how often drafts are right."""

from pathlib import Path
from typing import Annotated

import typer

from specdec.cli.bench.options import Content, Suite
from specdec.cli.bench.output import show
from specdec.cli.options import takes_engine
from specdec.cli.progress import on_stderr
from specdec.config import EngineConfig, names


@takes_engine(prefix_cache=False)
def acceptance(
    config: EngineConfig,
    suite: Suite = None,
    content: Content = "",
    prompts: Annotated[int | None, typer.Option(help="Prompts of each content type; all if not given.", min=1)] = None,
    temperature: Annotated[float, typer.Option(help="0 always takes the most likely token.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=2)] = 128,
    repeats: Annotated[int, typer.Option(help="Repeats, for steadier seconds.", min=1)] = 1,
    output: Annotated[Path | None, typer.Option(help="Folder for a JSON and a Markdown report with a plot.")] = None,
) -> None:
    """How often drafts are right, by content type, and what that is worth."""
    from specdec.bench import acceptance, report  # bring torch, which --help should not wait for

    settings = acceptance.AcceptanceSettings(
        config=config,
        temperature=temperature,
        repeats=repeats,
        max_tokens=max_tokens,
        prompts_per_type=prompts,
        content=names(content),
        suite=suite,
    )
    data = acceptance.run(settings, on_stderr())
    if output is not None:
        report.write_acceptance(data, output)
    show(f"Acceptance of {config.model} (95 % bootstrap intervals over prompts)", report.acceptance_rows(data), data)
