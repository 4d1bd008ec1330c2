"""Who has a key, and who shares what with whom."""

from pathlib import Path
from typing import Any

import pytest

from specdec.cli.keys import keys
from specdec.errors import ConfigError
from tests.server.conftest import Client, Start
from tests.server.fake_engine import MODEL, FakeEngine

pytestmark = pytest.mark.timeout(60)
CALLS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"model": MODEL, "prompt": "hello"},
}


async def salt_of(client: Client, engine: FakeEngine, path: str, key: str | None, **fields: Any) -> str:
    headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
    response = await client.post(path, json=CALLS[path] | fields, headers=headers)
    assert response.status == 200, await response.text()
    return engine.requests[-1].cache_salt


@pytest.mark.parametrize("path", CALLS)
async def test_each_of_several_keys_is_a_group(start: Start, engine: FakeEngine, path: str) -> None:
    client = await start(api_keys=["one", "two"])
    one, two = [await salt_of(client, engine, path, key) for key in ("one", "two")]
    assert one
    assert one != two
    assert "one" not in one, "whoever reads a request's salt does not read its key"
    assert await salt_of(client, engine, path, "one") == one
    narrowed = [await salt_of(client, engine, path, key, cache_salt="x") for key in ("one", "two")]
    assert len({one, two, *narrowed}) == 4
    for wrong in ("three", "one,two", ""):
        assert (await client.post(path, json=CALLS[path], headers={"Authorization": f"Bearer {wrong}"})).status == 401


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("api_keys", [[], ["one"]])
async def test_with_one_key_or_none_all_are_one_group(start: Start, engine: FakeEngine, path: str, api_keys: list[str]) -> None:
    client = await start(api_keys=api_keys)
    key = api_keys[0] if api_keys else None
    assert await salt_of(client, engine, path, key) == ""
    assert await salt_of(client, engine, path, key, cache_salt="x") == "x"


def test_keys_are_given_with_commas_and_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\n  two \n\nthree\none\n")
    assert keys(None, None) == ()
    assert keys("one", None) == ("one",)
    assert keys("one, two", None) == ("one", "two")
    assert keys("one", file) == ("one", "two", "three")


def test_what_has_no_key_is_refused(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("# nothing\n")
    binary.write_bytes(b"\xff\xfe")
    for given, file, words in (
        (" , ", None, "api_key is empty"),
        (None, empty, "has no key"),
        (None, binary, "cannot be read"),
        (None, tmp_path / "nowhere", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=words):
            keys(given, file)
