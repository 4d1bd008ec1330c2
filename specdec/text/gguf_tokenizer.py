"""The tokenizer inside a GGUF file, as the tokenizers library takes it."""

import logging
from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from specdec.errors import ConfigError
from specdec.models.gguf_file import GgufFile
from specdec.text.parts import TokenizerParts
from specdec.text.sentencepiece import Piece, PieceType, Spaces, build_sentencepiece
from specdec.text.words import DEFAULT, KNOWN, MERGE_WHOLE_WORDS, NORMALISED, word_rule

_log = logging.getLogger(__name__)

_ROLES = {
    "bos": "bos_token",
    "eos": "eos_token",
    "eot": "eot_token",
    "eom": "eom_token",
    "unknown": "unk_token",
    "padding": "pad_token",
}
_USUAL = {"unknown": 0, "bos": 1, "eos": 2}  # of SentencePiece's tokenizers, where a file does not say


def read_gguf_tokenizer(file: GgufFile) -> TokenizerParts:
    """Raises ConfigError for a tokenizer that is not supported or not whole, by the name of its metadata key."""
    kind = file.value("tokenizer.ggml.model")
    tokens = _strings(file, "tokens")
    types = file.value("tokenizer.ggml.token_type") or [PieceType.NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise ConfigError(f"tokenizer.ggml.token_type in the GGUF file tells of {len(types)} tokens, not of {len(tokens)}.")
    special = _special_tokens(file, tokens, _USUAL if kind == "llama" else {})
    if kind not in ("gpt2", "llama"):
        raise ConfigError(f"tokenizer.ggml.model {kind!r} in the GGUF file is not supported; known: gpt2, llama.")
    try:
        backend = _byte_level_bpe(file, tokens, types) if kind == "gpt2" else _sentencepiece(file, tokens, types)
    except ConfigError:
        raise
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise ConfigError(f"The tokenizer in the GGUF file is damaged: {error}; fetch the file again.") from error
    _add_bos(file, backend, special.get("bos_token"), kind)
    return TokenizerParts(
        backend=backend,
        special_tokens=special,
        chat_templates=_templates(file),
        unused_ids=frozenset(i for i, token_type in enumerate(types) if token_type == PieceType.UNUSED),
    )


def _strings(file: GgufFile, key: str) -> list[str]:
    found = file.value(f"tokenizer.ggml.{key}")
    if not (isinstance(found, list) and found and isinstance(found[0], str)):
        raise ConfigError(f"The GGUF file has no tokenizer.ggml.{key}; use a file that carries its tokenizer.")
    return found


def _special_tokens(file: GgufFile, tokens: Sequence[str], usual: Mapping[str, int]) -> dict[str, str]:
    special = {}
    for role, name in _ROLES.items():
        key = f"tokenizer.ggml.{role}_token_id"
        token = file.value(key, usual.get(role))
        if token is None:
            continue
        if not (isinstance(token, int) and 0 <= token < len(tokens)):
            raise ConfigError(f"{key} in the GGUF file is {token!r}, but its tokens are numbered from 0 to {len(tokens) - 1}.")
        special[name] = tokens[token]
    return special


def _templates(file: GgufFile) -> dict[str, str]:
    names = {"default": "tokenizer.chat_template", "tool_use": "tokenizer.chat_template.tool_use"}
    return {name: source for name, key in names.items() if isinstance(source := file.value(key), str)}


def _byte_level_bpe(file: GgufFile, tokens: Sequence[str], types: Sequence[int]) -> tokenizers.Tokenizer:
    rule = _rule(file)
    merges = [_merge(merge) for merge in _strings(file, "merges")]
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=rule in MERGE_WHOLE_WORDS))
    backend.pre_tokenizer = word_rule(rule)
    if rule in NORMALISED:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    for token, token_type in zip(tokens, types, strict=True):
        if token_type in (PieceType.CONTROL, PieceType.USER_DEFINED):
            backend.add_tokens([AddedToken(token, special=token_type == PieceType.CONTROL, normalized=False)])
    return backend


def _merge(words: str) -> tuple[str, str]:
    cut = words.index(" ", 1)
    return words[:cut], words[cut + 1 :]


def _rule(file: GgufFile) -> str:
    rule = file.value("tokenizer.ggml.pre")
    if rule is None:
        _log.warning("The GGUF file has no tokenizer.ggml.pre: words are cut as llama.cpp does then, which may not be right.")
        return DEFAULT
    if rule not in KNOWN:
        raise ConfigError(f"tokenizer.ggml.pre {rule!r} in the GGUF file is not supported; known: {', '.join(KNOWN)}.")
    return str(rule)


def _sentencepiece(file: GgufFile, tokens: Sequence[str], types: Sequence[int]) -> tokenizers.Tokenizer:
    scores = file.value("tokenizer.ggml.scores") or [0.0] * len(tokens)
    pieces = [Piece(*entry) for entry in zip(tokens, scores, types, strict=True)]
    spaces = Spaces(
        prefix=bool(file.value("tokenizer.ggml.add_space_prefix", True)),
        squeezed=bool(file.value("tokenizer.ggml.remove_extra_whitespaces", False)),
    )
    merges = file.value("tokenizer.ggml.merges")
    return build_sentencepiece(pieces, spaces, merges=None if merges is None else [_merge(merge) for merge in merges])


def _add_bos(file: GgufFile, backend: tokenizers.Tokenizer, bos: str | None, kind: str) -> None:
    """Texts begin with BOS where the file says so, or says nothing of a kind that does."""
    usual = kind == "llama" or file.value("tokenizer.ggml.pre") in MERGE_WHOLE_WORDS
    if bos is not None and file.value("tokenizer.ggml.add_bos_token", usual):
        token = (bos, backend.token_to_id(bos))
        backend.post_processor = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[token])
