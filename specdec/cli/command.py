"""Where the values of a command's options come from: its own words, the environment, a config file, in this order.

Each place may use our names or those of other servers (`specdec.cli.options`, `specdec.foreign`); they are read here and
handed on under ours.
"""

import json
import os
import re
import sys
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from specdec.cli.options import ALIASES, CONFIG_FLAG, OPTIONAL_NUMBERS, WHOLE_NUMBERS
from specdec.errors import ConfigError
from specdec.foreign import CONVERTED, FIXED, IMPOSSIBLE, VOID, Values, told

OTHER_NAMES = "Flags of vLLM, SGLang and llama.cpp are understood too, and so is SPECDEC_MAX_BATCH for --max-batch, and so on."
_ENVIRONMENT = "SPECDEC_"
_UNSET = ("auto", "-1")  # what other servers call "as if it were not given"
_NUMBER = re.compile(r"-?\.?\d")  # what begins so is a value, not a flag
_SHORT_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([kKmMgG])")
_FACTORS = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}  # as vLLM reads them


class EngineCommand(typer.core.TyperCommand):
    """A command that takes the engine's options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click: the words of the command line become the parameters' values."""
        names = _Names(self.params, _flags_of(ctx.find_root().command))
        if not ctx.resilient_parsing:  # which completion in a shell is
            args = list(names.words(args))
            path = _last_value(args, CONFIG_FLAG) or os.environ.get(f"{_ENVIRONMENT}CONFIG")
            ctx.default_map = {**(names.of_file(path) if path else {}), **names.of_environment(os.environ)}
        found: list[str] = super().parse_args(ctx, args)
        return found


