"""From emitted tokens to what the caller sees: where a request ends, its text, its logprobs."""

from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.engine.sequence import Sequence
from specdec.loop_members import RoundScores
from specdec.request import MAX_TOP_LOGPROBS, FinishReason, RequestOutput, TokenLogprob
from specdec.round.commit import Outcome
from specdec.round.sample.sampling import logprobs


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


def read_logprobs(
    sequences: SequenceOf[Sequence], outcomes: SequenceOf[Outcome], logits_TV: Tensor
) -> list[list[TokenLogprob]]:
    """Per sequence, the logprobs of its emitted tokens; empty for those that did not ask."""
    asked = [i for i, sequence in enumerate(sequences) if sequence.sampling.logprobs is not None]
    found: list[list[TokenLogprob]] = [[] for _ in sequences]
    if not asked:
        return found
    rows = torch.cat([torch.from_numpy(outcomes[i].rows) for i in asked]).to(logits_TV.device)
    tokens = torch.tensor([token for i in asked for token in outcomes[i].emitted], device=logits_TV.device)
    # as many for all that want any, so that who else is there does not decide which of equals come first
    most = min(MAX_TOP_LOGPROBS, logits_TV.shape[1]) if any(sequences[i].sampling.logprobs for i in asked) else 0
    own_N, top_tokens_NK, top_logprobs_NK = (t.tolist() for t in logprobs(logits_TV[rows], tokens, most))
    row = 0
    for i in asked:
        end = row + len(outcomes[i].emitted)
        parts = (own_N[row:end], top_tokens_NK[row:end], top_logprobs_NK[row:end])
        found[i] = _logprobs(sequences[i], outcomes[i].emitted, *parts)
        row = end
    return found


def ahead_logprobs(sequence: Sequence, emission: Emission, scores: RoundScores | None, index: int) -> list[TokenLogprob]:
    """The same of a round that ran ahead of the host, for the member at `index`."""
    if scores is None or sequence.sampling.logprobs is None:
        return []
    return _logprobs(sequence, emission.token_ids, scores.own[index], scores.top_tokens[index], scores.top_logs[index])


def _logprobs(
    sequence: Sequence,
    tokens: SequenceOf[int],
    own: SequenceOf[float],
    top_tokens: SequenceOf[SequenceOf[int]],
    top_logs: SequenceOf[SequenceOf[float]],
) -> list[TokenLogprob]:
    """As many of the most likely ones as the request wants, of the rows that gave these tokens; more rows may follow."""
    wanted = sequence.sampling.logprobs or 0
    rows = zip(tokens, own, top_tokens, top_logs, strict=False)
    return [TokenLogprob(token, log, tuple(zip(best[:wanted], logs[:wanted], strict=True))) for token, log, best, logs in rows]
