"""From emitted tokens to what the caller sees: where a request ends, its text, its logprobs."""

import logging
from collections.abc import Sequence as SequenceOf

import numpy as np

from specdec.engine.sequence import Sequence
from specdec.request import FinishReason, RequestOutput, TokenLogprob
from specdec.round.outcome import Outcome

_log = logging.getLogger(__name__)


def emit(sequence: Sequence, emitted: list[int]) -> RequestOutput:
    """Append what is kept of `emitted` to the sequence; tokens past its end are dropped. The delta to send, without
    logprobs."""
    kept = emitted[: sequence.longest - len(sequence.tokens)]
    if not sequence.stop_ids.isdisjoint(kept):
        return _stop(sequence, kept)
    text, stop, num_tokens = sequence.stream.push(kept)
    if stop is not None:
        kept = kept[:num_tokens]
    sequence.tokens += kept
    if stop is not None:
        return _delta(sequence, kept, _with_stop(sequence, text, stop), FinishReason.STOP, stop)
    if len(sequence.tokens) >= sequence.longest:
        return _delta(sequence, kept, text + sequence.stream.flush(), FinishReason.LENGTH)
    return _delta(sequence, kept, text)


def _stop(sequence: Sequence, emitted: list[int]) -> RequestOutput:
    """As `emit`, where a stop token is among the tokens; a stop string before it comes first."""
    place = next(index for index, token in enumerate(emitted) if token in sequence.stop_ids)
    delta = sequence.stream.push(emitted[:place])
    kept = emitted[: delta.num_tokens if delta.stop is not None else place + 1]
    sequence.tokens += kept
    if delta.stop is not None:
        return _delta(sequence, kept, _with_stop(sequence, delta.text, delta.stop), FinishReason.STOP, delta.stop)
    text = delta.text
    if sequence.sampling.include_stop_str_in_output:
        end = sequence.stream.push(kept[-1:])
        text += end.text + (end.stop or "")
    return _delta(sequence, kept, text + sequence.stream.flush(), FinishReason.STOP, kept[-1])


def _with_stop(sequence: Sequence, text: str, stop: str) -> str:
    return text + stop if sequence.sampling.include_stop_str_in_output else text


def _delta(
    sequence: Sequence,
    token_ids: list[int],
    text: str,
    finish_reason: FinishReason | None = None,
    stop_reason: str | int | None = None,
) -> RequestOutput:
    return RequestOutput(
        request_id=sequence.request_id,
        token_ids=tuple(token_ids),
        text=text,
        finish_reason=finish_reason,
        stop_reason=stop_reason,
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_cached_tokens=sequence.num_prefix_hits,
        stats=sequence.stats if finish_reason is not None else None,
    )


def keep_prompt_logprobs(sequence: Sequence, outcome: Outcome, index: int, first: int, count: int) -> bool:
    """Take what a round tells of the prompt's tokens behind the positions [first, first + count), if the request asks for that.
    False where it is not a number.

    Args:
        sequence: whose.
        outcome: of the round.
        index: the sequence's place among its members.
        first, count: what it read of the prompt.
    """
    wanted, scores = sequence.sampling.prompt_logprobs, outcome.prompt_scores
    if wanted is None or scores is None or not sequence.reads_whole_prompt:
        return True
    rows = slice(start := int(scores.firsts_M[index]), start + count)
    own, best, logs = scores.own_T[rows], scores.tokens_TK[rows, :wanted], scores.logs_TK[rows, :wanted]
    tokens = sequence.tokens[first + 1 : first + 1 + count]
    told = zip(tokens, own.tolist(), best.tolist(), logs.tolist(), scores.ranks_T[rows].tolist(), strict=True)
    del sequence.prompt_logprobs[first:]  # what was computed before a preemption
    for token, log, ids, top, rank in told:
        sequence.prompt_logprobs.append(TokenLogprob(token, log, tuple(zip(ids, top, strict=True)), rank))
    return not np.isnan(own).any()


def tell_prompt_logprobs(sequence: Sequence, output: RequestOutput) -> None:
    """Put them into the first output behind the prompt, if the request asks for them."""
    if sequence.reads_whole_prompt:
        output.prompt_logprobs = tuple(sequence.prompt_logprobs)
        sequence.prompt_told, sequence.prompt_logprobs = True, []


def finish_prompt(sequence: Sequence) -> RequestOutput:
    """The whole answer to a request for no tokens, once its prompt is read."""
    output = _delta(sequence, [], "", FinishReason.LENGTH)
    tell_prompt_logprobs(sequence, output)
    return output


def aborted_output(sequence: Sequence) -> RequestOutput:
    """The last delta to send where the caller leaves: what is known of its text."""
    try:
        text = sequence.stream.flush()
    except Exception:
        _log.exception("The text of %s cannot be made.", sequence.request_id)
        text = ""
    return RequestOutput(request_id=sequence.request_id, text=text, finish_reason=FinishReason.ABORT, stats=sequence.stats)


def read_logprobs(sequence: Sequence, tokens: SequenceOf[int], outcome: Outcome, index: int) -> tuple[TokenLogprob, ...]:
    """The logprobs of a sequence's tokens of a round, as many of the most likely ones as it wants; none where it did not ask.

    Args:
        sequence: whose.
        tokens: what it keeps of what the round emitted.
        outcome: of the round.
        index: the sequence's place among its members.
    """
    wanted, scores = sequence.sampling.logprobs, outcome.scores
    if wanted is None or scores is None:
        return ()
    rows = scores.firsts_M[index] + (outcome.paths[index] if outcome.shape.drafting else 0)
    rows = np.broadcast_to(rows, len(outcome.emitted[index]))[: len(tokens)]
    own, best, logs = scores.own_T[rows], scores.tokens_TK[rows, :wanted], scores.logs_TK[rows, :wanted]
    told = zip(tokens, own.tolist(), best.tolist(), logs.tolist(), strict=True)
    return tuple(TokenLogprob(token, log, tuple(zip(ids, top, strict=True))) for token, log, ids, top in told)
