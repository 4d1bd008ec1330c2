"""Text to tokens and back, chat templates, and text as it comes.

Text is made of bytes: each token stands for some, special tokens for none. `Tokenizer.decode` and `TextStream` share
that one rule, so a stream's pieces add up to the decoded whole.
"""

import codecs
import functools
import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import tokenizers

from specdec.errors import ConfigError, RequestError
from specdec.text.chat_template import compile_template, render

if TYPE_CHECKING:
    from specdec.models.source import Source

Message = Mapping[str, Any]


class Tokenizer:
    """A model's tokenizer: byte-level BPE, or SentencePiece with byte fallback."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_token_ids: Iterable[int] = (),
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        """Args:
            backend: as the tokenizers library reads it from a tokenizer.json.
            chat_template: Jinja source.
            special_tokens: what the template may call by name (bos_token, eos_token, ...).

        Raises:
            ConfigError: the tokenizer turns tokens into text in another way than those named above.
        """
        self._backend = backend
        self._special_ids = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self._bytes: dict[int, bytes] = {}  # of the tokens that came up
        self._byte_level = _is_byte_level(backend)
        self._template_source = chat_template
        self._special_tokens = dict(special_tokens or {})
        self.eos_token_ids = frozenset(eos_token_ids)
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)

    @staticmethod
    def load(source: "Source") -> "Tokenizer":
        """The tokenizer beside a model. ConfigError where there is none that specdec can read."""
        from specdec.models.loader import read_source_config  # brings torch, which text does without
        from specdec.text.gguf_tokenizer import read_gguf_tokenizer

        eos = set(read_source_config(source).eos_token_ids)
        if source.is_gguf:
            found = read_gguf_tokenizer(source.gguf)
            return Tokenizer(
                found.backend, eos_token_ids=eos, chat_template=found.chat_template, special_tokens=found.special_tokens
            )
        backend = _read_backend(source)
        fields = source.json("tokenizer_config.json")
        special = {name: _content(fields[name]) for name in _SPECIAL_NAMES if fields.get(name)}
        if (eos_id := backend.token_to_id(special.get("eos_token", ""))) is not None:
            eos.add(eos_id)
        return Tokenizer(backend, eos_token_ids=eos, chat_template=_read_template(source, fields), special_tokens=special)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. Names of special tokens in it become those tokens."""
        # a batch of one: the library lets other threads run meanwhile, which it does not for a single text
        ids: list[int] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, special tokens left out; what is no UTF-8 becomes the replacement character."""
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")
        return text if self._byte_level else text.removeprefix(" ")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for: none for a special token and for an id without one."""
        known = self._bytes.get(token)
        if known is None:
            special = token in self._special_ids
            known = self._bytes[token] = b"" if special else _token_bytes(self._backend, self._byte_level, token)
        return known

    def token_text(self, token: int) -> str:
        """A token as the vocabulary writes it."""
        return self._backend.id_to_token(token) or ""

    @functools.cached_property
    def texts(self) -> "Mapping[int, str | None]":
        """By token: the text that it stands for by itself, None where its bytes are not whole characters."""
        return _Texts(self.token_bytes)

    @property
    def strips_first_space(self) -> bool:
        """Whether a text's first space is the tokenizer's own."""
        return not self._byte_level

    @property
    def has_chat_template(self) -> bool:
        return self._template_source is not None

    @property
    def chat_template(self) -> str | None:
        """Its Jinja source."""
        return self._template_source

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """The tokens that have a role, by its name (bos_token, eos_token, ...)."""
        return self._special_tokens

    @functools.cached_property
    def longest_token(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self._backend.get_vocab()))

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        continued: bool = False,
    ) -> list[int]:
        """Token ids of a conversation up to where the model's answer begins.

        Args:
            messages: the conversation.
            tools: what the template may describe.
            variables: what else the template is given, add_generation_prompt for one.
            continued: the answer goes on where the text of the last message ends.

        Raises:
            RequestError: the model has no chat template, or its template fails on the messages.
        """
        if self._template_source is None:
            raise RequestError("This model has no chat template; use /v1/completions.", param="messages", code="invalid_value")
        given = dict(variables or {})
        end = secrets.token_hex(16)  # stands where the last message's text ends
        if continued:
            messages = [*messages[:-1], {**messages[-1], "content": f"{messages[-1]['content']}{end}"}]
            given["add_generation_prompt"] = False
        try:
            text = render(self._template, messages, tools, self._special_tokens, given)
        except Exception as error:  # a template is a program, and fails in every way that programs do
            said = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
            raise RequestError(
                f"The model's chat template refuses the messages: {said}", param="messages", code="invalid_value"
            ) from error
        return self.encode(text.partition(end)[0] if continued else text, add_special_tokens=False)

    @functools.cached_property
    def _template(self) -> jinja2.Template:
        assert self._template_source is not None
        return compile_template(self._template_source)


