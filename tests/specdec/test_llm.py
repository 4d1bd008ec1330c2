"""`from specdec import LLM`: what people type, several threads, failures that take nobody along."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from specdec import LLM, Completion, EngineConfig, SamplingParams
from specdec.errors import ConfigError, RequestError, RoundError
from specdec.foreign import engine_fields
from specdec.llm import Prompt
from specdec.request import FinishReason, Request

PROMPTS = ["the winner is in the inn", "a hen wins 1212", "there, then", "12 12 in the"]
SAMPLING = SamplingParams(temperature=0.8, seed=5, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture(scope="module")
def llm(model: str) -> LLM:
    return LLM(model, dtype="float32", cache_gb=0.05, drafters="ngram,suffix", adaptive=False)


@pytest.fixture(autouse=True)
def nothing_is_left(llm: LLM) -> Iterator[None]:
    yield
    llm.engine.check()
    assert not llm.engine.has_work
    assert not llm._in_use


def said(answers: list[Completion]) -> list[tuple[list[int], str]]:
    return [(answer.token_ids, answer.text) for answer in answers]


def test_importing_the_names_waits_for_torch_only_where_it_is_needed() -> None:
    code = "import sys; from specdec import SamplingParams, EngineConfig; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr


def test_an_unknown_name_is_no_attribute() -> None:
    import specdec

    with pytest.raises(AttributeError, match="nonsense"):
        _ = specdec.nonsense


def test_options_are_the_configs_own(model: str) -> None:
    with pytest.raises(ConfigError, match="did you mean cache_gb"):
        LLM(model, cache_gib=1)
    with pytest.raises(ConfigError, match="crystal-ball"):
        LLM(model, drafters=["ngram", "crystal-ball"])
    config = EngineConfig.of({"model": "m", "dtype": "half", "draft_model": "d", "drafters": "none"})
    assert config == EngineConfig(model="m", dtype="float16", draft_model="d", drafters=("draft-model",))
    assert EngineConfig.of({}) == EngineConfig()


def test_options_as_other_engines_call_them(caplog: pytest.LogCaptureFixture) -> None:
    given = {
        "tensor_parallel_size": 1,
        "quantization": None,
        "max_num_seqs": 8,
        "enable_prefix_caching": False,
        "dtype": "half",
    }
    speculative = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 4}}
    found = EngineConfig.of(engine_fields(given | speculative | {"trust_remote_code": True, "enforce_eager": False}))
    assert found == EngineConfig(max_batch=8, prefix_cache=False, dtype="float16", drafters=("ngram",), max_tree_depth=4)
    assert "--trust-remote-code has no effect" in caplog.text
    assert "--enforce-eager" not in caplog.text
    with pytest.raises(ConfigError, match="one device"):
        LLM("m", tensor_parallel_size=2)


def test_texts_ids_and_requests_are_prompts_alike(llm: LLM) -> None:
    ids = [llm.tokenizer.encode(prompt) for prompt in PROMPTS]
    by_text = llm.generate(PROMPTS, SAMPLING)
    by_ids = llm.generate(ids, SAMPLING)
    requests = [Request(request_id=f"{i}", prompt_ids=tuple(found), sampling=SAMPLING) for i, found in enumerate(ids)]
    assert said(by_text) == said(by_ids) == said(llm.generate(requests))
    assert [answer.prompt for answer in by_text] == PROMPTS
    assert said(llm.generate(PROMPTS[0], SAMPLING)) == said(by_text[:1]) == said(llm.generate(ids[0], SAMPLING))
    assert llm.generate([], SAMPLING) == []


def test_each_prompt_may_have_its_own_sampling(llm: LLM) -> None:
    own = [replace(SAMPLING, max_tokens=count) for count in (3, 4, 5, 6)]
    assert [len(answer.token_ids) for answer in llm.generate(PROMPTS, own)] == [3, 4, 5, 6]
    with pytest.raises(RequestError, match="4 prompts and 1 sampling"):
        llm.generate(PROMPTS, own[:1])


def test_chat_is_the_template_and_then_the_same(llm: LLM) -> None:
    talk = [{"role": "user", "content": "hi"}]
    (expected,) = llm.generate([tuple(llm.tokenizer.chat(talk))], SAMPLING)
    assert said(llm.chat(talk, SAMPLING)) == said([expected])
    assert said(llm.chat([talk, talk], SAMPLING)) == said([expected, expected])
    assert "".join(delta.text for delta in llm.stream_chat(talk, SAMPLING)) == expected.text


def test_n_answers_differ_and_the_first_is_that_of_one(llm: LLM) -> None:
    (three,), (one,) = llm.generate(PROMPTS[:1], replace(SAMPLING, n=3)), llm.generate(PROMPTS[:1], SAMPLING)
    assert len({answer.text for answer in three.outputs}) == 3
    assert three.outputs[0].text == three.text == one.text
    with pytest.raises(RequestError, match="n must be 1"):
        next(llm.stream(PROMPTS[0], replace(SAMPLING, n=3)))
    with pytest.raises(RequestError, match="each of n"):
        llm.engine.submit(Request(request_id="n", prompt_ids=(5,), sampling=SamplingParams(n=2)), lambda _: None)


def test_a_stop_string_is_one_string(llm: LLM) -> None:
    (whole,) = llm.generate(PROMPTS[0], SAMPLING)
    stop = whole.text[5:8]
    (stopped,) = llm.generate(PROMPTS[0], replace(SAMPLING, stop=stop))
    assert (stopped.text, stopped.stop_reason) == (whole.text[: whole.text.index(stop)], stop)


def test_streams_may_be_read_in_turns(llm: LLM) -> None:
    expected = [answer.text for answer in llm.generate(PROMPTS[:2], SAMPLING)]
    texts = ["", ""]
    for pair in zip(*(llm.stream(prompt, SAMPLING) for prompt in PROMPTS[:2]), strict=False):
        texts = [text + delta.text for text, delta in zip(texts, pair, strict=True)]
    assert all(whole.startswith(text) and text for whole, text in zip(expected, texts, strict=True))


def test_a_stream_that_is_left_frees_what_it_had(llm: LLM) -> None:
    stream = llm.stream(PROMPTS[0], replace(SAMPLING, max_tokens=200))
    next(stream)
    stream.close()
    assert llm.engine.status().pages_used == 0


def test_threads_get_the_answers_of_one(llm: LLM) -> None:
    """Whole and streamed, several at a time, request ids in use by others."""
    expected = said([llm.generate(prompt, SAMPLING)[0] for prompt in PROMPTS])
    named = [
        Request(request_id=f"{i}", prompt_ids=tuple(llm.tokenizer.encode(prompt)), sampling=SAMPLING)
        for i, prompt in enumerate(PROMPTS)
    ]

    def ask(turn: int) -> list[tuple[list[int], str]]:
        if turn % 3 == 0:
            return said(llm.generate(PROMPTS, SAMPLING))
        if turn % 3 == 1:
            return said(llm.generate(named))
        streams = [list(llm.stream(prompt, SAMPLING)) for prompt in PROMPTS]
        return [([t for d in deltas for t in d.token_ids], "".join(d.text for d in deltas)) for deltas in streams]

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(ask, range(24)):
            assert found == expected


def test_a_request_that_fails_takes_no_other_down(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    (good,) = llm.generate(PROMPTS[0], SAMPLING)
    long, strange = (5,) * 600, (999_999,)
    prompts: list[Prompt] = [PROMPTS[0], long, "", strange, PROMPTS[0]]
    answers = llm.generate(prompts, SAMPLING)
    assert said([answers[0], answers[4]]) == said([good, good])
    assert [answer.finish_reason for answer in answers[1:4]] == [FinishReason.ERROR] * 3
    assert [word in (answer.error or "") for answer, word in zip(answers[1:], ("600", "no tokens", "999999"), strict=False)]
    assert "600" in caplog.text
    with pytest.raises(RequestError, match="no tokens"):
        llm.generate([prompts[2], strange], SAMPLING)


def test_a_round_that_fails_is_raised_where_nothing_is_left(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(llm.engine._round, "enqueue", lambda plan: 1 / 0)
        with pytest.raises(RoundError, match="division"):
            llm.generate(PROMPTS, SAMPLING)
    assert said(llm.generate(PROMPTS[0], SAMPLING))


def test_an_interrupt_leaves_nothing_behind(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    step, count = llm.engine.step, iter(range(100))

    def interrupted() -> bool:
        if next(count) == 3:
            raise KeyboardInterrupt
        return step()

    with monkeypatch.context() as patched:
        patched.setattr(llm.engine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, replace(SAMPLING, seed=99, max_tokens=200))
    assert llm.engine.status().pages_used == 0


@pytest.mark.parametrize(("given", "kept"), [("ver", ("ver",)), (["a", "b"], ("a", "b")), (None, ()), ((), ())])
def test_stop_as_people_write_it(given: Any, kept: tuple[str, ...]) -> None:
    assert SamplingParams(stop=given).stop == kept


def test_seeds_as_people_write_them() -> None:
    drawn = {SamplingParams(seed=seed).seed for seed in (None, -1, None, -1)}  # type: ignore[arg-type]
    assert len(drawn) == 4
    assert SamplingParams().seed == SamplingParams(seed=0).seed == 0
