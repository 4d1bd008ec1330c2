"""Log probabilities of a prompt's tokens: bit for bit those of the same tokens when they are drawn, however they are read."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch

from specdec.llm import LLM
from specdec.request import FinishReason, Request, RequestOutput, SamplingParams, TokenLogprob
from specdec.round.forward import Forward
from tests.end_to_end.conftest import ALL_DRAFTERS, LONG, Pool, Stage, rest

pytestmark = pytest.mark.timeout(300)
Told = dict[str, tuple[TokenLogprob, ...]]
TOP = 5


def asked(number: int, prompt: tuple[int, ...], max_tokens: int = 0, **fields: Any) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, prompt_logprobs=TOP, temperature=0.0, **fields)
    return Request(request_id=str(number), prompt_ids=prompt, sampling=sampling)


def outputs(llm: LLM, requests: Iterable[Request]) -> list[RequestOutput]:
    found: list[RequestOutput] = []
    for request in requests:
        llm.engine.submit(request, found.append)
    while llm.engine.step():
        llm.engine.check()
    rest(llm)
    return found


def scores(llm: LLM, requests: Iterable[Request]) -> Told:
    """What an engine tells of each prompt, once each."""
    told: Told = {}
    for output in outputs(llm, requests):
        assert output.error is None
        if output.prompt_logprobs is not None:
            assert output.request_id not in told
            told[output.request_id] = output.prompt_logprobs
    return told


@pytest.fixture
def prompts(pool: Pool) -> list[tuple[int, ...]]:
    """Prompts with their answers, some of which begin alike; LONG takes several pages and chunks."""
    return [(*request.prompt_ids, *pool.expected[request.request_id].token_ids) for request in pool.ordinary[:20]]


def test_a_prompts_logprobs_are_those_of_the_same_tokens_when_they_were_drawn(stage: Stage, pool: Pool) -> None:
    drawn = [request for request in pool.ordinary if request.sampling.logprobs is not None][:6]
    for number, request in enumerate(drawn):
        answer = pool.expected[request.request_id]
        told = scores(stage.plain(), [asked(number, (*request.prompt_ids, *answer.token_ids))])[str(number)]
        assert [entry.token for entry in told] == [*request.prompt_ids[1:], *answer.token_ids]
        tail = told[len(request.prompt_ids) - 1 :]
        wanted = min(request.sampling.logprobs or 0, TOP)
        assert [(entry.logprob, entry.top[:wanted]) for entry in tail] == [
            (entry.logprob, entry.top[:wanted]) for entry in answer.logprobs
        ]


def test_bits_do_not_depend_on_how_a_prompt_is_read(stage: Stage, prompts: list[tuple[int, ...]]) -> None:
    requests = [asked(number, prompt) for number, prompt in enumerate(prompts)]
    expected: Told = {}
    plain = stage.plain()
    for request in requests:
        expected |= scores(plain, [request])
    assert len(expected) == len(prompts)
    assert scores(stage.llm(chunk_tokens=7, depth=1), requests) == expected
    assert scores(stage.llm(chunk_tokens=64, depth=0, prefix_cache=False), requests) == expected
    beside = stage.llm(chunk_tokens=40, drafters=ALL_DRAFTERS[:3], adaptive=False)
    mixed = [asked(number, prompt, max_tokens=number % 3 * 4) for number, prompt in enumerate(prompts)]
    assert scores(beside, mixed) == expected
    assert scores(beside, mixed) == expected, "again, with every prompt in the prefix cache"


def test_preemption_in_the_middle_of_a_prompt_changes_no_bit(stage: Stage) -> None:
    """An answer needs its third page while a younger request reads its prompt, a token a round."""
    size = stage.page_size
    long = tuple(token % 250 + 3 for token in range(0, 6 * size * 7, 7))
    requests = [asked(0, (5,), max_tokens=5 * size // 2, ignore_eos=True), asked(1, long, max_tokens=2)]
    tight = stage.llm(pages=8, chunk_tokens=1)
    found = scores(tight, requests)
    assert tight.engine.status().num_preemptions > 0
    assert found == scores(stage.llm(), requests)


def test_the_scores_are_the_models_own(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held to PyTorch's own log-softmax of the logits that the model gives when it answers."""
    told = scores(stage.llm(chunk_tokens=16), [asked(0, LONG[:40])])["0"]
    llm, logs = stage.llm(), []
    round_ = llm.engine._round
    forward: Forward = round_.forward
    original = forward.model.logits

    def spy(hidden_RE: torch.Tensor) -> torch.Tensor:
        logits_RV = original(hidden_RE)
        logs.append(logits_RV[0].double().log_softmax(-1))
        return logits_RV

    with monkeypatch.context() as patch:
        patch.setattr(forward.model, "logits", spy)
        patch.setattr(round_.graphs, "launch", round_._launch)  # a replay calls nothing
        for length in range(1, 40):
            outputs(llm, [Request(request_id=f"{length}", prompt_ids=LONG[:length], sampling=SamplingParams(max_tokens=1))])
    for entry, log_V in zip(told, logs, strict=True):
        assert entry.logprob == pytest.approx(float(log_V[entry.token]), abs=1e-4)
        assert entry.rank == 1 + int((log_V > log_V[entry.token] + 1e-9).sum())
        assert [token for token, _ in entry.top] == log_V.topk(TOP).indices.tolist()
        assert np.all(np.diff([log for _, log in entry.top]) <= 0)


@pytest.mark.parametrize("length", [1, 2, 16, 17, 64, 65])
def test_a_request_for_no_tokens_ends_with_its_prompt(stage: Stage, length: int) -> None:
    llm = stage.llm()
    for _ in range(2):  # with nothing known of it, and with all that can be known
        for wanted in (None, 0):
            sampling = SamplingParams(max_tokens=0, prompt_logprobs=wanted)
            request = Request(request_id="0", prompt_ids=LONG[:length], sampling=sampling)
            (output,) = outputs(llm, [request])
            assert (output.finish_reason, output.token_ids, output.text) == (FinishReason.LENGTH, (), "")
            assert output.num_prompt_tokens == length
            if wanted is None:
                assert output.prompt_logprobs is None
            else:
                assert [entry.token for entry in output.prompt_logprobs or ()] == list(LONG[1:length])


def test_a_salt_keeps_its_prefixes_apart(stage: Stage) -> None:
    llm = stage.llm()

    def hits(salt: str) -> int:
        request = Request(request_id="0", prompt_ids=LONG, cache_salt=salt, sampling=SamplingParams(max_tokens=2))
        return outputs(llm, [request])[-1].num_cached_tokens

    assert (hits("a"), hits("b"), hits("")) == (0, 0, 0)
    known = len(LONG) // stage.page_size * stage.page_size
    assert (hits("a"), hits("b"), hits("")) == (known, known, known)


def test_a_salt_keeps_what_drafters_learn_apart(stage: Stage) -> None:
    """Neither do its answers reach others, nor those of others it."""
    llm = stage.llm(drafters=("suffix",), adaptive=False)

    def drafted(number: int, salt: str) -> int:
        sampling = SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)
        request = Request(request_id=str(number), prompt_ids=LONG, cache_salt=salt, sampling=sampling)
        stats = outputs(llm, [request])[-1].stats
        assert stats is not None
        return stats.drafted_by_drafter.get("suffix", 0)

    assert drafted(0, "a") == drafted(1, "") == 0
    assert drafted(2, "") > 0
    assert drafted(3, "a") == drafted(4, "b") == 0
