"""Content is text: names of special tokens that somebody typed are encoded as the characters they are, while those that the
chat template writes are tokens.

Before the template runs, each typed name is broken up by a mark, a character that stands for nothing; what is whole in the
rendered text is the template's own.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import tokenizers
from tokenizers import pre_tokenizers

_Value = TypeVar("_Value")
_MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))  # noncharacters, which Unicode keeps for uses like this


class TypedText:
    """Tells the template's special tokens from typed ones.

    Args:
        backend: it is not changed.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._special = {token.content: (i, token) for i, token in backend.get_added_tokens_decoder().items() if token.special}
        names = sorted((name for name in self._special if len(name) > 1), key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names))) if names else None
        self._backend = backend
        self._plain: tokenizers.Tokenizer | None = None
        self._prefixed = False  # whether a text that does not begin with a special token gets a space in front

    def is_in(self, value: object) -> bool:
        """Whether a name of a special token stands anywhere in a message."""
        return self._names is not None and any(self._names.search(text) for text in _texts(value))

    def mark(self, value: object) -> str:
        """A mark that does not stand in it, neither as it is nor as JSON writes it."""
        whole = "\n".join(_texts(value))
        return next((mark for mark in _MARKS if mark not in whole and _escaped(mark) not in whole), _MARKS[0])

    def broken_up(self, value: _Value, mark: str) -> _Value:
        """The same messages with the mark within every name of a special token."""
        assert self._names is not None
        return cast(_Value, _replaced(value, self._names, mark))

    def encode(self, text: str, mark: str) -> list[int]:
        """Token ids of a rendered text: names without marks are special tokens, marks are dropped."""
        plain, ids = self._as_text(), list[int]()
        assert self._names is not None
        end, strip = 0, False
        for found in [*self._names.finditer(text), None]:
            piece = text[end : found.start() if found else len(text)]
            token, added = self._special[found.group()] if found else (None, None)
            piece = piece.lstrip() if strip else piece
            piece = piece.rstrip() if added is not None and added.lstrip else piece
            piece = piece.replace(mark, "").replace(_escaped(mark), "")
            if self._prefixed and not ids and piece and not piece.startswith(" "):
                piece = f" {piece}"
            ids += plain.encode(piece, add_special_tokens=False).ids
            if found is not None and token is not None and added is not None:
                ids.append(token)
                end, strip = found.end(), added.rstrip
        return ids

    def _as_text(self) -> tokenizers.Tokenizer:
        """A copy that takes special tokens for text, made when first needed: it costs as much as loading."""
        if self._plain is None:
            plain = tokenizers.Tokenizer.from_str(self._backend.to_str())
            plain.encode_special_tokens = True
            cut = plain.pre_tokenizer
            if isinstance(cut, pre_tokenizers.Metaspace) and cut.prepend_scheme == "first":
                cut.prepend_scheme = "never"  # pieces are encoded one by one, and only the first begins the text
                self._prefixed = True
            self._plain = plain
        return self._plain


def _texts(value: object) -> Iterator[str]:
    """All strings in it, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from _texts(pair)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)


def _replaced(value: Any, names: re.Pattern[str], mark: str) -> Any:
    if isinstance(value, str):
        return names.sub(lambda found: mark.join((*found.group(), "")), value)
    if isinstance(value, Mapping):
        return {_replaced(key, names, mark): _replaced(item, names, mark) for key, item in value.items()}
    return [_replaced(item, names, mark) for item in value] if isinstance(value, list | tuple) else value


def _escaped(mark: str) -> str:
    return json.dumps(mark)[1:-1]
