"""The tokenizer inside a GGUF file, as the tokenizers library takes it."""

from collections.abc import Sequence
from dataclasses import dataclass

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from specdec.errors import ConfigError
from specdec.models.gguf_file import GgufFile

_CONTROL, _USER_DEFINED = 3, 4  # GGUF's token types

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufTokenizer:
    """What a GGUF file says about text."""

    backend: tokenizers.Tokenizer
    chat_template: str | None
    special_tokens: dict[str, str]


def read_gguf_tokenizer(file: GgufFile) -> GgufTokenizer:
    """Raises ConfigError for a tokenizer that is not supported, by the name of its metadata key."""
    kind = file.value("tokenizer.ggml.model")
    tokens: list[str] = file.value("tokenizer.ggml.tokens") or []
    if kind == "gpt2":
        backend = _byte_level_bpe(file, tokens)
    elif kind == "llama":
        backend = _sentencepiece(file)
    else:
        raise ConfigError(f"tokenizer.ggml.model {kind!r} in the GGUF file is not supported; known: gpt2, llama.")
    ids = {name: file.value(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "unknown", "padding")}
    names = {"unknown": "unk_token", "padding": "pad_token"}
    special = {names.get(name, f"{name}_token"): tokens[i] for name, i in ids.items() if i is not None}
    return GgufTokenizer(backend=backend, chat_template=file.value("tokenizer.chat_template"), special_tokens=special)


def _byte_level_bpe(file: GgufFile, tokens: Sequence[str]) -> tokenizers.Tokenizer:
    split = file.value("tokenizer.ggml.pre")
    merges = [tuple(merge.split(" ")) for merge in file.value("tokenizer.ggml.merges")]
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=split == "llama-bpe"))
    backend.pre_tokenizer = _pre_tokenizer(split)
    if split == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    for token, token_type in zip(tokens, file.value("tokenizer.ggml.token_type"), strict=True):
        if token_type in (_CONTROL, _USER_DEFINED):
            special = token_type == _CONTROL
            backend.add_tokens([AddedToken(token, special=special, normalized=False)])
    bos = file.value("tokenizer.ggml.bos_token_id")
    if bos is not None and file.value("tokenizer.ggml.add_bos_token", split == "llama-bpe"):
        backend.post_processor = processors.TemplateProcessing(single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)])
    return backend


def _pre_tokenizer(split: str) -> pre_tokenizers.PreTokenizer:
    """How text is cut into words before merging, by the name that llama.cpp gives the rule."""
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if split in ("gpt-2", "olmo"):
        return plain
    if split == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    words = {"llama-bpe": _LLAMA3_WORDS, "qwen2": _QWEN2_WORDS}
    if split not in words:
        known = ", ".join(("gpt-2", "olmo", "smollm", *words))
        raise ConfigError(f"tokenizer.ggml.pre {split!r} in the GGUF file is not supported; known: {known}.")
    cut = pre_tokenizers.Split(Regex(words[split]), behavior="isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _sentencepiece(file: GgufFile) -> tokenizers.Tokenizer:
    from transformers import AutoTokenizer  # it builds the merges from the scores; takes seconds to import

    backend: tokenizers.Tokenizer = AutoTokenizer.from_pretrained(file.path.parent, gguf_file=file.path.name).backend_tokenizer
    return backend
