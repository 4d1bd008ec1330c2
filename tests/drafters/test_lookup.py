"""Lookup drafts: copied from the request's own text, from the text it expects, from earlier answers; and from nothing else."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from tests.drafters.conftest import accepted, chosen, paths_of, trees_of, view_of
from tests.drafters.lookup_desk import ALL, ROOM, WIDTH, Desk


def sample(seed: int, count: int, below: int = 1000) -> list[int]:
    """Different tokens."""
    return random.Random(seed).sample(range(below), count)


def desk(*names: str, text: Sequence[int] = (0,), prediction: Sequence[int] = ()) -> Desk:
    made = Desk(*(names or ALL))
    made.enter(0, text, prediction)
    return made


def test_a_long_passage_is_copied_whole() -> None:
    passage = sample(2, 100)
    found = desk("ngram", text=[*passage, 2000, *passage[:10]])
    assert accepted(found.tree(), passage[10:]) == WIDTH
    assert accepted(found.tree(nodes=9), passage[10:]) == 8, "a smaller tree is the beginning of it"


def test_a_loop_is_gone_round() -> None:
    assert accepted(desk("ngram", text=[1, 2, 3] * 4).tree(), [1, 2, 3] * 11) == WIDTH
    assert accepted(desk("ngram", text=[7, 7]).tree(), [7] * 40) == WIDTH


def test_both_continuations_are_a_small_tree_the_frequent_one_first() -> None:
    found = desk("ngram", text=[1, 2, 7, 1, 2, 8, 1, 2, 8, 1, 2])
    verified, _ = chosen(found.drafting, found.view(0), 64)
    (tree,) = trees_of(verified, [2])
    below = np.flatnonzero(tree.parents[1:] == 0) + 1
    assert tree.tokens[below].tolist() == [8, 7]
    assert below[0] == 1, "what is likelier is the spine, whose rows need no move"
    (small,) = trees_of(chosen(found.drafting, found.view(0), 2)[0], [2])
    assert small.tokens.tolist() == [2, 8]


def test_the_more_places_agree_the_surer_is_a_draft() -> None:
    survivals = []
    for times in (1, 2, 3):
        found = desk("ngram", text=[9, *([5, 6, 8] * times), 30, 5, 6])
        survivals.append(float(chosen(found.drafting, found.view(0))[0].trees.survivals_MO[0, 0]))
    assert survivals == sorted(set(survivals))


def test_the_more_tokens_agree_the_surer_is_a_draft() -> None:
    passage, survivals = sample(4, 40), []
    for length in (1, 2, 4, 8, 16):
        found = desk("ngram", text=[*passage, 2000, *passage[:length]])
        survivals.append(float(chosen(found.drafting, found.view(0))[0].trees.survivals_MO[0, 0]))
    assert survivals == sorted(set(survivals))


def test_the_recent_comes_before_the_old() -> None:
    found = desk("ngram", text=[5, 6, 10, 5, 6, 11, 5, 6, 12, 5, 6])
    assert [path[0] for path in found.paths() if len(path) == 1] == [12, 11, 10]


def three_places(*names: str) -> Desk:
    """What went before stands in the text, in the text that is expected and in an answer, and goes on differently."""
    found = Desk(*names)
    found.answers([5, 6, 13, 14])
    for slot in range(2):
        found.enter(slot, [700], prediction=[5, 6, 12])
        found.grow(slot, [5, 6, 11, 5, 6])
    return found


def test_own_text_comes_before_what_is_expected_and_that_before_earlier_answers() -> None:
    found = three_places(*ALL)
    assert [path for path in found.paths() if len(path) == 1] == [(11,), (12,), (13,)]
    credits = found.credits()
    assert (credits[11,], credits[12,], credits[13, 14]) == ("ngram", "prediction", "suffix")


@pytest.mark.parametrize("name", ALL)
def test_who_is_not_wanted_offers_nothing(name: str) -> None:
    found = three_places(name)
    assert [path[0] for path in found.paths() if len(path) == 1] == [{"ngram": 11, "prediction": 12, "suffix": 13}[name]]
    assert set(found.credits().values()) == {name}


@pytest.mark.parametrize(("name", "first"), [("ngram", 11), ("prediction", 12), ("suffix", 13)])
def test_a_request_s_own_choice_is_kept_to(name: str, first: int) -> None:
    found = three_places(*ALL)
    allowed = torch.tensor([1 << ALL.index(name), 0b111, 0])
    trees = trees_of(chosen(found.drafting, found.view(0, 1), [40, 40], allowed_S=allowed)[0], [6, 6])
    narrowed, whole = ([tree.tokens[place] for place in np.flatnonzero(tree.parents == 0)[1:]] for tree in trees)
    assert narrowed == [first]
    assert whole == [11, 12, 13], "of others nothing changes"


def test_what_is_drawn_is_trusted_less_than_what_is_greedy() -> None:
    survivals = []
    for temperature in (0.0, 0.8):
        found = Desk("ngram")
        found.enter(0, [5, 6, 7, 5, 6], temperature=temperature)
        survivals.append(float(chosen(found.drafting, found.view(0))[0].trees.survivals_MO[0, 0]))
    assert survivals[1] < survivals[0]


def test_a_predicted_text_is_drafted_from_the_start() -> None:
    predicted = sample(6, 100, 800)
    for prompt in ([999], sample(1, 50)):
        assert accepted(desk(text=[*prompt, 900], prediction=predicted).tree(), predicted) == WIDTH
    assert desk("prediction", text=[1, 2, 3]).paths() == [], "where there is none nothing is offered"


@pytest.mark.parametrize(
    ("change", "output_goes_on_at"),
    [
        pytest.param([900], 51, id="replaced"),
        pytest.param([900], 50, id="inserted"),
        pytest.param([], 53, id="removed"),
        pytest.param([900, 901, 902, 903], 52, id="rewritten"),
    ],
)
def test_a_predicted_text_is_found_again_one_token_after_an_edit(change: list[int], output_goes_on_at: int) -> None:
    predicted = sample(6, 100, 800)
    found = desk("prediction", text=[999], prediction=predicted)
    found.grow(0, [*predicted[:50], *change])
    rest = predicted[output_goes_on_at:]
    found.grow(0, rest[:1])
    assert accepted(found.tree(), rest[1:]) == WIDTH


def test_after_a_repeated_line_each_place_where_it_goes_on_is_tried() -> None:
    line = [1, 2, 3]  # as code has
    found = desk("prediction", text=[999], prediction=[*line, 10, 11, *line, 20, 21, *line, 30, 31])
    found.grow(0, [*line, 10, 500, *line])
    for follow in ([10, 11], [20, 21], [30, 31]):
        assert accepted(found.tree(), follow) == 2
    found.grow(0, [20])
    assert accepted(found.tree(), [21, *line, 30, 31]) == 6, "and what is said next tells which"


def test_who_comes_back_after_preemption_has_its_predicted_text_behind_its_prompt() -> None:
    predicted = sample(6, 60, 800)
    found = Desk("prediction")
    found.enter(0, [900, 901, *predicted[:20]], predicted, prompt=2)
    assert found.paths() == [tuple(predicted[20 : 20 + end]) for end in range(1, WIDTH + 1)], "and nowhere else"
    found.enter(0, [900, 901], predicted, prompt=2)
    assert accepted(found.tree(), predicted) == WIDTH


def test_answers_are_learned_from_where_that_is_allowed() -> None:
    response = sample(3, 50)
    found = Desk("suffix")
    found.answers([])
    found.enter(0, [2000, *response[:5]])
    assert found.paths() == []
    found.answers(response)
    found.enter(0, [2000, *response[:5]])
    assert accepted(found.tree(), response[5:]) == WIDTH
    assert desk("ngram", "prediction", text=response[:5]).drafter._corpus_C.numel() == 0, "nor kept where nobody asks for it"


def test_what_is_forgotten_is_not_drafted(few: int) -> None:
    found, response = Desk("suffix"), sample(3, 50, 10**6)
    found.answers(response)
    found.drafter.leave(1, response)  # learned when it is asked next
    found.drafting.crew.forget()
    found.enter(0, [2_000_000, *response[:5]])
    assert found.paths() == []
    found.answers(response)
    found.enter(0, [2_000_000, *response[:5]])
    assert accepted(found.tree(), response[5:]) == WIDTH


def test_no_draft_runs_over_the_end_of_an_answer_or_begins_before_one() -> None:
    found = Desk("suffix")
    found.answers([1, 2, 3], [4, 5, 6])
    for text, paths in (([0, 1, 2], [(3,)]), ([0, 1, 2, 3], []), ([4], [(5,), (5, 6)]), ([0, 3, 4], [(5,), (5, 6)])):
        found.enter(0, text)
        assert found.paths() == paths


def test_the_oldest_answers_make_room_and_no_more_is_kept(few: int) -> None:
    found, responses = Desk("suffix"), [sample(seed, 70, 10**6) for seed in range(20)]
    for number, response in enumerate(responses):
        found.answers(response)
        for age, known in enumerate(reversed(responses[: number + 1])):
            found.enter(0, [2_000_000, *known[:5]])
            assert accepted(found.tree(), known[5:]) == (WIDTH if age < 4 else 0), (number, age)
        assert len(found.drafter._corpus_C) == few


def test_answers_after_which_nobody_asked_are_bounded_too(few: int) -> None:
    found, responses = Desk("suffix"), [sample(seed, 70, 10**6) for seed in range(20)]
    for response in responses:
        found.drafter.leave(0, response)
        assert len(found.drafter._to_learn) <= few
    for age, response in enumerate(reversed(responses)):
        found.enter(0, [2_000_000, *response[:5]])
        assert accepted(found.tree(), response[5:]) == (WIDTH if age < 4 else 0)


def test_of_an_answer_longer_than_all_that_is_kept_the_end_is(few: int) -> None:
    found, response = Desk("suffix"), sample(1, 2 * few, 10**6)
    found.answers(response)
    for place, length in ((0, 0), (few - 10, 0), (few + 10, WIDTH), (2 * few - 20, 15)):
        found.enter(0, response[place : place + 5])
        assert accepted(found.tree(), response[place + 5 :]) == length, place


def test_the_newest_answer_comes_first_however_many_came_before(few: int) -> None:
    """Whatever place of the corpus it was written to."""
    found = Desk("suffix")
    for number in range(30):
        found.answers([1, 2, 3, 100 + number, *sample(number, 30 + number, 10**6)])
        found.enter(0, [1, 2, 3])
        offered = [path[0] for path in found.paths() if len(path) == 1]
        assert offered[:2] == [100 + number, 99 + number][: number + 1]
        assert offered == sorted(offered, reverse=True)


def test_who_takes_over_a_slot_sees_nothing_of_who_had_it() -> None:
    passage = sample(2, 60)
    used, fresh = Desk("ngram", "prediction"), Desk("ngram", "prediction")
    used.enter(0, passage, prediction=sample(3, 80), temperature=1.0)
    used.paths()
    used.drafter.leave(0, passage)
    texts = ([passage[0]], passage[:30], [*passage[:5], 2000, *passage[:3]])
    for tokens in texts:
        for prediction in ((), sample(9, 4)):
            for made in (used, fresh):
                made.enter(0, tokens, prediction)
            assert used.paths() == fresh.paths()
            assert used.credits() == fresh.credits()
            mine, theirs = (chosen(made.drafting, made.view(0))[0].trees.survivals_MO for made in (used, fresh))
            assert torch.equal(mine, theirs)
            used.enter(0, passage, prediction=passage)


def test_sequences_see_their_own_texts_and_not_each_other_s() -> None:
    found = Desk("ngram", "prediction")
    found.enter(0, [1, 2, 3, 1], prediction=[50, 51])
    found.enter(1, [4, 5, 4], prediction=[3, 1, 60])
    own, other = trees_of(chosen(found.drafting, found.view(0, 1), [30, 30])[0], [1, 4])
    assert set(own.tokens[1:].tolist()) == {1, 2, 3, 50, 51}
    assert set(other.tokens[1:].tolist()) == {4, 5, 3, 1, 60}


def test_texts_may_fill_all_the_room_that_there_is() -> None:
    passage = sample(1, 100)
    found = Desk(*ALL, max_model_len=90)
    found.enter(0, [*passage[:50], *[2000] * (ROOM - 60), *passage[:10]])
    assert found.lengths[0] == ROOM
    assert accepted(found.tree(), passage[10:41]) == WIDTH
    found.enter(0, [3000], prediction=sample(5, 500))
    assert found.drafter._reference_lengths_S[0] == 90, "of a longer one the beginning"
    assert accepted(found.tree(), sample(5, 500)) == WIDTH
    found.grow(0, sample(5, 500)[:80])
    assert accepted(found.tree(), sample(5, 500)[80:]) == 9, "as far as it is known"


def test_a_round_looks_no_further_than_the_pages_of_its_members() -> None:
    """Rooms of texts are much longer than what is in them."""
    found = desk("ngram", text=[*sample(1, 40), 2000, *sample(1, 40)[:10]])
    texts = found.view(0).texts
    short = view_of(texts, [0], page_size=64)
    assert paths_of(found.drafter.draft(short).candidates)[0] == found.paths()


def test_a_prompt_of_one_token_and_a_slot_that_nobody_has() -> None:
    found = desk(text=[5])
    assert found.paths() == []
    assert paths_of(found.drafter.draft(found.view(0, 2, 2)).candidates) == [[], [], []]
    assert found.tree().tokens.tolist() == [5]
    found.grow(0, [5])
    assert accepted(found.tree(), [5] * 40) == WIDTH


def test_the_room_of_predicted_texts_is_made_for_the_first_one() -> None:
    found = desk(text=[1, 2])
    assert found.drafter.shape == 0
    found.enter(1, [1, 2], prediction=[3])
    assert found.drafter.shape == ROOM
    assert found.paths(0) == []
    assert found.paths(1) == [(3,)]
