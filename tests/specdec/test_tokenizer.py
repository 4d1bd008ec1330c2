"""Tokens, chat templates, and that streamed text adds up to the decoded whole, whatever the tokens and cuts."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from specdec.errors import ConfigError, RequestError
from specdec.models.source import resolve
from specdec.request import TokenLogprob
from specdec.server.logprobs import completion_logprobs
from specdec.text.tokenizer import TextStream, Tokenizer

TEXTS = ["", "hello the\nworld 12", "naïve café — 漢字 👩‍🚀!", " leading and trailing ", "a\u0300 \r\n\t\x00"]


def byte_level() -> Tokenizer:
    pieces = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "the", "Ġthe", "in"]
    merges = [("h", "e"), ("t", "he"), ("Ġ", "the"), ("i", "n")]
    backend = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>"])
    backend.add_tokens(["<a b>"])  # not special, and a space is not of the byte alphabet
    return Tokenizer(backend, eos_token_ids=[0])


def sentencepiece() -> Tokenizer:
    pieces = ["<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "t", "h", "e", "in", "▁t", "he"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [("▁", "t"), ("h", "e")], byte_fallback=True, unk_token="<s>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["<s>"])
    return Tokenizer(backend)


def behind_a_prompt(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """What tokens say that follow others."""
    return b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")


KINDS = {"byte-level": byte_level(), "sentencepiece": sentencepiece()}


def stream(tokenizer: Tokenizer, pushes: Sequence[Sequence[int]], stop: tuple[str, ...] = (), min_tokens: int = 0) -> str:
    """The text of a stream up to its stop string."""
    text_stream, pieces = TextStream(tokenizer, stop, min_tokens), []
    for push in pushes:
        delta = text_stream.push(push)
        pieces.append(delta.text)
        if delta.stop is not None:
            break
    pieces.append(text_stream.flush())
    return "".join(pieces)


@pytest.fixture
def folder(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint("llama")


def test_agrees_with_transformers(folder: Path) -> None:
    ours, theirs = Tokenizer.load(resolve(str(folder))), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text
    messages = [{"role": "user", "content": "the né"}, {"role": "assistant", "content": "x"}]
    theirs_ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.chat(messages) == theirs_ids
    assert ours.eos_token_ids == {2}
    assert ours.vocab_size == len(theirs)


@pytest.mark.weights
def test_the_real_tokenizer(smollm2: str) -> None:
    tokenizer = Tokenizer.load(resolve(smollm2))
    assert (tokenizer.vocab_size, tokenizer.eos_token_ids) == (49152, frozenset({2}))
    assert tokenizer.encode("I am 12345 years  old") == [57, 744, 216, 33, 34, 35, 36, 37, 929, 216, 1573]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    asked = tokenizer.decode([i for i in tokenizer.chat([{"role": "user", "content": "Hi"}]) if i > 2])
    assert asked.endswith("user\nHi\nassistant\n")
    assert asked.startswith("system\nYou are a helpful AI assistant")


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_agrees_with_the_tokenizers_library(kind: str) -> None:
    tokenizer = KINDS[kind]
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == tokenizer._backend.decode(ids) == text


def test_special_and_added_tokens() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("in<s><a b>the")
    assert tokenizer.token_bytes(0) == b""
    assert tokenizer.decode(ids) == "in<a b>the"
    assert tokenizer.token_bytes(10**6) == b"", "an id of the padded vocabulary"


@settings(max_examples=300, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(KINDS)))
def test_a_stream_adds_up_to_the_decoded_tokens(data: st.DataObject, kind: str) -> None:
    """Any tokens, valid UTF-8 or not, in any pushes."""
    tokenizer = KINDS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=5)))
    pushes = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    assert stream(tokenizer, pushes) == behind_a_prompt(tokenizer, ids)
    # stop strings that never come change nothing
    assert stream(tokenizer, pushes, ("☃☃",)) == behind_a_prompt(tokenizer, ids)


def test_what_follows_a_prompt_keeps_its_space() -> None:
    """A text by itself begins with a space of the tokenizer's own, an answer does not."""
    tokenizer = KINDS["sentencepiece"]
    prompt = tokenizer.encode("in")
    answer = tokenizer.encode("the")
    assert tokenizer.decode(answer) == "the"
    assert stream(tokenizer, [answer]) == " the" == tokenizer.decode(prompt + answer).removeprefix("in")
    assert tokenizer.decode(tokenizer.encode("  the")) == "  the"
    logprobs = completion_logprobs(tokenizer, [TokenLogprob(token, -1.0) for token in answer], 0)
    for start, token in zip(logprobs["text_offset"], answer, strict=True):
        assert " the".startswith(tokenizer.token_bytes(token).decode(), start)


