"""Paths of endpoints. A base URL with a slash too many still finds them."""

import re

_BETWEEN = re.compile(r"/+(?![^{]*})")  # no slash of a variable part


def loose(path: str) -> str:
    """A path for aiohttp's router that takes several slashes in place of one, and some at its end."""
    parts = [part for part in _BETWEEN.split(path) if part]
    slashes = [f"{{_{index}:/+}}" for index in range(1, len(parts))]
    inner = "".join(part + slash for part, slash in zip(parts, [*slashes, ""], strict=True)) if parts else ""
    return "/{_0:/*}" + inner + "{_:/*}" * bool(parts)


def tidy(path: str) -> str:
    """The path as the endpoint has it."""
    return "/" + "/".join(part for part in path.split("/") if part)
