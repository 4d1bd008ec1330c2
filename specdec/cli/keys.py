"""The API keys of a server, as people give them."""

from pathlib import Path

from specdec.config import names
from specdec.errors import ConfigError


def keys(given: str | None, file: Path | None) -> tuple[str, ...]:
    """Those of a comma list, and those of a file, one in a line; empty lines and lines that begin with # are none.

    Raises:
        ConfigError: the file cannot be read, or something was given that has no key.
    """
    found = [*names(given or ""), *(_lines(file) if file is not None else ())]
    if given is not None and not names(given):
        raise ConfigError("api_key is empty: leave it out, or give a key.")
    return tuple(dict.fromkeys(found))


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The file of API keys {file} cannot be read: {error}.") from error
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise ConfigError(f"The file of API keys {file} has no key; write one in each line.")
    return found
