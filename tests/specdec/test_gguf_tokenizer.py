"""Tokenizers inside GGUF files: words, spaces, special tokens, and what is wrong with one, named."""

from typing import Any, cast

import pytest
from tokenizers import pre_tokenizers

from specdec.errors import ConfigError
from specdec.models.gguf_file import GgufFile
from specdec.text.gguf_tokenizer import read_gguf_tokenizer
from specdec.text.tokenizer import Tokenizer


class Metadata:
    """The part of a GGUF file that a tokenizer is made of."""

    def __init__(self, **values: Any) -> None:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokens = ["<s>", "<u v>", *alphabet, "1Ġ", "12", "123", "34", "'t"]
        self._values = {
            "model": "gpt2",
            "tokens": tokens,
            "merges": ["1 Ġ", "1 2", "12 3", "3 4", "' t"],
            "token_type": [3, 4, *[1] * (len(tokens) - 2)],
            "bos_token_id": 0,
        } | values

    def value(self, key: str, default: Any = None) -> Any:
        found = self._values.get(key.removeprefix("tokenizer.ggml."))
        return default if found is None else found


def gguf_pieces(text: str, **values: Any) -> list[str]:
    found = read_gguf_tokenizer(cast(GgufFile, Metadata(**values)))
    assert found.special_tokens == {"bos_token": "<s>"}
    return list(found.backend.encode(text).tokens)


def test_gguf_tokenizers_cut_words_by_the_file_s_own_rule() -> None:
    text = "1234 don't<u v>"
    words = ["Ġ", "d", "o", "n", "'t", "<u v>"]
    assert gguf_pieces(text, pre="gpt-2") == ["123", "4", *words]
    assert gguf_pieces(text, pre="smollm") == ["1", "2", "3", "4", *words]
    assert gguf_pieces(text, pre="qwen2") == ["1", "2", "3", "4", *words]
    assert gguf_pieces(text, pre="llama-bpe") == ["<s>", "123", "4", *words]
    assert gguf_pieces("1", pre="gpt-2", add_bos_token=True) == ["<s>", "1"]


def test_gguf_tokenizers_of_unknown_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.ggml\.pre 'other'"):
        gguf_pieces("", pre="other")
    with pytest.raises(ConfigError, match=r"tokenizer\.ggml\.model 'bert'"):
        gguf_pieces("", model="bert")


def test_names_that_mean_the_same_rule_cut_alike() -> None:
    text = "I'm 12345 Größe\n\n  x"
    for name, other in (("llama3", "llama-bpe"), ("llama-v3", "llama-bpe"), ("deepseek-r1-qwen", "qwen2"), ("megrez", "qwen2")):
        assert gguf_pieces(text, pre=name) == gguf_pieces(text, pre=other)
    assert gguf_pieces("1234", pre="smaug-bpe") == ["123", "4"]
    assert gguf_pieces("1234", pre="tekken") == ["<s>", "1", "2", "3", "4"]


def test_words_are_cut_as_llama_cpp_does_where_no_rule_is_named() -> None:
    assert gguf_pieces("12 34'twas") == gguf_pieces("12 34'twas", pre="default")
    assert gguf_pieces("12 '", pre="default") == ["12", "Ġ", "'"], "punctuation stands alone"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"eos_token_id": 4000}, r"tokenizer\.ggml\.eos_token_id in the GGUF file is 4000"),
        ({"bos_token_id": -1}, r"tokenizer\.ggml\.bos_token_id in the GGUF file is -1"),
        ({"tokens": None}, r"no tokenizer\.ggml\.tokens"),
        ({"merges": None}, r"no tokenizer\.ggml\.merges"),
        ({"merges": ["nospace"]}, "tokenizer in the GGUF file is damaged"),
        ({"merges": ["q zz"]}, "tokenizer in the GGUF file is damaged"),
        ({"token_type": [1]}, r"tokenizer\.ggml\.token_type .* tells of 1 tokens"),
    ],
)
def test_a_damaged_tokenizer_is_refused_by_its_key(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        gguf_pieces("a", pre="gpt-2", **values)


def sentencepiece(**values: Any) -> Tokenizer:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "t", "h", "th", "▁th"]
    types = [2, 3, 3, *[6] * 256, *[1] * 5]
    scores = [0.0] * 262 + [-1.0, -2.0]
    fields = {"model": "llama", "tokens": tokens, "token_type": types, "scores": scores, "merges": None, "bos_token_id": 1}
    found = read_gguf_tokenizer(cast(GgufFile, Metadata(**fields | values)))
    return Tokenizer(found.backend)


def test_sentencepiece_keeps_spaces_as_the_file_says() -> None:
    tokenizer = sentencepiece()
    assert tokenizer._backend.encode("th").tokens == ["<s>", "▁th"]
    assert tokenizer._backend.encode("  th").tokens == ["<s>", "▁", "▁", "▁th"]
    for text in ("th", " th", "  th  ", "é\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    bare = sentencepiece(add_space_prefix=False, add_bos_token=False)
    assert bare._backend.encode("th").tokens == ["th"]
    for text in ("th", " th", "  th  "):
        assert bare.decode(bare.encode(text)) == text


def test_a_sentencepiece_file_that_names_no_special_token_has_the_usual_ones() -> None:
    tokens = ["<unk>", "<s>", "</s>", "a"]
    fields: dict[str, Any] = {"model": "llama", "tokens": tokens, "token_type": [2, 3, 3, 1], "scores": [0.0] * 4}
    fields |= {"bos_token_id": None, "merges": None}
    found = read_gguf_tokenizer(cast(GgufFile, Metadata(**fields)))
    assert found.special_tokens == {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def test_tokens_that_only_fill_the_vocabulary_have_no_name() -> None:
    padded = Metadata(pre="gpt-2")
    tokens = padded.value("tokens")
    padded = Metadata(pre="gpt-2", tokens=[*tokens, "[PAD1]"], token_type=[*padded.value("token_type"), 5])
    found = read_gguf_tokenizer(cast(GgufFile, padded))
    tokenizer = Tokenizer(found.backend, unused_ids=found.unused_ids)
    assert tokenizer.nameless(len(tokens) + 3) == [len(tokens), len(tokens) + 1, len(tokens) + 2]
