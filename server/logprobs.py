"""Log probabilities in the two forms of OpenAI's API."""

import itertools
from collections.abc import Sequence
from typing import Any

from specdec.request import MAX_TOP_LOGPROBS, TokenLogprob
from specdec.text.tokenizer import Tokenizer

_LOWEST = -9999.0  # stands for minus infinity, which JSON cannot say


def prompt_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprob], top: int) -> list[dict[str, Any] | None]:
    """`prompt_logprobs` as vLLM has it: for each token but the first, by id, itself and the `top` most likely ones."""
    told: list[dict[str, Any] | None] = [None]
    for entry in entries:
        best = [(token, logprob, rank) for rank, (token, logprob) in enumerate(entry.top[:top], 1)]
        told.append(
            {
                str(token): {"logprob": _finite(logprob), "rank": rank, "decoded_token": _text(tokenizer, token)}
                for token, logprob, rank in (*best, (entry.token, entry.logprob, entry.rank))
            }
        )
    return told


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion."""
    content = [
        _entry(tokenizer, entry.token, entry.logprob)
        | {"top_logprobs": [_entry(tokenizer, token, logprob) for token, logprob in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokenizer: Tokenizer,
    entries: Sequence[TokenLogprob],
    start: int,
    top: int = MAX_TOP_LOGPROBS,
    first_token: int | None = None,
) -> dict[str, Any]:
    """`choices[].logprobs` of a text completion.

    Args:
        tokenizer: the model's.
        entries: of tokens that follow one another.
        start: where the first token's text begins.
        top: how many of the most likely tokens are told.
        first_token: of a prompt; it comes before the others, and nothing says how likely it is.
    """
    leads = [] if first_token is None else [first_token]
    tokens, nothing = [*leads, *(entry.token for entry in entries)], [None] * len(leads)
    lengths = [num_characters(tokenizer, [token]) for token in tokens]
    tops = ((*entry.top[:top], (entry.token, entry.logprob)) for entry in entries)
    return {
        "tokens": [_text(tokenizer, token) for token in tokens],
        "token_logprobs": nothing + [_finite(entry.logprob) for entry in entries],
        "top_logprobs": nothing + [{_text(tokenizer, token): _finite(logprob) for token, logprob in best} for best in tops],
        "text_offset": [start + before for before in itertools.accumulate(lengths[:-1], initial=0)] if tokens else [],
    }


def num_characters(tokenizer: Tokenizer, token_ids: Sequence[int]) -> int:
    """Characters that begin in these tokens: in UTF-8 all bytes but 10xxxxxx begin one."""
    return sum(byte & 0xC0 != 0x80 for token in token_ids for byte in tokenizer.token_bytes(token))


def _entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    raw = list(tokenizer.token_bytes(token)) or None
    return {"token": _text(tokenizer, token), "bytes": raw, "logprob": _finite(logprob)}


def _text(tokenizer: Tokenizer, token: int) -> str:
    """Never the same for two tokens that differ: a part of a character shows its bytes, a special token its id."""
    raw = tokenizer.token_bytes(token)
    if not raw:
        return f"token_id:{token}"
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST)
