"""Files that are not what they should be: one line that names the file and what to do."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specdec.errors import ConfigError

_POINTER = b"version https://git-lfs"
_MOST_WORDS = 200  # characters of what a library says; some quote the whole file


def damaged(path: Path, why: object) -> ConfigError:
    """The error for a file that cannot be read as what its name says. why: what is wrong, as a clause or an exception."""
    if is_pointer(path):
        return ConfigError(f"{path} is a Git LFS pointer, not the file itself; run git lfs pull there, or fetch it again.")
    said = " ".join(str(why).split())
    return ConfigError(f"{path} is damaged: {said[:_MOST_WORDS].rstrip('.')}; fetch it again.")


def is_pointer(path: Path) -> bool:
    """Whether a file only says where Git LFS keeps the file."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def read_json(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file.

    Raises:
        ConfigError: it cannot be read, or is no JSON object.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; check its rights.") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"it is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise damaged(path, f"it holds no JSON object but a {type(found).__name__}")
    return found
