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
from specdec.text.parts import TokenizerParts
from specdec.text.typed import TypedText

if TYPE_CHECKING:
    from specdec.models.source import Source

Message = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]] | None


# added tokens that end an answer whatever the configs say; the names are those of llama.cpp
_ENDS_OF_TURN = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<end_of_utterance>", "<turn|>", "<EOT>", "_<EOT>",
    "[EOT]",
)  # fmt: skip
_ENDING_ROLES = ("eos_token", "eot_token", "eom_token")


class Tokenizer:
    """A model's tokenizer: byte-level BPE, or SentencePiece with byte fallback."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_token_ids: Iterable[int] = (),
        chat_template: str | Mapping[str, str] | None = None,
        special_tokens: Mapping[str, str] | None = None,
        unused_ids: Iterable[int] = (),
        parse_special: bool = False,
    ) -> None:
        """Args:
            backend: as the tokenizers library reads it from a tokenizer.json.
            chat_template: Jinja source, or several by name: `default`, and `tool_use` for requests with tools.
            special_tokens: what the template may call by name (bos_token, eos_token, ...).
            unused_ids: tokens that only fill the vocabulary up.
            parse_special: names of special tokens in messages become these tokens, as in the template's own words.

        Raises:
            ConfigError: the tokenizer turns tokens into text in another way than those named above.
        """
        self._backend = backend
        self._special_ids = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self._bytes: dict[int, bytes] = {}  # of the tokens that came up
        self._byte_level, self._strips = _decoding(backend)
        self._templates = {"default": chat_template} if isinstance(chat_template, str) else dict(chat_template or {})
        self._special_tokens = dict(special_tokens or {})
        self._unused_ids = frozenset(unused_ids)
        self._parse_special = parse_special
        self.eos_token_ids = frozenset(eos_token_ids)
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)

    @staticmethod
    def load(source: "Source", parse_special: bool = False) -> "Tokenizer":
        """The tokenizer beside a model. ConfigError where there is none that specdec can read."""
        from specdec.models.loader import read_source_config  # brings torch, which text does without
        from specdec.text.folder_tokenizer import read_folder_tokenizer
        from specdec.text.gguf_tokenizer import read_gguf_tokenizer

        ends = read_source_config(source).eos_token_ids
        parts = read_gguf_tokenizer(source.gguf) if source.is_gguf else read_folder_tokenizer(source)
        return Tokenizer(
            parts.backend,
            eos_token_ids={*ends, *_ends_of_turn(parts)},
            chat_template=parts.chat_templates,
            special_tokens=parts.special_tokens,
            unused_ids=parts.unused_ids,
            parse_special=parse_special,
        )

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. Names of special tokens in it become those tokens."""
        # a batch of one: the library lets other threads run meanwhile, which it does not for a single text
        ids: list[int] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens by themselves, special tokens left out; what is no UTF-8 becomes the replacement character.

        A space that the tokenizer puts in front of every text is left out; what follows another text keeps its own, see
        `TextStream`.
        """
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._strips else text

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

    def special_token(self, name: str) -> int | None:
        """The special token of that name."""
        token = self._backend.token_to_id(name)
        return token if token in self._special_ids else None

    def names(self) -> dict[int, str]:
        """Every token by its id, without those that only fill the vocabulary up."""
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        return {i: name for name, i in vocabulary.items() if i not in self._unused_ids}

    def nameless(self, vocab_size: int) -> list[int]:
        """The ids of a model's vocabulary that are no token: embeddings are padded. None where the tokenizer has no tokens."""
        names = self.names()
        return [i for i in range(vocab_size) if i not in names] if names else []

    @property
    def has_chat_template(self) -> bool:
        return bool(self._templates)

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the default one."""
        return self._templates.get("default")

    def use_chat_template(self, source: str) -> None:
        """Take this Jinja source in place of the model's templates, before the first `chat`."""
        self._templates = {"default": source}

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
        tools: Tools = None,
        variables: Mapping[str, Any] | None = None,
        continued: bool = False,
    ) -> list[int]:
        """Token ids of a conversation up to where the model's answer begins. What messages and tools say is text: names of
        special tokens in them are encoded as such, unless the tokenizer was told to parse them.

        Args:
            messages: the conversation.
            tools: what the template may describe.
            variables: what else the template is given, add_generation_prompt for one.
            continued: the answer goes on where the text of the last message ends.

        Raises:
            RequestError: the model has no chat template, or its template fails on the messages.
        """
        given, end = dict(variables or {}), ""
        if continued:
            end = secrets.token_hex(16)  # stands where the last message's text ends
            messages = [*messages[:-1], {**messages[-1], "content": f"{messages[-1]['content']}{end}"}]
            given["add_generation_prompt"] = False
        said = (messages, tools, given)
        if self._parse_special or not self._typed.is_in(said):
            return self.encode(self._render(messages, tools, given, end), add_special_tokens=False)
        mark = self._typed.mark(said)
        return self._typed.encode(self._render(*self._typed.broken_up(said, mark), end), mark)

    def _render(self, messages: Sequence[Message], tools: Tools, variables: Mapping[str, Any], end: str) -> str:
        """The conversation as text, up to `end` where that is not empty."""
        try:
            text = render(self._template(bool(tools)), messages, tools, self._special_tokens, variables)
            return text.partition(end)[0] if end else text
        except RequestError:
            raise
        except Exception as error:  # a template is a program, and raises whatever programs raise
            reason = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
            raise RequestError(
                f"The model's chat template refuses the messages: {reason}", param="messages", code="invalid_value"
            ) from error

    def _template(self, with_tools: bool) -> jinja2.Template:
        if not self._templates:
            raise RequestError("This model has no chat template; use /v1/completions.", param="messages", code="invalid_value")
        name = "tool_use" if with_tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            known = ", ".join(self._templates)
            raise RequestError(
                f"This model has no default chat template, only {known}.", param="messages", code="invalid_value"
            )
        return compile_template(self._templates[name])

    @functools.cached_property
    def _typed(self) -> TypedText:
        return TypedText(self._backend)


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
    """Text of tokens as they come behind a prompt, in whole characters, up to a stop string. A stop string that names a special
    token is that token.

    Held back: an unfinished character, and text that a stop string may begin with. The text of the first `min_tokens`
    tokens is not searched. Work and memory per token are bounded by the longest stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), min_tokens: int = 0) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._stop_tokens = {token: name for name in stop if (token := tokenizer.special_token(name)) is not None}
        self._min_tokens = min_tokens
        self._texts = tokenizer.texts
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._within = False  # a character has begun and not ended
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
            if token in self._stop_tokens:
                ready.append(self.flush())
                self._stopped = True
                return TextDelta("".join(ready), self._stop_tokens[token], consumed)
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
        if not self._within:
            found = [self._texts[token] for token in token_ids]
            if None not in found:
                return "".join(found)  # type: ignore[arg-type]
        return self._characters(b"".join(map(self._tokenizer.token_bytes, token_ids)))

    def _characters(self, new: bytes, final: bool = False) -> str:
        text = self._decoder.decode(new, final)
        self._within = bool(self._decoder.getstate()[0])
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


def _ends_of_turn(parts: TokenizerParts) -> set[int]:
    """Tokens that end an answer: by their role, and special ones by their well-known name."""
    added = {token.content for token in parts.backend.get_added_tokens_decoder().values()}
    names = {parts.special_tokens.get(role) for role in _ENDING_ROLES} | added.intersection(_ENDS_OF_TURN)
    ids = {parts.backend.token_to_id(name) for name in names if name is not None}
    return {token for token in ids if token is not None}


def _decoding(backend: tokenizers.Tokenizer) -> tuple[bool, bool]:
    """Whether tokens are byte-level BPE's or SentencePiece's with byte fallback; and whether the first space of a text is
    the tokenizer's own."""
    decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {}
    steps = {step["type"]: step for step in (decoder, *decoder.get("decoders", ())) if "type" in step}
    if "ByteLevel" in steps:
        return True, False
    if steps.keys() & {"ByteFallback", "Metaspace"}:
        strip, space = steps.get("Strip", {}), steps.get("Metaspace", {})
        own = strip.get("content") == " " and strip.get("start", 0) > 0
        return False, own or space.get("prepend_scheme", "never") != "never"
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