def test_a_stop_string_that_names_a_special_token_is_that_token() -> None:
    tokenizer = byte_level()
    begin, end = tokenizer.encode("in"), tokenizer.encode("the")
    text_stream = TextStream(tokenizer, ("<s>", "<s>!"))
    delta = text_stream.push([*begin, 0, *end])
    assert (delta.text, delta.stop, delta.num_tokens) == ("in", "<s>", len(begin) + 1)
    assert text_stream.flush() == ""
    # text that a longer stop string begins with is let go
    delta = TextStream(tokenizer, ("inner", "<s>")).push([*begin, 0])
    assert (delta.text, delta.stop) == ("in", "<s>")
    assert stream(tokenizer, [[*begin, 0, *end]], ("<s>",), min_tokens=len(begin) + 1) == "inthe"


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("abé漢", max_size=25),
    stop=st.lists(st.text("abé漢", min_size=1, max_size=4), min_size=1, max_size=3),
    kind=st.sampled_from(sorted(KINDS)),
    size=st.integers(1, 7),
)
def test_a_stop_string_cuts_the_text_at_the_first_token_that_completes_one(
    text: str, stop: list[str], kind: str, size: int
) -> None:
    tokenizer = KINDS[kind]
    ids = tokenizer.encode(text)
    text_stream, emitted, used, found = TextStream(tokenizer, tuple(stop)), "", 0, None
    for first in range(0, len(ids), size):
        delta = text_stream.push(ids[first : first + size])
        emitted, used, found = emitted + delta.text, used + delta.num_tokens, delta.stop
        assert not any(s in emitted for s in stop), "no part of a stop string gets out"
        assert "�" not in emitted, "nor half a character"
        if found is not None:
            break
    emitted += text_stream.flush()
    ends = [n for n in range(len(ids) + 1) if any(s in behind_a_prompt(tokenizer, ids[:n]) for s in stop)]
    assert used == (ends[0] if ends else len(ids))
    if ends:
        whole = behind_a_prompt(tokenizer, ids[: ends[0]])
        start = min(whole.find(s) for s in stop if s in whole)
        assert found in stop
        assert whole.startswith(str(found), start)
        assert emitted == whole[:start]
    else:
        assert (found, emitted) == (None, behind_a_prompt(tokenizer, ids))


def test_text_that_may_become_a_stop_string_waits() -> None:
    tokenizer = byte_level()
    text_stream = TextStream(tokenizer, ("\n\nUser:",))
    assert text_stream.push(tokenizer.encode("in\n\nU")).text == "in"
    assert text_stream.push(tokenizer.encode("p")).text == "\n\nUp"
    assert text_stream.push(tokenizer.encode("é")[:1]).text == "", "half a character"
    delta = text_stream.push([*tokenizer.encode("é")[1:], *tokenizer.encode("\n\nUser: no")])
    assert (delta.text, delta.stop, delta.num_tokens) == ("é", "\n\nUser:", 8)
    assert text_stream.flush() == ""


def test_the_first_min_tokens_are_not_searched() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("ababab")
    assert stream(tokenizer, [ids], ("ab",)) == ""
    assert stream(tokenizer, [ids], ("ab",), min_tokens=2) == "ab"
    assert stream(tokenizer, [ids], ("ab",), min_tokens=3) == "abab"
    assert stream(tokenizer, [ids], ("ab",), min_tokens=6) == "ababab"


def test_a_long_stream_takes_time_in_proportion_to_its_length() -> None:
    """What is held back stays short, whatever came before."""
    tokenizer = byte_level()
    text_stream = TextStream(tokenizer, ("aaaaaaab",))
    for _ in range(3000):
        text_stream.push(tokenizer.encode("aaaaaaa"))
        assert len(text_stream._held) < len("aaaaaaab")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "refuses"),
        ("{{ messages[0].content.index('zzz') }}", "ValueError: substring not found"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ {}['a'].b.c }}", "no attribute 'a'"),
        ({"rag": "x"}, "no default chat template, only rag"),
    ],
)
def test_a_chat_that_cannot_be_rendered_is_the_request_s_fault(template: str | dict[str, str] | None, message: str) -> None:
    tokenizer = Tokenizer(KINDS["byte-level"]._backend, chat_template=template)
    assert tokenizer.has_chat_template == (template is not None)
    with pytest.raises(RequestError, match=message) as caught:
        tokenizer.chat([{"role": "user", "content": "the"}])
    assert caught.value.param == "messages"


def test_templates_have_what_hugging_face_gives_them() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{% generation %}{{ m.content | tojson }}{% endgeneration %}"
        "{% if loop.last %}{% break %}{% endif %}{% endfor %}{{ tools[0].name }}{{ strftime_now('%Y') | length }}"
    )
    tokenizer = Tokenizer(KINDS["byte-level"]._backend, chat_template=source, special_tokens={"bos_token": "<s>"})
    ids = tokenizer.chat([{"role": "user", "content": "<é>"}], tools=[{"name": "in"}])
    assert ids[0] == 0
    assert tokenizer.decode(ids) == '"<é>"in4'
    packed = Tokenizer(KINDS["byte-level"]._backend, chat_template="{{ messages | tojson(separators=(',', ':')) }}")
    assert packed.decode(packed.chat([{"role": "user", "content": "a"}])) == '[{"role":"user","content":"a"}]'


def test_templates_cannot_leave_the_sandbox() -> None:
    source = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(RequestError, match="unsafe"):
        Tokenizer(KINDS["byte-level"]._backend, chat_template=source).chat([{"role": "user", "content": ""}])


def test_an_unknown_decoder_is_refused() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ConfigError, match="WordPiece"):
        Tokenizer(backend)
