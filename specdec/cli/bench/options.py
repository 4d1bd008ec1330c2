"""Options that several benches share, beside the engine's."""

from pathlib import Path
from typing import Annotated

import typer

from specdec.config import names
from specdec.errors import ConfigError

Shape = Annotated[
    str | None,
    typer.Option(help="Random weights of this shape instead of a model: qwen3-30b-a3b, llama-3.1-8b, smollm2-135m or tiny."),
]
Suite = Annotated[Path | None, typer.Option(help="Folder of .jsonl prompts instead of the built-in suite.")]
Content = Annotated[str, typer.Option(help="Only these content types of the suite, with commas.")]


def numbers(text: str, option: str) -> tuple[int, ...]:
    """The items of a comma list of positive integers.

    Raises:
        ConfigError: it is none; the message names `option`.
    """
    try:
        found = tuple(int(item) for item in names(text))
    except ValueError as error:
        raise ConfigError(f"{option} must be numbers with commas between them, not {text!r}.") from error
    if not found or min(found) < 1:
        raise ConfigError(f"{option} must name numbers of 1 or more, not {text!r}.")
    return found
