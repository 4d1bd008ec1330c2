"""The engine's options: each is declared once, and every command that needs an engine offers them by `takes_engine`."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_type_hints

import typer

from specdec.config import ACCEPTANCE_RULES, DRAFTERS, DTYPES, NO_DRAFTERS, EngineConfig
from specdec.errors import ConfigError

_MACHINE, _ENGINE, _SPECULATION = "Machine", "Engine", "Speculation"  # the panels of --help
_TYPES = get_type_hints(EngineConfig)
_DEFAULTS = {field.name: field.default for field in fields(EngineConfig)}
_PARAMETER = "config"  # the name under which a command gets its EngineConfig


@dataclass(frozen=True, slots=True)
class EngineOption:
    """How one field of EngineConfig is given on the command line. Its type and default are the field's own.

    Booleans make a pair, --name and --no-name; tuples are given with commas.
    """

    field: str
    panel: str | None  # of --help
    help: str
    name: str | None = None  # where it is not the field's; "" makes it an argument

    @property
    def flag(self) -> str:
        """As it is typed; empty for an argument."""
        name = self.field.replace("_", "-") if self.name is None else self.name
        return f"--{name}" if name else ""

    def parameter(self, default: object) -> inspect.Parameter:
        """The parameter of a command's function that typer makes the option from."""
        kind = _TYPES[self.field]
        if isinstance(default, tuple):
            kind, default = str, _joined(default)
        if not self.flag:
            said = typer.Argument(help=self.help)
        else:
            flag = f"{self.flag}/{self._negative}" if kind is bool else self.flag
            said = typer.Option(flag, help=self.help, rich_help_panel=self.panel)
        keyword = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(self.field, keyword, default=default, annotation=Annotated[kind, said])

    def words(self, value: object) -> list[str]:
        """The words of a command line that give the field this value."""
        if isinstance(value, bool):
            return [self.flag if value else self._negative]
        said = _joined(value) if isinstance(value, tuple) else str(value)
        return [self.flag, said] if self.flag else [said]

    @property
    def _negative(self) -> str:
        return f"--no-{self.flag.removeprefix('--')}"


ENGINE_OPTIONS = (
    EngineOption("model", None, "Alias, folder, .gguf file or hub id.", ""),
    EngineOption("generation_config", None, "auto: the model's own sampling defaults; none: the API's."),
    EngineOption("dtype", _MACHINE, f"{', '.join(DTYPES)}."),
    EngineOption("device", _MACHINE, "auto, cpu or cuda."),
    EngineOption("num_threads", _MACHINE, "CPU threads; torch's own choice if not given.", "threads"),
    EngineOption("max_model_len", _ENGINE, "Most tokens of prompt and answer."),
    EngineOption("max_batch", _ENGINE, "Sequences in one round; if not given, 256 on a GPU, else 32; benches: what they run."),
    EngineOption(
        "cache_gb",
        _ENGINE,
        "Memory for keys and values, in GB; if not given, most of what a GPU has free, else 2; benches: what they need.",
    ),
    EngineOption("page_size", _ENGINE, "Tokens of one cache page."),
    EngineOption(
        "chunk_tokens",
        _ENGINE,
        "Prompt tokens computed in one round; if not given, 8192 on a GPU (2048 where memory is short), else 256.",
    ),
    EngineOption("prefix_cache", _ENGINE, "Keep computed prompts for those that begin alike, or compute each anew."),
    EngineOption(
        "depth",
        _ENGINE,
        "Pipeline depth: rounds enqueued ahead of the one whose outcome is known; if not given, 1 on a GPU, else 0.",
    ),
    EngineOption("drafters", _SPECULATION, f"Drafters, with commas: {', '.join(DRAFTERS)}; or {NO_DRAFTERS}.", "drafter"),
    EngineOption("draft_model", _SPECULATION, "A smaller model with the same tokenizer; adds the drafter draft-model."),
    EngineOption("acceptance", _SPECULATION, f"Rule: {' or '.join(ACCEPTANCE_RULES)}."),
    EngineOption("max_tree_nodes", _SPECULATION, "Most nodes of one sequence's tree, the root counted."),
    EngineOption("max_tree_depth", _SPECULATION, "Most drafted tokens in a row."),
    EngineOption("adaptive", _SPECULATION, "Verify what is expected to pay, or whole drafts, whatever they cost."),
)
ALL = frozenset(option.field for option in ENGINE_OPTIONS)


def takes_engine(offered: Collection[str] = ALL, /, **defaults: object) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command whose parameter `config` is an EngineConfig: the options that make one take its place.

    Args:
        offered: the fields of EngineConfig that make sense for the command.
        defaults: of fields where the command has its own.
    """
    options = [option for option in ENGINE_OPTIONS if option.field in offered]
    parameters = [option.parameter((_DEFAULTS | defaults)[option.field]) for option in options]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in signature.parameters.values()
            if parameter.name != _PARAMETER
        ]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            given = {option.field: values.pop(option.field) for option in options}
            command(**values, **{_PARAMETER: engine_config(defaults | given)})

        both = [*own, *parameters]
        run.__dict__["__signature__"] = signature.replace(parameters=both)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in both}
        return run

    return decorate


def engine_config(values: Mapping[str, Any]) -> EngineConfig:
    """Fields of EngineConfig, some of them as they are typed.

    Raises:
        ConfigError: a value is out of its range, or there is no such drafter.
    """
    typed = values.get("drafters")
    if isinstance(typed, str):
        return EngineConfig(**{**values, "drafters": drafters(typed, values.get("draft_model"))})
    return EngineConfig(**values)


def arguments(config: EngineConfig) -> list[str]:
    """What to type to get this config, where it differs from the defaults."""
    found = []
    for option in ENGINE_OPTIONS:
        value = getattr(config, option.field)
        if value != _DEFAULTS[option.field]:
            found += option.words(value)
    return found


def names(text: str) -> tuple[str, ...]:
    """The items of a comma list, without blanks."""
    return tuple(item.strip() for item in text.split(",") if item.strip())


def drafters(text: str, draft_model: str | None) -> tuple[str, ...]:
    """The drafters of a comma list; a draft model brings its drafter along.

    Raises:
        ConfigError: an unknown name.
    """
    chosen = () if text.strip() == NO_DRAFTERS else names(text)
    if draft_model is not None and "draft-model" not in chosen:
        chosen = (*chosen, "draft-model")
    for name in chosen:
        if name not in DRAFTERS:
            raise ConfigError(f"There is no drafter {name!r}; there are {', '.join((*DRAFTERS, NO_DRAFTERS))}.")
    return chosen


def _joined(items: tuple[str, ...]) -> str:
    return ",".join(items) or "none"
