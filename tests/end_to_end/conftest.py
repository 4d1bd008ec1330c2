"""Where engines of the tests run, what they are asked, and what the plain one answers.

A stage is a tiny model on a device: a CPU, a CPU with the shapes that rounds have on a GPU, a GPU. Whatever an engine does
there, its answers are held to those of the plain one: one request at a time, nothing drafted, nothing ahead of the host.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from specdec import assemble
from specdec.cache.kinds import cache_dtype, page_bytes
from specdec.config import EngineConfig
from specdec.drafters.adversarial.drafter import OracleKey, oracle_key
from specdec.llm import LLM, Completion
from specdec.request import Request, RequestOutput, SamplingParams

TinyCheckpoint = Callable[..., Path]
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
ALL_DRAFTERS = ("ngram", "suffix", "prediction", "adversarial")
LONG = tuple((i * 7) % 250 + 3 for i in range(70))
PROMPTS = (LONG, (*LONG[:33], 9, 8, 7), (5,), tuple(range(10, 50)))
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.7, "seed": 1, "logprobs": 2},
    {"temperature": 1.0, "seed": 2},
    {"temperature": 1.0, "seed": 3, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    {"seed": 4, "logprobs": 0, "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    {"temperature": 0.0, "frequency_penalty": 1.0, "logit_bias": {7: 3.0, 8: -100.0}, "min_tokens": 12, "logprobs": 20},
    {"temperature": 1.3, "seed": 5, "top_p": 0.98},
    {"temperature": 0.8, "seed": 6, "logit_bias": {11: 12.0, 12: 12.0, 13: 12.0}},  # says the same again and again
)
MAX_TOKENS = 20
Content = tuple[object, ...]


def content(completion: Completion) -> Content:
    """What must not depend on how a request was served."""
    return completion.token_ids, completion.text, completion.logprobs, completion.finish_reason, completion.stop_reason


def hold(found: Completion, wanted: Completion) -> None:
    """The same bits, and statistics that add up."""
    assert content(found) == content(wanted), found.request_id
    stats = found.stats
    assert sum(stats.accepted_histogram) == stats.num_steps
    assert sum(number * steps for number, steps in enumerate(stats.accepted_histogram)) == stats.num_accepted_tokens
    assert sum(stats.accepted_by_depth) == stats.num_accepted_tokens
    assert sum(stats.drafted_by_drafter.values()) == stats.num_draft_tokens
    assert sum(stats.accepted_by_drafter.values()) == stats.num_accepted_tokens
    assert stats.num_steps + stats.num_accepted_tokens - len(found.token_ids) in (0, 1), "the last step may lack its own token"


def rest(llm: LLM) -> None:
    """An engine that served all of its requests has nothing left of them."""
    engine, status = llm.engine, llm.engine.status()
    engine.check()
    assert not engine.has_work
    assert (status.num_running, status.num_waiting, status.pages_used) == (0, 0, 0)
    assert not engine._sequences


def traffic(
    llm: LLM, arrivals: Mapping[int, Sequence[Request]], aborts: Mapping[int, Sequence[str]] | None = None
) -> dict[str, Completion]:
    """Requests come, and some are aborted, before given steps of the engine; the books are looked at after each."""
    engine, aborts, step = llm.engine, aborts or {}, 0
    heard: dict[str, Completion] = {}
    started = time.perf_counter()

    def sink(output: RequestOutput) -> None:
        heard[output.request_id].add(output, time.perf_counter() - started)

    while engine.has_work or step <= max(*arrivals, *aborts, 0):
        for request in arrivals.get(step, ()):
            heard[request.request_id] = Completion(request_id=request.request_id)
            engine.submit(request, sink)
        for request_id in aborts.get(step, ()):
            engine.abort(request_id)
        engine.step()
        engine.check()
        step += 1
    rest(llm)
    return heard


@dataclass(frozen=True)
class Stage:
    """fixed_shapes: None leaves it to the device."""

    loaded: assemble.LoadedModel
    fixed_shapes: bool | None = None

    @property
    def device(self) -> str:
        return self.loaded.model.device.type

    @property
    def page_size(self) -> int:
        return 16 if self.device == "cpu" else 64

    def llm(self, oracle: Mapping[OracleKey, Sequence[int]] | None = None, pages: int | None = None, **fields: Any) -> LLM:
        """An engine; `pages` makes its cache tight."""
        if pages is not None:
            fields["cache_gb"] = self._gigabytes(pages, fields.get("draft_model") is not None)
        base: dict[str, Any] = {"cache_gb": 0.01, "drafters": (), "max_batch": 32, "max_tree_nodes": 8}
        dtype = "float32" if self.device == "cpu" else "bfloat16"
        where: dict[str, Any] = {"model": self.loaded.name, "dtype": dtype, "device": self.device, "page_size": self.page_size}
        config = EngineConfig(**where | base | fields)
        built = assemble.build(config, loaded=self.loaded, oracle=oracle, fixed_shapes=self.fixed_shapes)
        return LLM(built)

    def plain(self) -> LLM:
        """The engine that the others are held to."""
        follows = replace(self, fixed_shapes=None)
        return follows.llm(max_batch=1, prefix_cache=False, chunk_tokens=1000, depth=0)

    def _gigabytes(self, pages: int, with_draft_model: bool) -> float:
        """Of so many pages; a draft model has as many layers as its target here."""
        model = self.loaded.model
        stored = cache_dtype(model.dtype, model.device)
        each = page_bytes(model.cache_specs, self.page_size, stored) * (2 if with_draft_model else 1)
        return each * (pages + 0.01) / 1e9


def ordinary() -> list[Request]:
    """Every prompt with every sampling. The stop token ends some, and others ignore it."""
    return [
        Request(
            request_id=f"{p}-{s}",
            prompt_ids=prompt,
            sampling=SamplingParams(**{"max_tokens": MAX_TOKENS, "ignore_eos": s % 2 == 0} | sampling),
        )
        for (p, prompt), (s, sampling) in itertools.product(enumerate(PROMPTS), enumerate(SAMPLINGS))
    ]


class Pool:
    """Requests and their plain answers. What answers are drafted from goes on where a request stops."""

    def __init__(self, plain: LLM) -> None:
        self._plain = plain
        self.expected: dict[str, Completion] = {}
        self.oracle: dict[OracleKey, list[int]] = {}
        self.ordinary = [self._with_prediction(request) for request in self._answered(ordinary())]
        self.stopping = self._answered([self._stops(request, place) for place, request in enumerate(self.ordinary[::3])])
        self.continued = self._answered([self._goes_on(request) for request in self.ordinary[::4]])
        assert len({tuple(done.token_ids) for done in self.expected.values()}) > len(self.expected) // 2, "requests differ"

    @staticmethod
    def answers(llm: LLM, requests: Iterable[Request]) -> dict[str, Completion]:
        """Of requests that come one at a time."""
        return {request.request_id: llm.generate([request])[0] for request in requests}

    @staticmethod
    def oracle_of(requests: Iterable[Request], answers: Mapping[str, Completion]) -> dict[OracleKey, list[int]]:
        """What the adversarial drafter wants to know."""
        return {oracle_key(r.prompt_ids, r.sampling): answers[r.request_id].token_ids for r in requests}

    @cached_property
    def requests(self) -> list[Request]:
        """All of them."""
        return [*self.ordinary, *self.stopping, *self.continued]

    def _answered(self, requests: Iterable[Request]) -> list[Request]:
        asked = list(requests)
        answers = self.answers(self._plain, asked)
        self.expected |= answers
        self.oracle = self.oracle_of(asked, answers) | self.oracle
        return asked

    def _with_prediction(self, request: Request) -> Request:
        """The answer, but for one token in the middle of it."""
        answer = self.expected[request.request_id].token_ids
        return replace(request, prediction_ids=(*answer[:9], 99, *answer[10:]))

    def _stops(self, request: Request, place: int) -> Request:
        """The same, ended within its answer: by a token, a string, or its length; a stop may be forbidden at first."""
        whole, sampling = self.expected[request.request_id], request.sampling
        token, text = whole.token_ids[-8:][0], whole.text[3:][:2] or "e"
        changed = (
            replace(sampling, stop_token_ids=(token,)),
            replace(sampling, stop=(text, "never to be found")),
            replace(sampling, stop_token_ids=(whole.token_ids[1],), stop=(text,), min_tokens=6),
            replace(sampling, max_tokens=5, min_tokens=0),
        )[place % 4]
        self.oracle[oracle_key(request.prompt_ids, changed)] = whole.token_ids
        return replace(request, request_id=f"{request.request_id} stops", sampling=changed)

    def _goes_on(self, request: Request) -> Request:
        """A prompt that holds an answer; its pages may be there."""
        prompt = (*request.prompt_ids, *self.expected[request.request_id].token_ids[:19])
        return replace(request, request_id=f"{request.request_id} goes on", prompt_ids=prompt)


def _load(tiny_checkpoint: TinyCheckpoint, family: str, device: str) -> assemble.LoadedModel:
    dtype = "float32" if device == "cpu" else "bfloat16"
    folder = tiny_checkpoint(family, num_hidden_layers=2)
    return assemble.load(EngineConfig(model=str(folder), dtype=dtype, device=device))


def stages(*wanted: tuple[str, str, bool]) -> list[Any]:
    """Parameters of the fixture `stage`: (family, device, whether a CPU has the shapes of a GPU)."""
    return [
        pytest.param((family, device, fixed), id=f"{family} {device}{' as a GPU' * fixed}", marks=ON_GPU * (device == "cuda"))
        for family, device, fixed in wanted
    ]


Made = dict[tuple[str, str], tuple[assemble.LoadedModel, Pool]]


@pytest.fixture(scope="session")
def _made() -> Made:
    """Models with their requests, once a session."""
    return {}


@pytest.fixture(
    params=stages(("llama", "cpu", False), ("qwen3_moe", "cpu", True), ("llama", "cuda", False), ("qwen3_moe", "cuda", False))
)
def stage(request: pytest.FixtureRequest, tiny_checkpoint: TinyCheckpoint, _made: Made) -> Stage:
    """Each model on each device, and each way a CPU has once."""
    family, device, fixed = request.param
    if (family, device) not in _made:
        loaded = _load(tiny_checkpoint, family, device)
        _made[family, device] = loaded, Pool(Stage(loaded).plain())
    return Stage(_made[family, device][0], fixed or None)


@pytest.fixture
def pool(stage: Stage, _made: Made) -> Pool:
    """The stage's requests and plain answers."""
    return next(pool for loaded, pool in _made.values() if loaded is stage.loaded)
