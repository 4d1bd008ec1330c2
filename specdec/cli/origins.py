"""Origins of web pages, as they are typed."""

import json
from urllib.parse import urlsplit

from specdec.errors import ConfigError

ALL_ORIGINS = "*"


def origins(text: str) -> tuple[str, ...]:
    """Origins as they are typed: with commas, or as a JSON list. ConfigError where one is none."""
    try:
        items = json.loads(text) if text.lstrip().startswith("[") else text.split(",")
    except ValueError as error:
        raise ConfigError(f"allowed_origins is no JSON list: {error}.") from error
    found = tuple(str(item).strip().rstrip("/").lower() for item in items if str(item).strip())
    for origin in found:
        parts = urlsplit(origin)
        if origin != ALL_ORIGINS and (not parts.scheme or not parts.netloc or parts.path):
            raise ConfigError(f"allowed_origins must be {ALL_ORIGINS} or origins such as https://example.org, not {origin!r}.")
    return found
