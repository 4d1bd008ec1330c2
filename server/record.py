"""What the log says of calls: a line for each that generated, when it is over, and one for each other response."""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from specdec.logs import REQUEST_ID
from specdec.request import FinishReason, Request, SpeculationStats
from specdec.server.answers import Answer

_log = logging.getLogger("specdec.server.requests")
_access = logging.getLogger("specdec.server.access")
_PROBES = frozenset({"/health", "/ready", "/ping", "/metrics"})  # asked every few seconds
_GENERATING = ("/chat/completions", "/completions")  # where these succeed, they have a line of their own
_REQUEST_ID = "X-Request-Id"


class CallRecord:
    """What one call came to; made when it is submitted."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._id = requests[0].request_id.rpartition("-")[0] if requests else ""
        self._num_choices = len(requests)
        self._started = time.monotonic()
        self._first_at: float | None = None
        self._num_tokens = 0
        self._ended: list[Answer] = []

    def begin(self) -> None:
        """Something came; the first time counts."""
        if self._first_at is None:
            self._first_at = time.monotonic()

    def take(self, parts: Iterable[Answer]) -> None:
        """Count what came; each part once."""
        for part in parts:
            self._num_tokens += part.num_tokens
            if part.last is not None:
                self._ended.append(part)

    def tell(self, error: str | None) -> None:
        """Write the line. error: why there is no whole answer, where the server knows."""
        fields = self._fields(error)
        first = f", first after {fields['first_token_seconds']:.3f} s" if "first_token_seconds" in fields else ""
        length = f", acceptance length {fields['acceptance_length']:.2f}" if "acceptance_length" in fields else ""
        known = f" ({fields['cached_tokens']} known)" if fields.get("cached_tokens") else ""
        prompt = f"{fields['prompt_tokens']} prompt tokens{known}, " if "prompt_tokens" in fields else ""
        _log.info(
            "%s: %s%d tokens in %.2f s%s%s%s",
            fields["outcome"], prompt, fields["tokens"], fields["seconds"], first, length, f"; {error}" if error else "",
            extra={"fields": fields},
        )  # fmt: skip

    def _fields(self, error: str | None) -> dict[str, Any]:
        now = time.monotonic()
        fields: dict[str, Any] = {
            "request_id": REQUEST_ID.get() or self._id,
            "call": self._id,
            "outcome": self._outcome(error),
            "choices": self._num_choices,
            "tokens": self._num_tokens,
            "seconds": round(now - self._started, 4),
        }
        if self._first_at is not None:
            fields["first_token_seconds"] = round(self._first_at - self._started, 4)
        if self._ended:
            fields["prompt_tokens"] = max(answer.num_prompt_tokens for answer in self._ended)
            fields["cached_tokens"] = max(answer.num_cached_tokens for answer in self._ended)
            stats = [answer.stats for answer in self._ended]
            fields |= _speculation(stats)
        if error is not None:
            fields["error"] = error
        return fields

    def _outcome(self, error: str | None) -> str:
        if error is not None:
            return "failed"
        reasons = {answer.finish_reason for answer in self._ended}
        if len(self._ended) < self._num_choices or FinishReason.ABORT in reasons:
            return "left"  # the client did
        return "+".join(sorted(str(reason) for reason in reasons))


def _speculation(stats: Sequence[SpeculationStats]) -> dict[str, Any]:
    steps, accepted = sum(each.num_steps for each in stats), sum(each.num_accepted_tokens for each in stats)
    drafted = sum(each.num_draft_tokens for each in stats)
    found: dict[str, Any] = {"draft_tokens": drafted, "accepted_tokens": accepted}
    return found | ({"acceptance_length": round(1 + accepted / steps, 4)} if steps else {})


class AccessLines(AbstractAccessLogger):
    """See `aiohttp.web.AppRunner`: method, path, status, seconds. Probes, and calls that have a line already, at debug."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """See aiohttp."""
        path = request.path.rstrip("/")
        own_line = request.method == "POST" and path.endswith(_GENERATING) and response.status < 400
        level = logging.DEBUG if own_line or path in _PROBES else logging.INFO
        request_id = response.headers.get(_REQUEST_ID) or request.headers.get(_REQUEST_ID)
        fields = {
            "request_id": request_id,
            "method": request.method,
            "path": request.path,
            "status": response.status,
            "seconds": round(time, 4),
            "client": request.remote,
        }
        _access.log(level, "%s %s %d in %.3f s", request.method, request.path, response.status, time, extra={"fields": fields})
