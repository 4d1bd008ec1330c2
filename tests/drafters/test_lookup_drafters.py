"""The drafters that copy: from the request (ngram), from earlier responses (suffix), from a predicted text (prediction)."""

import random
from collections.abc import Callable

import pytest

from specdec.draft.protocol import DraftContext, Drafter, Observation
from specdec.draft.tree import DraftTree
from specdec.drafters.adversarial import AdversarialDrafter
from specdec.drafters.ngram import FEED_TOKENS, NgramDrafter
from specdec.drafters.prediction import PredictionDrafter
from specdec.drafters.suffix import SuffixDrafter
from specdec.request import SamplingParams


def context(
    tokens: list[int], num_prompt: int, max_nodes: int = 32, max_depth: int = 31, request_id: str = "r"
) -> DraftContext:
    return DraftContext(
        request_id=request_id,
        tokens=tokens,
        num_prompt_tokens=num_prompt,
        sampling=SamplingParams(temperature=0.0),
        max_nodes=max_nodes,
        max_depth=max_depth,
    )


def draft(drafter: Drafter, tokens: list[int], num_prompt: int, max_nodes: int = 32, max_depth: int = 31) -> DraftTree | None:
    proposal = drafter.propose([context(tokens, num_prompt, max_nodes, max_depth)])[0]
    return proposal.tree if proposal else None


def accepted(tree: DraftTree | None, future: list[int]) -> int:
    """How many tokens of `future` lie on one path of the tree."""
    if tree is None:
        return 0
    children = {(int(p), int(t)): i + 1 for i, (p, t) in enumerate(zip(tree.parents[1:], tree.tokens[1:], strict=True))}
    node = length = 0
    while length < len(future) and (node, future[length]) in children:
        node = children[node, future[length]]
        length += 1
    return length


def make_ngram() -> Drafter:
    return NgramDrafter(0)


def make_suffix() -> Drafter:
    drafter, rng = SuffixDrafter(0), random.Random(5)
    teach(drafter, [rng.randrange(6) for _ in range(300)])
    return drafter


def make_prediction() -> Drafter:
    return PredictionDrafter(0)


def make_adversarial() -> Drafter:
    return AdversarialDrafter(0, vocab_size=6, oracle={"r": [1, 2, 3, 4, 5, 0] * 20})


def teach(drafter: SuffixDrafter, response: list[int], finished: bool = True) -> None:
    drafter.start("teacher", [0], [])
    drafter.observe([Observation(request_id="teacher", emitted=response)])
    drafter.release("teacher", finished)


@pytest.mark.parametrize("make", [make_ngram, make_suffix, make_prediction, make_adversarial])
@pytest.mark.parametrize(("max_nodes", "max_depth"), [(2, 1), (5, 1), (9, 3), (64, 63)])
def test_proposals_are_valid_trees_within_their_limits(make: Callable[[], Drafter], max_nodes: int, max_depth: int) -> None:
    drafter, rng = make(), random.Random(1)
    tokens = [rng.randrange(6) for _ in range(20)]
    drafter.start("r", tokens, [rng.randrange(6) for _ in range(60)])
    proposed = 0
    for _ in range(60):
        tokens.append(rng.randrange(6))
        tree = draft(drafter, tokens, 20, max_nodes, max_depth)
        if tree is None:
            continue
        proposed += 1
        tree.check()
        assert tree.tokens[0] == tokens[-1]
        assert 2 <= len(tree) <= max_nodes
        assert tree.depths().max() <= max_depth
    assert proposed > 20


def test_ngram_copies_a_long_passage_whole() -> None:
    passage = random.Random(2).sample(range(1000), 100)
    drafter = make_ngram()
    drafter.start("r", passage, [])
    assert accepted(draft(drafter, [*passage, 2000, *passage[:10]], 100), passage[10:]) == 31


def test_ngram_offers_both_continuations_the_frequent_one_first() -> None:
    tokens = [1, 2, 7, 1, 2, 8, 1, 2, 8, 1, 2]
    drafter = make_ngram()
    drafter.start("r", tokens, [])
    tree = draft(drafter, tokens, len(tokens), 8, 1)
    assert tree is not None
    assert tree.tokens[1:3].tolist() == [8, 7]
    assert tree.ranks[1:3].tolist() == [0, 1]
    assert tree.log_q[1] > tree.log_q[2]


