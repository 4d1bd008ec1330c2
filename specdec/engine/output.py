"""From emitted tokens to what the caller sees: where a request ends, its text, its logprobs."""

from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import numpy as np

from specdec.engine.sequence import Sequence
from specdec.request import FinishReason, RequestOutput, TokenLogprob
from specdec.round.outcome import Outcome


class Emission(NamedTuple):
    """The tokens a sequence keeps of those a round emitted, and whether it ends with them."""

    token_ids: list[int]
    text: str
    finish_reason: FinishReason | None
    stop_reason: str | int | None


def emit(sequence: Sequence, emitted: SequenceOf[int]) -> Emission:
    """Append what is kept of `emitted` to the sequence; tokens past its end are dropped."""
    kept, stop_token = _up_to_stop_token(sequence, emitted)
    delta = sequence.stream.push(kept[:-1] if stop_token is not None else kept)
    if delta.stop is not None:
        kept = kept[: delta.num_tokens]
        sequence.tokens += kept
        return Emission(kept, delta.text, FinishReason.STOP, delta.stop)
    sequence.tokens += kept
    if stop_token is not None:
        return Emission(kept, delta.text + sequence.stream.flush(), FinishReason.STOP, stop_token)
    if sequence.num_output_tokens >= sequence.sampling.max_tokens:
        return Emission(kept, delta.text + sequence.stream.flush(), FinishReason.LENGTH, None)
    return Emission(kept, delta.text, None, None)


def _up_to_stop_token(sequence: Sequence, emitted: SequenceOf[int]) -> tuple[list[int], int | None]:
    room = sequence.sampling.max_tokens - sequence.num_output_tokens
    kept = list(emitted[:room])
    if sequence.stop_ids.isdisjoint(kept):
        return kept, None
    for index, token in enumerate(kept):
        if token in sequence.stop_ids:
            return kept[: index + 1], token
    return kept, None


def output(sequence: Sequence, emission: Emission, logprobs: SequenceOf[TokenLogprob]) -> RequestOutput:
    """The delta that is sent for an emission."""
    return RequestOutput(
        request_id=sequence.request_id,
        token_ids=tuple(emission.token_ids),
        text=emission.text,
        logprobs=tuple(logprobs[: len(emission.token_ids)]),
        finish_reason=emission.finish_reason,
        stop_reason=emission.stop_reason,
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_cached_tokens=sequence.num_prefix_hits,
        stats=sequence.stats if emission.finish_reason is not None else None,
    )


def read_logprobs(sequence: Sequence, tokens: SequenceOf[int], outcome: Outcome, index: int) -> list[TokenLogprob]:
    """The logprobs of a sequence's tokens of a round, as many of the most likely ones as it wants; none where it did not ask.

    Args:
        sequence: whose.
        tokens: what it keeps of what the round emitted.
        outcome: of the round.
        index: the sequence's place among its members.
    """
    wanted, scores = sequence.sampling.logprobs, outcome.scores
    if wanted is None or scores is None:
        return []
    rows = scores.firsts_M[index] + (outcome.paths[index] if outcome.shape.drafting else 0)
    rows = np.broadcast_to(rows, len(outcome.emitted[index]))[: len(tokens)]
    own, best, logs = scores.own_T[rows], scores.tokens_TK[rows, :wanted], scores.logs_TK[rows, :wanted]
    told = zip(tokens, own.tolist(), best.tolist(), logs.tolist(), strict=True)
    return [TokenLogprob(token, log, tuple(zip(ids, top, strict=True))) for token, log, ids, top in told]
