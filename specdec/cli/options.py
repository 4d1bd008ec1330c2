"""The options that several commands share, and how they become an EngineConfig."""

from pathlib import Path
from typing import Annotated

import typer

from specdec.config import ACCEPTANCE_RULES, DTYPES, EngineConfig
from specdec.errors import ConfigError

_SIZE, _SPECULATION, _MACHINE = "Sizes", "Speculation", "Machine"
DEFAULTS = EngineConfig()
DEFAULT_DRAFTER_LIST = ",".join(DEFAULTS.drafters)

Model = Annotated[str, typer.Argument(help="Alias, folder, .gguf file or hub id.")]
Drafter = Annotated[
    str,
    typer.Option(help="Drafters, with commas: ngram, suffix, prediction, draft-model; or none.", rich_help_panel=_SPECULATION),
]
DraftModel = Annotated[
    str | None,
    typer.Option(help="A smaller model with the same tokenizer; adds the drafter draft-model.", rich_help_panel=_SPECULATION),
]
Acceptance = Annotated[str, typer.Option(help=f"Rule: {' or '.join(ACCEPTANCE_RULES)}.", rich_help_panel=_SPECULATION)]
MaxTreeNodes = Annotated[
    int, typer.Option(help="Most nodes of one sequence's tree, the root counted.", rich_help_panel=_SPECULATION)
]
MaxTreeDepth = Annotated[int, typer.Option(help="Most drafted tokens in a row.", rich_help_panel=_SPECULATION)]
NoAdaptive = Annotated[
    bool, typer.Option("--no-adaptive", help="Verify whole drafts, whatever they cost.", rich_help_panel=_SPECULATION)
]
Dtype = Annotated[str, typer.Option(help=f"{', '.join(DTYPES)}.", rich_help_panel=_MACHINE)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.", rich_help_panel=_MACHINE)]
NoDeviceLoop = Annotated[
    bool,
    typer.Option("--no-device-loop", help="On a GPU, have the host take part in every round.", rich_help_panel=_MACHINE),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; torch's own choice if not given.", rich_help_panel=_MACHINE)]
MaxModelLen = Annotated[int | None, typer.Option(help="Most tokens of prompt and answer.", rich_help_panel=_SIZE)]
MaxBatch = Annotated[
    int | None, typer.Option(help="Sequences in one round; if not given, 256 on a GPU, else 32.", rich_help_panel=_SIZE)
]
CacheGb = Annotated[
    float | None,
    typer.Option(
        help="Memory for keys and values, in GB; if not given, most of what a GPU has free, else 2.", rich_help_panel=_SIZE
    ),
]
PageSize = Annotated[int, typer.Option(help="Tokens of one cache page.", rich_help_panel=_SIZE)]
ChunkTokens = Annotated[
    int | None,
    typer.Option(
        help="Prompt tokens computed in one round; if not given, 8192 on a GPU (2048 where memory is short), else 256.",
        rich_help_panel=_SIZE,
    ),
]
NoPrefixCache = Annotated[bool, typer.Option("--no-prefix-cache", help="Compute every prompt anew.", rich_help_panel=_SIZE)]
Shape = Annotated[
    str | None,
    typer.Option(help="Random weights of this shape instead of a model: qwen3-30b-a3b, llama-3.1-8b or smollm2-135m."),
]
Suite = Annotated[Path | None, typer.Option(help="Folder of .jsonl prompts instead of the built-in suite.")]
Content = Annotated[str, typer.Option(help="Only these content types of the suite, with commas.")]


def names(text: str) -> tuple[str, ...]:
    """The items of a comma list, without blanks."""
    return tuple(item.strip() for item in text.split(",") if item.strip())


def drafters(text: str, draft_model: str | None) -> tuple[str, ...]:
    """The drafters of a comma list; a draft model brings its drafter along.

    Raises:
        ConfigError: an unknown name.
    """
    from specdec.drafters.registry import DRAFTER_NAMES, NO_DRAFTERS  # brings numpy, which --help should not wait for

    chosen = () if text.strip() == NO_DRAFTERS else names(text)
    if draft_model is not None and "draft-model" not in chosen:
        chosen = (*chosen, "draft-model")
    for name in chosen:
        if name not in DRAFTER_NAMES:
            raise ConfigError(f"There is no drafter {name!r}; there are {', '.join((*DRAFTER_NAMES, NO_DRAFTERS))}.")
    return chosen
