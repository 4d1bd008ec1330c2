"""Memory over time: what requests leave behind is bounded by the settings, not by their number."""

import gc
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from specdec import assemble
from specdec.config import EngineConfig
from specdec.llm import LLM
from specdec.request import Request, SamplingParams, SpeculationParams
from specdec.round.plan import _Fields
from tests.end_to_end.conftest import ALL_DRAFTERS, SAMPLINGS


def of_all_kinds() -> Iterator[Request]:
    """Tiny ones, no two alike: every sampling, stops, biases, predictions, wishes, prompts known and new."""
    draw = random.Random(0)
    for number, sampling in zip(itertools.count(), itertools.cycle(SAMPLINGS), strict=False):
        params: dict[str, Any] = {"max_tokens": draw.randrange(1, 6), "stop": ("the",) * draw.randrange(2), "ignore_eos": True}
        yield Request(
            request_id=str(number),
            prompt_ids=tuple(draw.randrange(3, 250) for _ in range(draw.randrange(1, 40))),
            sampling=SamplingParams(**params | sampling | {"min_tokens": 0}),
            speculation=SpeculationParams(drafter=draw.choice((None, "ngram")), max_nodes=draw.choice((None, 1, 3))),
            prediction_ids=tuple(draw.randrange(3, 250) for _ in range(draw.randrange(3))),
        )


def serve(llm: LLM, requests: Iterator[Request], count: int) -> None:
    """Some are aborted, and some are not listened to."""
    engine, left = llm.engine, count

    def deaf(_: object) -> None:
        raise BrokenPipeError

    while left or engine.has_work:
        for request in itertools.islice(requests, min(left, 8)):
            left -= 1
            engine.submit(request, deaf if left % 50 == 0 else lambda _: None)
            if left % 7 == 0:
                engine.abort(request.request_id)
        engine.step()


def kept(llm: LLM) -> int:
    """Objects that are alive, and integers and strings in the engine's own books."""
    gc.collect()
    _Fields.of.cache_clear()  # bounded by itself, and far from full
    engine = llm.engine
    books = (engine._known_ids, engine._sequences, engine._aborted, engine._submitted, engine._round.graphs._graphs)
    return len(gc.get_objects()) + sum(map(len, books))


def test_a_thousand_requests_leave_no_more_than_a_few_hundred(
    tiny_checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")  # what is captured is kept
    config = EngineConfig(
        model=str(tiny_checkpoint("llama", num_hidden_layers=1)),
        dtype="float32",
        device="cpu",
        cache_gb=0.01,
        page_size=16,
        drafters=ALL_DRAFTERS[:3],
        adaptive=False,
        max_tree_nodes=4,
        max_batch=8,
    )
    llm, requests = LLM(assemble.build(config)), of_all_kinds()
    serve(llm, requests, 400)
    before = kept(llm)
    serve(llm, requests, 1000)
    assert kept(llm) - before < 300