def test_ngram_goes_round_a_loop() -> None:
    drafter = make_ngram()
    drafter.start("r", [1, 2, 3], [])
    assert accepted(draft(drafter, [1, 2, 3] * 4, 3), [1, 2, 3] * 5) >= 12


def test_ngram_is_silent_until_a_long_prompt_is_read() -> None:
    tokens = [1, 2, 3, 4] * (FEED_TOKENS // 4) + [1, 2]
    drafter = make_ngram()
    drafter.start("r", tokens, [])
    assert draft(drafter, tokens, len(tokens)) is None
    assert draft(drafter, tokens, len(tokens)) is not None


def test_suffix_learns_from_finished_responses_only() -> None:
    response = random.Random(3).sample(range(1000), 50)
    drafter = SuffixDrafter(0)
    teach(drafter, response, finished=False)
    drafter.start("r", [0], [])
    assert draft(drafter, [0, *response[:5]], 1) is None
    teach(drafter, response)
    assert accepted(draft(drafter, [0, *response[:5]], 1), response[5:]) == 31


def test_suffix_never_runs_over_the_end_of_a_response() -> None:
    drafter = SuffixDrafter(0)
    for response in ([1, 2, 3], [4, 5, 6]):
        teach(drafter, response)
    drafter.start("r", [0], [])
    tree = draft(drafter, [0, 1, 2], 1)
    assert tree is not None
    assert tree.tokens.tolist() == [2, 3]
    assert draft(drafter, [0, 1, 2, 3], 1) is None


def test_suffix_forgets_the_oldest_and_keeps_its_bound() -> None:
    rng, drafter = random.Random(4), SuffixDrafter(0, max_tokens=1000)
    responses = [[rng.randrange(10**6) for _ in range(100)] for _ in range(40)]
    for response in responses:
        teach(drafter, response)
        drafter.start("r", [0], [])
        assert accepted(draft(drafter, [0, *response[:5]], 1), response[5:]) == 31
        drafter.release("r", False)
        assert drafter.num_tokens <= 1000
    drafter.start("r", [0], [])
    assert draft(drafter, [0, *responses[0][:5]], 1) is None


def test_prediction_needs_a_predicted_text() -> None:
    drafter = make_prediction()
    drafter.start("r", [1, 2, 3], [])
    assert draft(drafter, [1, 2, 3], 3) is None


@pytest.mark.parametrize(
    ("change", "output_goes_on_at"),
    [
        pytest.param([900], 51, id="replaced"),
        pytest.param([900], 50, id="inserted"),
        pytest.param([], 53, id="removed"),
        pytest.param([900, 901, 902, 903], 52, id="rewritten"),
    ],
)
def test_prediction_finds_its_way_back_after_an_edit(change: list[int], output_goes_on_at: int) -> None:
    predicted = random.Random(6).sample(range(800), 100)
    drafter = make_prediction()
    drafter.start("r", [999], predicted)
    assert accepted(draft(drafter, [999], 1), predicted) == 31
    rest = predicted[output_goes_on_at:]
    tokens = [999, *predicted[:50], *change, *rest[:1]]
    assert accepted(draft(drafter, tokens, 1), rest[1:]) == 31


def test_prediction_tries_both_sides_of_a_replaced_token() -> None:
    predicted = random.Random(7).sample(range(800), 100)
    drafter = make_prediction()
    drafter.start("r", [999], predicted)
    tree = draft(drafter, [999, *predicted[:50], 900], 1)
    assert accepted(tree, predicted[51:]) >= 15
    assert accepted(tree, predicted[50:]) >= 8


def test_prediction_prefers_the_place_nearest_to_where_it_was_lost() -> None:
    line = [1, 2, 3]  # a repeated line, as code has
    predicted = [*line, 10, 11, *line, 20, 21, *line, 30, 31]
    drafter = make_prediction()
    drafter.start("r", [999], predicted)
    tree = draft(drafter, [999, *line, 10, 500, 1, 2, 3], 1)
    assert accepted(tree, [20, 21, 1, 2, 3, 30, 31]) == 7