class _Names:
    """The parameters of a command, and all names that they go by. elsewhere: flags of any command, which files may have too."""

    def __init__(self, parameters: Sequence[Any], elsewhere: Collection[str]) -> None:
        self._elsewhere = {*elsewhere, *ALIASES}
        self._parameters = {parameter.name: parameter for parameter in parameters}
        options = [parameter for parameter in parameters if parameter.param_type_name == "option"]
        self._positive = {flag: option for option in options for flag in option.opts}
        self._negative = {flag: option for option in options for flag in option.secondary_opts}
        self._aliases = {flag: self._parameters[name] for flag, name in ALIASES.items() if name in self._parameters}

    def words(self, args: Sequence[str]) -> Iterator[str]:
        """A command line with our names in place of others."""
        rest = deque(args)
        while rest:
            word = rest.popleft()
            if word == "--":
                yield word
                yield from rest
                return
            flag, equals, value = word.partition("=")
            flag = _dashed(flag)
            if not word.startswith("-") or _NUMBER.match(word) or not self._knows(flag):
                yield word
                continue
            given: str | None = value if equals else self._behind(flag, rest)
            if given is None and self._takes_value(flag) and self._is_ours(flag):
                yield flag  # the parser says what is missing
                continue
            for name, found in self._meaning(flag, given).items():
                yield from self._written(name, found)

    def _behind(self, flag: str, rest: deque[str]) -> str | None:
        """The value that follows a flag. Flags of others that have no effect here may have none in some versions."""
        if not rest or not self._takes_value(flag):
            return None
        a_flag = rest[0].startswith("-") and not _NUMBER.match(rest[0])
        return None if a_flag and not self._is_ours(flag) else rest.popleft()

    def of_file(self, path: str) -> Values:
        """The values of a YAML file: a mapping of options, with or without dashes, to values.

        Raises:
            ConfigError: it cannot be read, or a name is unknown.
        """
        found: Values = {}
        for key, value in _read_yaml(path).items():
            flag = self._flag(str(key))
            if flag is None and _dashed(f"--{str(key).strip('-')}") not in self._elsewhere:
                raise ConfigError(f"{path}: there is no option {key!r}; `--help` lists those that there are.")
            if flag is not None and value is not None:
                found |= self._meaning(flag, value)
        return found

    def of_environment(self, environment: Mapping[str, str]) -> Values:
        """The values of variables such as SPECDEC_MAX_BATCH. Others of that prefix are not ours: a container's platform may
        make some of a service's name, and its port an address."""
        found: Values = {}
        for name, value in environment.items():
            flag = _dashed(f"--{name.removeprefix(_ENVIRONMENT).lower()}")
            ours = name.startswith(_ENVIRONMENT) and self._is_ours(flag)
            if ours and value and not value.startswith(("tcp://", "udp://")):
                found |= self._meaning(flag, value)
        return found

    def _flag(self, name: str) -> str | None:
        """The flag of a name without dashes in front."""
        flags = (f"{dashes}{name.strip('-').replace('_', '-')}" for dashes in ("--", "-"))
        return next((flag for flag in flags if self._knows(flag)), None)

    def _knows(self, flag: str) -> bool:
        return self._is_ours(flag) or flag in VOID or flag in IMPOSSIBLE

    def _is_ours(self, flag: str) -> bool:
        """Whether it sets something here."""
        return any(flag in names for names in (self._positive, self._negative, self._aliases, FIXED, CONVERTED))

    def _takes_value(self, flag: str) -> bool:
        if flag in self._negative or (flag in FIXED and flag not in self._positive):
            return False
        parameter = self._positive.get(flag) or self._aliases.get(flag)
        if parameter is not None:
            return not getattr(parameter, "is_flag", False)
        foreign = VOID.get(flag) or IMPOSSIBLE.get(flag)
        return foreign is None or foreign.takes_value

    def _meaning(self, flag: str, value: object) -> Values:
        """What a flag sets, by our names. `value` is None behind a flag that stands alone."""
        if flag in self._positive:
            return self._value(self._positive[flag], True if value is None else value)
        if flag in self._negative:
            return {self._negative[flag].name: value in (False, "0", "false", "no", "off")}
        if flag in self._aliases:
            parameter = self._aliases[flag]
            unset = str(value) == "0" and parameter.name in OPTIONAL_NUMBERS  # llama.cpp's word for it
            return {} if unset else self._value(parameter, value)
        if flag in FIXED:
            name, meant = FIXED[flag]
            return {name: meant != (str(value).lower() in ("false", "0", "no", "off"))} if name in self._parameters else {}
        if flag in CONVERTED:
            return {name: found for name, found in CONVERTED[flag](value).items() if name in self._parameters}
        if why := told(flag, value):
            print(f"specdec: {why}", file=sys.stderr)
        return {}

    def _value(self, parameter: Any, value: object) -> Values:
        """Of one parameter; none where the word for it says so."""
        if value in _UNSET and parameter.name in OPTIONAL_NUMBERS:
            return {}
        if isinstance(value, list) and not parameter.multiple:
            value = ",".join(map(str, value))
        elif getattr(parameter, "multiple", False) and not isinstance(value, list):
            value = [value]
        elif isinstance(value, str) and parameter.name in WHOLE_NUMBERS and (short := _SHORT_NUMBER.fullmatch(value)):
            value = int(float(short[1]) * _FACTORS[short[2]])
        return {parameter.name: value}

    def _written(self, name: str, value: object) -> Iterator[str]:
        """As words of a command line."""
        parameter = self._parameters[name]
        if parameter.param_type_name == "argument":
            yield str(value)
        elif getattr(parameter, "is_flag", False):
            on = value in (True, "1", "true", "yes", "on")
            yield from (parameter.opts if on else parameter.secondary_opts)[:1]
        else:
            for each in value if isinstance(value, list) else [value]:
                yield from (parameter.opts[0], str(each))


def _flags_of(command: Any) -> set[str]:
    """All flags of a command and of those below it."""
    found = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    return found.union(*(_flags_of(below) for below in getattr(command, "commands", {}).values()))


def _dashed(flag: str) -> str:
    """vLLM takes --max_model_len for --max-model-len."""
    return flag.replace("_", "-") if flag.startswith("--") else flag


def _last_value(args: Sequence[str], flag: str) -> str | None:
    """What is given behind the last of these flags."""
    places = [place for place, word in enumerate(args[:-1]) if word == flag]
    return args[places[-1] + 1] if places else None


def _read_yaml(path: str) -> dict[Any, Any]:
    import yaml  # where no file is named, nobody waits for it

    try:
        found = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The config file {path} cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"The config file {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found or {}, dict):
        raise ConfigError(f"The config file {path} must map options to values, as in 'max-batch: 8'.")
    return {key: json.dumps(value) if isinstance(value, dict) else value for key, value in (found or {}).items()}
