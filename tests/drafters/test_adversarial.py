"""Trees meant to break a verifier: valid ones, of every shape, some of them right, and the same when a run is repeated."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from specdec.draft.protocol import DraftView, Starter
from specdec.draft.tree import DraftTree
from specdec.drafters.adversarial import AdversarialDrafter
from specdec.drafters.adversarial.drafter import oracle_key
from specdec.request import SamplingParams
from specdec.round.drafts import Drafting
from tests.drafters.conftest import CPU, accepted, chosen, texts_of, trees_of, view_of

VOCAB, ROOM, NUM_SLOTS = 40, 120, 3
SAMPLING = SamplingParams(seed=3)
PROMPTS = ([5], [7, 8, 9] * 4, list(range(20)))
ANSWERS = tuple(np.random.default_rng(slot).integers(0, VOCAB, 60).tolist() for slot in range(NUM_SLOTS))


def made(known: bool = True) -> AdversarialDrafter:
    oracle = {oracle_key(prompt, SAMPLING): answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)}
    drafter = AdversarialDrafter(NUM_SLOTS, ROOM, VOCAB, CPU, oracle=oracle if known else None)
    for slot, prompt in enumerate(PROMPTS):
        drafter.enter(slot, Starter(prompt, len(prompt), SAMPLING, ()))
    return drafter


def view_after(done: int, num_nodes: int = 16) -> DraftView:
    texts = [[*prompt, *answer[:done]] for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    return view_of(texts_of([*texts, [0]], ROOM), list(range(NUM_SLOTS)), num_nodes=num_nodes)


def rounds(drafter: AdversarialDrafter, nodes: int = 16) -> Iterator[tuple[int, list[DraftTree]]]:
    """Answers that grow; how far they are, and the trees."""
    drafting = Drafting([drafter], 63, CPU)
    for done in range(len(ANSWERS[0]) - 1):
        view = view_after(done, nodes)
        roots = [int(view.texts.tokens_SL[slot, view.texts.lengths_S[slot] - 1]) for slot in range(NUM_SLOTS)]
        yield done, trees_of(chosen(drafting, view, nodes)[0], roots)


@pytest.mark.parametrize("nodes", [2, 5, 16, 64])
def test_trees_are_valid_of_every_shape_and_never_empty_handed_for_long(nodes: int) -> None:
    """`trees_of` checks each: parents first, siblings that differ."""
    depths, widths, sizes = set(), set(), []
    for _, trees in rounds(made(), nodes):
        for tree in trees:
            assert ((tree.tokens >= 0) & (tree.tokens < VOCAB)).all()
            sizes.append(len(tree))
            depths.add(int(tree.depths().max()))
            widths.add(int(np.bincount(tree.parents[1:]).max(initial=0)))
    assert max(sizes) == nodes
    assert 1 in sizes, "some rounds have no draft"
    assert np.mean(np.array(sizes) == 1) < 0.25
    assert len(depths) > min(nodes, 8) / 2
    assert len(widths) > min(nodes, 8) / 2


def test_some_drafts_are_right_and_some_rounds_wrong_where_the_answer_is_known() -> None:
    lengths = [accepted(tree, ANSWERS[slot][done:]) for done, trees in rounds(made()) for slot, tree in enumerate(trees)]
    assert 0.3 < np.mean(np.array(lengths) > 0) < 0.95
    assert max(lengths) > 4
    blind = [accepted(tree, ANSWERS[slot][done:]) for done, trees in rounds(made(False)) for slot, tree in enumerate(trees)]
    assert np.mean(blind) < np.mean(lengths) / 3


def test_right_drafts_lie_off_the_spine_too() -> None:
    """Those are the ones whose caches have to be moved."""
    off = 0
    for done, trees in rounds(made()):
        for slot, tree in enumerate(trees):
            first = np.flatnonzero((tree.parents == 0) & (tree.tokens == ANSWERS[slot][done]))
            off += bool(len(first[first > 1]))
    assert off > 5


def test_a_run_that_is_repeated_drafts_the_same_call_by_call() -> None:
    one, other = made(), made()
    before = None
    for done in (0, 0, 0, 5, 30):
        mine, theirs = (drafter.draft(view_after(done)).candidates for drafter in (one, other))
        for name in ("tokens_MC", "parents_MC", "kinds_MC"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name))
        assert before is None or not torch.equal(mine.tokens_MC, before), "another round, other trees"
        before = mine.tokens_MC


def test_who_takes_over_a_slot_is_not_drafted_for_from_another_answer() -> None:
    drafter = made()
    drafter.enter(1, Starter([7, 8], 2, SAMPLING, ()))
    assert (drafter._answers_SL[1] < 0).all()
    drafter.enter(1, Starter([*PROMPTS[1], *ANSWERS[1][:9]], len(PROMPTS[1]), SAMPLING, ()))
    start = len(PROMPTS[1])
    assert drafter._answers_SL[1, start : start + 60].tolist() == ANSWERS[1], "who comes back has its own again"


def test_behind_the_end_of_an_answer_it_guesses() -> None:
    drafter = made()
    for done in (59, 60, 80):
        view = view_after(0)
        view.texts.lengths_S[:NUM_SLOTS] += done
        candidates = drafter.draft(view).candidates
        assert ((candidates.tokens_MC >= -1) & (candidates.tokens_MC < VOCAB)).all()
