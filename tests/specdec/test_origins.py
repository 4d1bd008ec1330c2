"""Origins as they are typed at `specdec serve --allowed-origins`."""

import pytest

from specdec.cli.origins import origins
from specdec.errors import ConfigError


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("", ()),
        ("*", ("*",)),
        ('["*"]', ("*",)),
        ("http://localhost:3000, https://App.example.org/", ("http://localhost:3000", "https://app.example.org")),
        ('["http://localhost:3000", "https://app.example.org"]', ("http://localhost:3000", "https://app.example.org")),
        ("chrome-extension://abc", ("chrome-extension://abc",)),
    ],
)
def test_origins(typed: str, expected: tuple[str, ...]) -> None:
    assert origins(typed) == expected


@pytest.mark.parametrize("typed", ["localhost:3000", "example.org", "http://a/b", "[", "https://"])
def test_what_is_none_is_refused(typed: str) -> None:
    with pytest.raises(ConfigError, match="allowed_origins"):
        origins(typed)