class _Texts(dict[int, str | None]):
    """Filled as it is asked."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        super().__init__()
        self._token_bytes = token_bytes

    def __missing__(self, token: int) -> str | None:
        try:
            self[token] = self._token_bytes(token).decode("utf-8")
        except UnicodeDecodeError:
            self[token] = None
        return self[token]


class TextDelta(NamedTuple):
    """What some tokens added to a stream."""

    text: str
    stop: str | None = None  # the stop string that ended the stream
    num_tokens: int = 0  # tokens consumed, the one that completed the stop string included


class TextStream:
    """Text of tokens as they come, in whole characters, up to a stop string.

    Held back: an unfinished character, and text that a stop string may begin with. The text of the first `min_tokens`
    tokens is not searched. Work and memory per token are bounded by the longest stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), min_tokens: int = 0) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._min_tokens = min_tokens
        self._texts = tokenizer.texts
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._within = False  # a character has begun and not ended
        self._strip = tokenizer.strips_first_space
        self._held = ""  # searched for stop strings, may be the beginning of one
        self._num_tokens = 0
        self._stopped = False

    def push(self, token_ids: Sequence[int]) -> TextDelta:
        """Consume tokens up to the one that completes a stop string. After that, tokens are refused."""
        assert not self._stopped, "a stopped stream takes no more tokens"
        if not self._stop:
            return TextDelta(self._text(token_ids), None, len(token_ids))
        ready = []
        for consumed, token in enumerate(token_ids, 1):
            text = self._text((token,))
            self._num_tokens += 1
            if self._num_tokens <= self._min_tokens:
                ready.append(text)
                continue
            self._held += text
            if found := self._find_stop():
                start, stop = found
                ready.append(self._held[:start])
                self._held, self._stopped = "", True
                return TextDelta("".join(ready), stop, consumed)
            keep = self._possible_stop()
            ready.append(self._held[: len(self._held) - keep])
            self._held = self._held[len(self._held) - keep :]
        return TextDelta("".join(ready), None, len(token_ids))

    def flush(self) -> str:
        """What was held back, at the end of a stream that no stop string ended."""
        if self._stopped:
            return ""
        text, self._held = self._held + self._characters(b"", final=True), ""
        return text

    def _text(self, token_ids: Sequence[int]) -> str:
        """What tokens add. Most stand for whole characters, which need no decoder; this runs for every token of all streams."""
        if not (self._within or self._strip):
            found = [self._texts[token] for token in token_ids]
            if None not in found:
                return "".join(found)  # type: ignore[arg-type]
        return self._characters(b"".join(map(self._tokenizer.token_bytes, token_ids)))

    def _characters(self, new: bytes, final: bool = False) -> str:
        text = self._decoder.decode(new, final)
        self._within = bool(self._decoder.getstate()[0])
        if self._strip and text:
            text, self._strip = text.removeprefix(" "), False
        return text

    def _find_stop(self) -> tuple[int, str] | None:
        """The earliest stop string in the held text; of several at one place, the longest."""
        found = [(self._held.find(stop), -len(stop), stop) for stop in self._stop if stop in self._held]
        if not found:
            return None
        start, _, stop = min(found)
        return start, stop

    def _possible_stop(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        ends = (
            length
            for stop in self._stop
            for length in range(min(len(stop) - 1, len(self._held)), 0, -1)
            if self._held.endswith(stop[:length])
        )
        return max(ends, default=0)


_SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _read_backend(source: "Source") -> tokenizers.Tokenizer:
    path = source.path / "tokenizer.json"
    if path.is_file():
        return tokenizers.Tokenizer.from_file(str(path))
    if not (source.path / "tokenizer.model").is_file():
        raise ConfigError(f"{source.path} has no tokenizer (tokenizer.json or tokenizer.model).")
    from transformers import AutoTokenizer  # takes seconds to import, and few checkpoints need it

    backend: tokenizers.Tokenizer = AutoTokenizer.from_pretrained(source.path).backend_tokenizer
    return backend


def _read_template(source: "Source", fields: Mapping[str, Any]) -> str | None:
    path = source.path / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = fields.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    """True for byte-level BPE, False for SentencePiece with byte fallback."""
    decoder = json.loads(backend.to_str())["decoder"] or {}
    kinds = {decoder.get("type")} | {step["type"] for step in decoder.get("decoders", ())}
    if "ByteLevel" in kinds:
        return True
    if kinds & {"ByteFallback", "Metaspace"}:
        return False
    raise ConfigError(
        f"The tokenizer's decoder {decoder.get('type')} is not supported; known: ByteLevel, ByteFallback, Metaspace."
    )


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _token_bytes(backend: tokenizers.Tokenizer, byte_level: bool, token: int) -> bytes:
    piece = backend.id_to_token(token)
    if piece is None:
        return b""
    if byte_level:
        alphabet = _byte_of_character()
        if all(character in alphabet for character in piece):
            return bytes(alphabet[character] for character in piece)
        return str(piece).encode()
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return str(piece).replace("▁", " ").encode()
