"""Log probabilities in the two forms of OpenAI's API."""

from collections.abc import Sequence
from typing import Any

from specdec.request import TokenLogprob
from specdec.text.tokenizer import Tokenizer

_LOWEST = -9999.0  # stands for minus infinity, which JSON cannot say


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion."""
    content = [
        _entry(tokenizer, entry.token, entry.logprob)
        | {"top_logprobs": [_entry(tokenizer, token, logprob) for token, logprob in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprob], start: int) -> dict[str, Any]:
    """`choices[].logprobs` of a text completion; `start` is where the first token's text begins."""
    offsets = []
    for entry in entries:
        offsets.append(start)
        start += num_characters(tokenizer, [entry.token])
    tops = ((*entry.top, (entry.token, entry.logprob)) for entry in entries)
    return {
        "tokens": [_text(tokenizer, entry.token) for entry in entries],
        "token_logprobs": [_finite(entry.logprob) for entry in entries],
        "top_logprobs": [{_text(tokenizer, token): _finite(logprob) for token, logprob in top} for top in tops],
        "text_offset": offsets,
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
