"""Lines of the log: when, how bad, for which request, and what; as text or as JSON objects."""

import json
import logging
import time
from contextvars import ContextVar
from typing import Any

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)  # of the request that is being served here
_NO_HTTP = "aiohttp.http_exceptions"  # where the errors of bytes that are no HTTP are defined


def set_up(level: str, form: str) -> None:
    """Write this process's log to standard error. A record may have `fields`, a mapping, for whoever reads JSON.

    Args:
        level: one of LOG_LEVELS.
        form: one of LOG_FORMATS.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines() if form == "json" else _TextLines())
    handler.addFilter(_tidy)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a record says to machines, the request's id first."""
    fields: dict[str, Any] = dict(getattr(record, "fields", {}))
    request_id = fields.pop("request_id", None) or REQUEST_ID.get()
    return ({"request_id": request_id} if request_id else {}) | fields


class _TextLines(logging.Formatter):
    """`2026-11-29 12:00:00.123 INFO specdec.server.app: message`, the request's id in brackets where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        request_id = fields_of(record).get("request_id")
        about = f" [{request_id}]" if request_id else ""
        line = f"{when}.{record.msecs:03.0f} {record.levelname} {record.name}:{about} {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonLines(logging.Formatter):
    """One object in each line: time (RFC 3339, UTC), level, logger, message, request_id, the record's fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said = {
            "time": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said, default=str)


def _tidy(record: logging.LogRecord) -> bool:
    """A client that speaks no HTTP/1 is no fault of the server's, and worth no traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and type(error).__module__ == _NO_HTTP:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        record.msg, record.args, record.exc_info, record.exc_text = "Bytes that are no HTTP/1.1: %s", (why,), None, None
        record.levelno, record.levelname = logging.INFO, "INFO"
    return record.levelno >= logging.getLogger().level
