"""Tokenizers in the forms that folders have: which file counts, what a role is called, what is damaged, named."""

import json
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from specdec.errors import ConfigError
from specdec.models.source import resolve
from specdec.text.tokenizer import Tokenizer


@pytest.fixture
def folder(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model"))


def load(folder: Path) -> Tokenizer:
    return Tokenizer.load(resolve(str(folder)))


def edit(folder: Path, name: str = "tokenizer_config.json", drop: Sequence[str] = (), **fields: Any) -> None:
    path = folder / name
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({key: value for key, value in (found | fields).items() if key not in drop}))


def sentencepiece_file(pieces: Sequence[tuple[str, float, int]], kind: int = 2, prefix: bool = True) -> bytes:
    """A tokenizer.model: see sentencepiece_model.proto."""

    def field(number: int, value: bytes | int) -> bytes:
        if isinstance(value, int):
            return bytes([number << 3, value])
        size = len(value)
        return bytes([number << 3 | 2, *([size] if size < 128 else [size & 127 | 128, size >> 7])]) + value

    said = b""
    for text, score, piece_type in pieces:
        said += field(1, field(1, text.encode()) + bytes([2 << 3 | 5]) + struct.pack("<f", score) + field(3, piece_type))
    return said + field(2, field(3, kind)) + field(3, field(1, b"identity") + field(3, int(prefix)) + field(4, 0))


PIECES = [
    ("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)),
    ("▁h", -0.0, 1), ("el", -1.0, 1), ("▁hel", -2.0, 1), ("▁", -3.0, 1), ("h", -4.0, 1), ("e", -5.0, 1), ("l", -6.0, 1),
]  # fmt: skip


def as_sentencepiece(folder: Path, data: bytes, **fields: Any) -> Tokenizer:
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "tokenizer.model").write_bytes(data)
    edit(folder, bos_token="<s>", eos_token="</s>", unk_token="<unk>", tokenizer_class="LlamaTokenizer")
    for name, value in fields.items():
        edit(folder, **{name: value})
    return load(folder)


def test_a_sentencepiece_model_alone_will_do(folder: Path) -> None:
    tokenizer = as_sentencepiece(folder, sentencepiece_file(PIECES), legacy=True)
    assert tokenizer._backend.encode("hel é").tokens == ["<s>", "▁hel", "▁", "<0xC3>", "<0xA9>"]
    for text in ("hel", " hel", "  hel  l", "é\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer._backend.encode("hel</s>hel").tokens == ["<s>", "▁hel", "</s>", "▁hel"]
    assert tokenizer.eos_token_ids == {2}
    newer = as_sentencepiece(folder, sentencepiece_file(PIECES), legacy=False)
    assert newer._backend.encode("hel</s>hel").tokens == ["<s>", "▁hel", "</s>", "h", "el"]
    bare = as_sentencepiece(folder, sentencepiece_file(PIECES, prefix=False), add_bos_token=False)
    assert bare._backend.encode("hel").tokens == ["h", "el"]
    assert bare.decode(bare.encode(" hel")) == " hel"
    more = as_sentencepiece(
        folder, sentencepiece_file(PIECES), added_tokens_decoder={"266": {"content": "<x>", "special": True}}
    )
    assert more.special_token("<x>") == 266


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "no SentencePiece model"),
        (b"\xff" * 9, "no SentencePiece model"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (sentencepiece_file(PIECES)[:-300], "no SentencePiece model"),
        (sentencepiece_file(PIECES, kind=1), "type 1, and only BPE"),
    ],
)
def test_a_damaged_sentencepiece_model_is_named(data: bytes, named: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=rf"tokenizer\.model is .*{named}"):
        as_sentencepiece(folder, data)


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_a_vocabulary_and_merges_will_do(kind: str, folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    edit(folder, tokenizer_class=kind)
    tokenizer = load(folder)
    assert tokenizer.encode("hello the 12") == AutoTokenizer.from_pretrained(folder).encode("hello the 12")
    (folder / "vocab.json").write_text("{")
    with pytest.raises(ConfigError, match=r"vocab\.json is damaged"):
        load(folder)


def test_a_template_may_lie_in_files_or_among_several(folder: Path) -> None:
    def said(tools: bool = False) -> str:
        tokenizer = load(folder)
        return tokenizer.decode(tokenizer.chat([], tools=[{"name": "x"}] if tools else None))

    edit(folder, chat_template=[{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "the"}])
    assert (said(), said(tools=True)) == ("the", "tools")
    edit(folder, chat_template={"default": "he", "tool_use": "12"})
    assert (said(), said(tools=True)) == ("he", "12")
    edit(folder, drop=["chat_template"])
    (folder / "chat_template.json").write_text('{"chat_template": "in"}')
    assert said() == "in"
    (folder / "chat_template.jinja").write_text("a")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool_use.jinja").write_text("b")
    assert (said(), said(tools=True)) == ("a", "b")
    edit(folder, chat_template=7)
    with pytest.raises(ConfigError, match=r"chat_template in .* is neither"):
        load(folder)


def test_special_tokens_of_every_file_reach_the_template(folder: Path) -> None:
    template = "{{ bos_token }}the{{ eot_token }}"
    edit(folder, drop=["bos_token"], chat_template=template)
    assert load(folder).chat([])[0] == 1, "by the id in config.json"
    edit(folder, bos_token=None)
    assert load(folder).chat([])[0] != 1, "there is none, it says"
    edit(folder, "special_tokens_map.json", bos_token={"content": "<|endoftext|>"}, eot_token="<|im_end|>")
    assert [load(folder).chat([])[place] for place in (0, -1)] == [0, 2]
    edit(folder, bos_token="<|im_start|>")
    assert load(folder).chat([])[0] == 1


def test_ends_of_turn_are_known_by_role_and_by_name(folder: Path) -> None:
    assert load(folder).eos_token_ids == {2}
    edit(folder, "config.json", eos_token_id=0)
    edit(folder, eos_token="<|endoftext|>")
    assert load(folder).eos_token_ids == {0, 2}, "<|im_end|> by its name"
    edit(folder, eot_token="<|im_start|>")
    assert load(folder).eos_token_ids == {0, 1, 2}


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("tokenizer.json", "<html>", "is damaged: it is no tokenizer"),
        ("tokenizer_config.json", "[1]", "is damaged: it holds no JSON object but a list"),
        ("special_tokens_map.json", "{", "is damaged: it is not JSON"),
        ("tokenizer_config.json", "[" * 100_000, "is damaged: it is not JSON"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: str, named: str, folder: Path) -> None:
    (folder / name).write_text(content)
    with pytest.raises(ConfigError, match=f"{name} {named}") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_no_tokenizer_is_said_so(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"has no tokenizer \(tokenizer\.json, tokenizer\.model"):
        load(folder)
