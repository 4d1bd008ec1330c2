"""The engine's options: each is declared once, and every command that needs an engine offers them by `takes_engine`.

On the command line, in a config file and as SPECDEC_* in the environment they have the same names; `specdec.cli.command` reads
them there, also under the names of other servers.
"""

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_type_hints

import typer

from specdec.config import ACCEPTANCE_RULES, DRAFTERS, DTYPES, NO_DRAFTERS, EngineConfig
from specdec.foreign import ENGINE_ALIASES

_MODEL, _MACHINE, _ENGINE, _SPECULATION = "Model", "Machine", "Engine", "Speculation"  # the panels of --help
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

    @property
    def aliases(self) -> tuple[str, ...]:
        """What other servers call it."""
        return ENGINE_ALIASES.get(self.field, ())

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
    EngineOption("revision", _MODEL, "Branch, tag or commit of the model on the hub."),
    EngineOption("tokenizer", _MODEL, "Take the tokenizer of this model."),
    EngineOption("chat_template", _MODEL, "A file with the chat template, or the template itself."),
    EngineOption("generation_config", _MODEL, "auto: the model's own sampling defaults; none: the API's."),
    EngineOption("parse_special", _MODEL, "Names of special tokens in messages become these tokens, or are text."),
    EngineOption("dtype", _MACHINE, f"{', '.join(DTYPES)}."),
    EngineOption("device", _MACHINE, "auto, cpu or cuda."),
    EngineOption("num_threads", _MACHINE, "CPU threads; torch's own choice if not given.", "threads"),
    EngineOption("measure_anew", _MACHINE, "Measure self-test and costs anew, or take them from an earlier start."),
    EngineOption("max_model_len", _ENGINE, "Most tokens of prompt and answer."),
    EngineOption(
        "max_batch",
        _ENGINE,
        "Sequences in one round; if not given, 256 on a GPU, else 32; benches: what they run.",
    ),
    EngineOption(
        "gpu_memory_utilization",
        _ENGINE,
        "Share of a GPU's memory for weights and caches together, where --cache-gb is not given.",
    ),
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
    EngineOption(
        "draft_model",
        _SPECULATION,
        "A smaller model with the same tokenizer; adds the drafter draft-model.",
    ),
    EngineOption("acceptance", _SPECULATION, f"Rule: {' or '.join(ACCEPTANCE_RULES)}."),
    EngineOption(
        "max_tree_nodes",
        _SPECULATION,
        "Most nodes of one sequence's tree, the root counted.",
    ),
    EngineOption("max_tree_depth", _SPECULATION, "Most drafted tokens in a row."),
    EngineOption("adaptive", _SPECULATION, "Verify what is expected to pay, or whole drafts, whatever they cost."),
)
ALL = frozenset(option.field for option in ENGINE_OPTIONS)
WHOLE_NUMBERS = frozenset(name for name, kind in _TYPES.items() if kind in (int, int | None))
OPTIONAL_NUMBERS = frozenset(name for name, kind in _TYPES.items() if kind in (int | None, float | None))
_ALIASES_OF_OTHERS = {  # of parameters that single commands have
    "--alias": "served_model_name",
    "-a": "served_model_name",
    "--uvicorn-log-level": "log_level",
    "--temp": "temperature",
    "--repeat-penalty": "repetition_penalty",
    "-n": "max_tokens",
    "--predict": "max_tokens",
    "--n-predict": "max_tokens",
    "--system-prompt": "system",
    "-sys": "system",
}
# what other servers call an option: by their flag, the name of the parameter
ALIASES = {alias: option.field for option in ENGINE_OPTIONS for alias in option.aliases} | _ALIASES_OF_OTHERS
CONFIG_FLAG, _CONFIG_FILE = "--config", "config_file"


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
            del values[_CONFIG_FILE]  # read already, see `specdec.cli.command`
            given = {option.field: values.pop(option.field) for option in options}
            command(**values, **{_PARAMETER: EngineConfig.of(defaults | given)})

        both = [*own, *parameters, _config_file()]
        run.__dict__["__signature__"] = signature.replace(parameters=both)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in both}
        return run

    return decorate


def _config_file() -> inspect.Parameter:
    said = typer.Option(CONFIG_FLAG, help="A YAML file of options, as in 'max-batch: 8'; flags and SPECDEC_* go before it.")
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(_CONFIG_FILE, keyword, default=None, annotation=Annotated[str | None, said])


def arguments(config: EngineConfig) -> list[str]:
    """What to type to get this config, where it differs from the defaults."""
    found = []
    for option in ENGINE_OPTIONS:
        value = getattr(config, option.field)
        if value != _DEFAULTS[option.field]:
            found += option.words(value)
    return found


def _joined(items: tuple[str, ...]) -> str:
    return ",".join(items) or "none"
