"""Who is measured, and in which turns, on an engine that follows a script."""

from collections.abc import Generator

import pytest

from specdec.bench.cases import Case
from specdec.bench.contenders import EngineContender, interleave
from specdec.errors import RoundError
from specdec.progress import NoProgress
from specdec.request import FinishReason, Request, RequestOutput, SamplingParams, SpeculationStats


class Scripted:
    """An engine that gives the tokens 0, 1, ... in two steps."""

    def __init__(self, finish: FinishReason = FinishReason.LENGTH) -> None:
        self.finish = finish
        self.requests: list[Request] = []
        self.ended: list[str] = []

    def stream(self, request: Request) -> Generator[RequestOutput, None, None]:
        self.requests.append(request)
        tokens = tuple(range(request.sampling.max_tokens))
        yield RequestOutput(request_id=request.request_id, token_ids=tokens[:2])
        error = "broken" if self.finish is FinishReason.ERROR else None
        stats = SpeculationStats(num_steps=2, num_accepted_tokens=len(tokens) - 2)
        yield RequestOutput(
            request_id=request.request_id, token_ids=tokens[2:], finish_reason=self.finish, error=error, stats=stats
        )
        self.ended.append(request.request_id)


CASES = [Case(id=f"c{i}", content_type="chat", prompt_ids=(1, 2), prediction_ids=(3,)) for i in range(3)]


def greedy(_: Case) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=4)


def test_contenders_take_turns_on_every_case() -> None:
    contenders = [EngineContender(name, Scripted, remembers=False) for name in ("A", "B")]
    samples = interleave(contenders, CASES, greedy, 2, NoProgress())
    assert [(s.repeat, s.case_id, s.contender) for s in samples[:4]] == [
        (0, "c0", "A"),
        (0, "c0", "B"),
        (0, "c1", "A"),
        (0, "c1", "B"),
    ]
    assert len(samples) == 12
    assert all((s.token_ids, s.num_first_tokens) == ((0, 1, 2, 3), 2) for s in samples)
    assert all(0.0 < s.first_token_seconds <= s.seconds for s in samples)


def test_an_engine_that_learns_answers_meets_no_prompt_twice() -> None:
    made: list[Scripted] = []

    def make() -> Scripted:
        made.append(Scripted())
        return made[-1]

    interleave([EngineContender("A", make, remembers=True)], CASES, greedy, 2, NoProgress())
    assert [engine.ended for engine in made] == [[f"c{i}#{repeat}" for i in range(3)] for repeat in range(2)]


@pytest.mark.parametrize(("device", "warm"), [("cpu", ["c0"]), ("cuda:0", ["c0", "c1", "c2"])])
def test_an_engine_is_warm_before_it_is_measured(device: str, warm: list[str]) -> None:
    engine = Scripted()
    interleave([EngineContender("A", lambda: engine, remembers=False)], CASES, greedy, 2, NoProgress(), device)
    begun = [request.request_id for request in engine.requests if request.request_id not in engine.ended]
    assert begun == [f"{name}#warm-up" for name in warm]
    assert [request.request_id for request in engine.requests[: len(begun)]] == begun
    assert len(engine.ended) == 2 * len(CASES)
    assert all(request.sampling.ignore_eos for request in engine.requests[: len(begun)]), "none ends by itself"


def test_predictions_are_given_only_when_asked_for() -> None:
    engine = Scripted()
    EngineContender("A", lambda: engine, remembers=False).answer(CASES[0], greedy(CASES[0]), 0)
    EngineContender("A", lambda: engine, remembers=False, predictions=True).answer(CASES[0], greedy(CASES[0]), 0)
    assert [request.prediction_ids for request in engine.requests] == [(), (3,)]


def test_a_failed_answer_is_not_a_sample() -> None:
    with pytest.raises(RoundError, match="A failed on c0: broken"):
        EngineContender("A", lambda: Scripted(FinishReason.ERROR), remembers=False).answer(CASES[0], greedy(CASES[0]), 0)
