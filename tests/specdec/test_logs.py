"""Lines of the log, as text and as JSON."""

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from specdec import logs


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards."""
    found = logging.getLogger()
    before = list(found.handlers), found.level
    yield found
    found.handlers[:], found.level = before


def said(form: str, root: logging.Logger, level: str = "info", **fields: Any) -> str:
    """What a line of a logger looks like."""
    logs.set_up(level, form)
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    out = io.StringIO()
    handler.setStream(out)
    log = logging.getLogger("specdec.test")
    log.debug("never seen")
    try:
        raise ValueError("out of luck")
    except ValueError as error:
        log.warning("%d of %s", 3, "5", extra={"fields": fields}, exc_info=error if fields.get("fails") else None)
    return out.getvalue()


def test_text_has_time_level_logger_request_and_message(root: logging.Logger) -> None:
    line = said("text", root, request_id="r-1", tokens=3)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} WARNING specdec\.test: \[r-1\] 3 of 5\n", line)
    assert ": 3 of 5\n" in said("text", root)


def test_json_has_them_as_fields(root: logging.Logger) -> None:
    line = json.loads(said("json", root, request_id="r-1", tokens=3))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {"level": "warning", "logger": "specdec.test", "message": "3 of 5", "request_id": "r-1", "tokens": 3}


@pytest.mark.parametrize("form", logs.LOG_FORMATS)
def test_exceptions_are_told_whole(root: logging.Logger, form: str) -> None:
    text = said(form, root, fails=True)
    assert "ValueError: out of luck" in text
    assert (len(text.splitlines()) == 1) == (form == "json")


def test_a_request_that_is_served_is_named(root: logging.Logger) -> None:
    token = logs.REQUEST_ID.set("r-9")
    try:
        assert "[r-9]" in said("text", root)
        assert json.loads(said("json", root))["request_id"] == "r-9"
    finally:
        logs.REQUEST_ID.reset(token)
