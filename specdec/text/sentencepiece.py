"""SentencePiece's BPE models, as the tokenizers library takes them: from a tokenizer.model, or from pieces as GGUF lists them.

The file is a protocol buffer (sentencepiece_model.proto in google/sentencepiece), of which few fields are needed.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from specdec.models.damage import damaged

_SPACE = "▁"
_BPE = 2  # TrainerSpec.ModelType
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of ModelProto
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types


class PieceType(IntEnum):
    """What a piece is, numbered as SentencePiece and GGUF both do."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of a vocabulary."""

    text: str
    score: float
    type: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Spaces:
    """What becomes of spaces.

    prefix: a text gets one in front. always: even where it begins with one, and behind control tokens. squeezed: leading and
    double ones are dropped.
    """

    prefix: bool = True
    always: bool = True
    squeezed: bool = False


def build_sentencepiece(
    pieces: Sequence[Piece],
    spaces: Spaces,
    *,
    merges: Sequence[tuple[str, str]] | None = None,
    charsmap: bytes = b"",
) -> tokenizers.Tokenizer:
    """A BPE tokenizer with byte fallback.

    Args:
        pieces: by id.
        spaces: see there.
        merges: best first; None: from the scores.
        charsmap: SentencePiece's compiled normalisation.
    """
    vocab = {piece.text: i for i, piece in enumerate(pieces)}
    unknown = next((piece.text for piece in pieces if piece.type == PieceType.UNKNOWN), None)
    found = _merges(pieces, vocab) if merges is None else list(merges)
    backend = tokenizers.Tokenizer(models.BPE(vocab, found, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(charsmap)] if charsmap else []
    if spaces.squeezed:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spaces.prefix and spaces.always:
        steps.append(normalizers.Prepend(_SPACE))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    if spaces.prefix and not spaces.always:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="first", split=False)
    undone = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*undone, *([decoders.Strip(" ", 1, 0)] if spaces.prefix else [])])
    for piece in pieces:
        if piece.type in (PieceType.UNKNOWN, PieceType.CONTROL, PieceType.USER_DEFINED):
            special = piece.type != PieceType.USER_DEFINED
            backend.add_tokens([AddedToken(piece.text, special=special, normalized=False)])
    return backend


def _merges(pieces: Sequence[Piece], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to put a piece together of two others, the best pieces first."""
    whole = {PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED}
    parts = {piece.text for piece in pieces if piece.type in whole}
    found = [
        (-piece.score, vocab[piece.text], cut)
        for piece in pieces
        if piece.type in whole
        for cut in range(1, len(piece.text))
        if piece.text[:cut] in parts and piece.text[cut:] in parts
    ]
    texts = ((pieces[i].text, cut) for _, i, cut in sorted(found))
    return [(text[:cut], text[cut:]) for text, cut in texts]


@dataclass(frozen=True, kw_only=True, slots=True)
class SentencePieceModel:
    """What a tokenizer.model holds."""

    pieces: tuple[Piece, ...]
    spaces: Spaces
    charsmap: bytes


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """A tokenizer.model. Raises ConfigError where it is damaged, or of a kind that is not supported."""
    pieces, kind = [], 1
    normaliser: dict[int, int | bytes] = {}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == _PIECES and isinstance(value, bytes):
                pieces.append(_piece(dict(_fields(value))))
            elif number == _TRAINER and isinstance(value, bytes):
                kind = int(dict(_fields(value)).get(3, kind))
            elif number == _NORMALIZER and isinstance(value, bytes):
                normaliser = dict(_fields(value))
    except (IndexError, struct.error, ValueError, TypeError, KeyError) as error:
        raise damaged(path, f"it is no SentencePiece model ({error})") from error
    if not pieces:
        raise damaged(path, "it is no SentencePiece model, or one without pieces")
    if kind != _BPE:
        raise damaged(path, f"it is a SentencePiece model of type {kind}, and only BPE (2) is supported")
    charsmap = normaliser.get(2, b"")
    return SentencePieceModel(
        pieces=tuple(pieces),
        spaces=Spaces(prefix=bool(normaliser.get(3, 1)), squeezed=bool(normaliser.get(4, 1))),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
    )


def _piece(fields: dict[int, int | bytes]) -> Piece:
    text, score = fields[1], fields.get(2, b"\0\0\0\0")
    if not (isinstance(text, bytes) and isinstance(score, bytes)):
        raise TypeError("a piece is not as it should be")
    return Piece(text.decode(), struct.unpack("<f", score)[0], int(fields.get(3, PieceType.NORMAL)))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer: number and value, a number for varints, else the bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        wire = key & 7
        if wire == _VARINT:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            size, place = _varint(data, place)
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            size = 8 if wire == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {wire}")
        if place + size > len(data):
            raise IndexError("it ends too early")
        yield key >> 3, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place
