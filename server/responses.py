"""Response bodies: the envelope around the choices, usage and speculation metrics."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from specdec.request import SpeculationStats
from specdec.server.answers import Answer
from specdec.server.choices import Choices
from specdec.server.requests import Call
from specdec.server.service import Service

_PREDICTION = "prediction"  # the drafter that follows the text a request supplies


@dataclass(frozen=True, slots=True)
class Reply:
    """What all bodies of one call share."""

    service: Service
    call: Call
    choices: Choices
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        choices = [self.choices.whole(index, answer) for index, answer in enumerate(answers)]
        body = self._envelope(self.choices.whole_object, choices)
        return body | {"usage": self.usage(answers)} | metrics(answers) | self.choices.head(answers[0])

    def chunk(self, choice: dict[str, Any] | None) -> dict[str, Any]:
        """The body of one event of a stream."""
        return self._envelope(self.choices.chunk_object, [] if choice is None else [choice])

    def usage(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Token counts so far; a prompt counts once, however many choices it has."""
        prompt = self.call.num_prompt_tokens
        completion = sum(answer.num_tokens for answer in answers)
        drafted = sum(answer.stats.drafted_by_drafter.get(_PREDICTION, 0) for answer in answers)
        accepted = sum(answer.stats.accepted_by_drafter.get(_PREDICTION, 0) for answer in answers)
        cached = sum(answer.num_cached_tokens for answer in answers[:: self.call.n])
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {
                "accepted_prediction_tokens": accepted,
                "rejected_prediction_tokens": drafted - accepted,
                "reasoning_tokens": 0,
            },
        }

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.call.id,
            "object": kind,
            "created": self.created,
            "model": self.service.model_name,
            "system_fingerprint": self.service.fingerprint,
            "choices": choices,
        }


def metrics(answers: Sequence[Answer]) -> dict[str, Any]:
    """`metrics.speculative_decoding` as load generators read it; only for calls of a single choice."""
    return {"metrics": {"speculative_decoding": _speculation(answers[0].stats)}} if len(answers) == 1 else {}


def _speculation(stats: SpeculationStats) -> dict[str, Any]:
    """`num_spec_tokens` is the deepest draft of this request, since trees have no fixed depth."""
    depth = len(stats.drafted_by_depth)
    return {
        "mean_acceptance_length": stats.mean_acceptance_length,
        "draft_acceptance_rate": stats.draft_acceptance_rate,
        "acceptance_histogram": stats.accepted_histogram + [0] * (depth + 1 - len(stats.accepted_histogram)),
        "num_spec_steps": stats.num_steps,
        "num_accepted_draft_tokens": stats.num_accepted_tokens,
        "num_draft_tokens": stats.num_draft_tokens,
        "num_spec_tokens": depth,
    }
