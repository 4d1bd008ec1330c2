"""The drafts of a round: what several drafters offer is merged, held to a merge of paths by hand; who may not, and what was
sampled."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.cache.kinds import Caches
from specdec.draft.protocol import CandidateKinds, Candidates, Drafts, DraftView, ObserveView, Starter
from specdec.models.base import CacheSpec
from specdec.round.drafts import Drafting, DraftNames
from tests.drafters.conftest import CPU, chosen, texts_of, trees_of, view_of

ROOT = 9


@dataclass
class Fixed:
    """Offers the same in every round: (token, parent, kind) of each candidate, for each member."""

    offers: Sequence[Sequence[tuple[int, int, int]]]
    priors: Sequence[float]
    names: tuple[str, ...] = ("fixed",)
    sources: Sequence[int] | None = None
    elders: Sequence[int] | None = None
    law: float | None = None
    repeats: bool = False
    shape: int = 0
    reads: tuple[str, ...] = ()
    cache_specs: tuple[CacheSpec, ...] = ()
    asked: list[DraftView] = field(default_factory=list)

    def __post_init__(self) -> None:
        sources = np.array(self.sources or [0] * len(self.priors))
        self.kinds = CandidateKinds(np.array(self.priors), sources, None if self.elders is None else np.array(self.elders))

    def draft(self, view: DraftView) -> Drafts:
        self.asked.append(view)
        candidates = Candidates(*torch.tensor(self.offers).view(len(self.offers), -1, 3).unbind(2))
        laws = None
        if self.law is not None:
            laws = torch.full((len(self.offers), candidates.tokens_MC.shape[1] + 1, 4), self.law)
        return Drafts(candidates, laws, self.repeats)

    def bind(self, caches: Caches, first_layer: int, row_multiple: int) -> None: ...

    def enter(self, slot: int, starter: Starter) -> None: ...

    def leave(self, slot: int, output: Sequence[int]) -> None: ...

    def observe(self, view: ObserveView) -> None: ...


def chain(*tokens: int, kind: int = 0) -> list[tuple[int, int, int]]:
    return [(token, place - 1, kind) for place, token in enumerate(tokens)]


def view(members: int = 1) -> DraftView:
    return view_of(texts_of([[ROOT]] * (members + 1)), list(range(members)))


def paths(drafters: Sequence[Fixed], nodes: int = 64, max_depth: int = 63, least: float = 0.0) -> list[tuple[int, ...]]:
    """The tokens on the way to each node of the first member's tree, in order."""
    verified, _ = chosen(Drafting(drafters, max_depth, CPU), view(len(drafters[0].offers)), nodes, least=least)
    tree = trees_of(verified, [ROOT] * len(drafters[0].offers))[0]
    return [tuple(tree.tokens[tree.path(node)[1:]].tolist()) for node in range(1, len(tree))]


def test_paths_that_several_drafters_offer_take_their_rows_once() -> None:
    one, two = Fixed([chain(1, 2, 3)], [0.9]), Fixed([[*chain(1, 2, 4), (5, -1, 0)]], [0.8], names=("two",))
    assert paths([one, two]) == [(1,), (1, 2), (1, 2, 3), (1, 2, 4), (5,)]
    assert paths([two, one]) == [(1,), (1, 2), (1, 2, 4), (5,), (1, 2, 3)]
    assert paths([one, one]) == [(1,), (1, 2), (1, 2, 3)]
    assert paths([one, two], nodes=5) == [(1,), (1, 2), (1, 2, 3), (5,)], "no copy takes the room of another"


def test_the_spine_is_what_the_first_who_offers_anything_offers_first() -> None:
    silent = Fixed([[(-1, -1, 0), (-1, 0, 0)]], [0.9])
    two = Fixed([[*chain(6, 7), (8, -1, 0)]], [0.5], names=("two",))
    three = Fixed([chain(8, 9, 10)], [0.8], names=("three",))
    assert paths([silent, two, three]) == [(6,), (6, 7), (8,), (8, 9), (8, 9, 10)]
    verified, _ = chosen(Drafting([silent, two, three], 63, CPU), view())
    assert verified.trees.parents_MN[0, :6].tolist() == [0, 0, 1, 0, 3, 4]


def test_a_shared_path_counts_as_the_surer_of_its_drafters_says() -> None:
    one, two = Fixed([chain(1, 2)], [0.3]), Fixed([chain(1, 3)], [0.9], names=("two",))
    verified, _ = chosen(Drafting([one, two], 63, CPU), view())
    trees = verified.trees
    assert trees.survivals_MO[0, :3].tolist() == pytest.approx([0.9, 0.81, 0.09])
    assert trees.picks_MN[0, 1:4].tolist() == [0, 1, 3], "and is credited to the first who offers it"


def test_each_drafter_s_kinds_are_its_own() -> None:
    one = Fixed([[(1, -1, 0), (2, -1, 1)]], [0.9, 0.2], names=("a", "b"), sources=[1, 0])
    two = Fixed([[(3, -1, 1), (4, -1, 0)]], [0.1, 0.6], names=("c",), elders=[-1, 0])
    names = DraftNames.of([one, two])
    assert names.names == ("a", "b", "c")
    assert names.priors_X.tolist() == [0.9, 0.2, 0.1, 0.6]
    assert names.sources_X.tolist() == [1, 0, 2, 2]
    assert names.elders_X.tolist() == [-1, -1, -1, 2]
    verified, _ = chosen(Drafting([one, two], 63, CPU), view())
    assert verified.candidates.kinds_MC.tolist() == [[0, 1, 3, 2]]
    assert verified.trees.survivals_MO[0, :4].tolist() == pytest.approx([0.9, 0.6, 0.2, 0.1])


def test_chances_that_were_learned_decide_from_then_on() -> None:
    one, two = Fixed([chain(1)], [0.9]), Fixed([chain(2)], [0.2], names=("two",))
    drafting = Drafting([one, two], 63, CPU)
    for learned, kept in (((0.9, 0.2), 1), ((0.1, 0.8), 2)):
        drafting.set_chances(np.array(learned))
        assert trees_of(chosen(drafting, view(), 2)[0], [ROOT])[0].tokens.tolist() == [ROOT, kept]


def test_who_may_not_use_a_drafter_has_none_of_its_drafts_nor_what_lies_below_them() -> None:
    one = Fixed([[(1, -1, 0), (2, 0, 1), (3, -1, 1)]] * 3, [0.9, 0.8], names=("a", "b"), sources=[0, 1])
    two = Fixed([chain(1, 4)] * 3, [0.7], names=("c",))
    allowed_S = torch.tensor([0b111, 0b010, 0b110, 0])
    verified, _ = chosen(Drafting([one, two], 63, CPU), view(3), allowed_S=allowed_S)
    trees = [tree.tokens[1:].tolist() for tree in trees_of(verified, [ROOT] * 3)]
    assert trees == [[1, 2, 3, 4], [3], [3, 1, 4]], "what another offers as well stays"


def test_what_was_sampled_stands_alone_with_its_laws() -> None:
    fixed = Fixed([chain(1, 2)], [0.9])
    sampled = Fixed([chain(3, 4)], [0.5], names=("sampled",), law=0.25)
    verified, laws = chosen(Drafting([fixed, sampled], 63, CPU), view())
    assert laws is not None
    assert trees_of(verified, [ROOT])[0].tokens.tolist() == [ROOT, 3, 4]
    assert verified.candidates.kinds_MC.tolist() == [[1, 1]], "its kinds are numbered as beside others"
    assert chosen(Drafting([fixed], 63, CPU), view())[1] is None


def test_no_sampled_draft_counts_for_more_than_the_sibling_drawn_before_it() -> None:
    """Else a tree might have it alone, and it was not drawn from the law alone."""
    offers = [[(1, -1, 0), (2, -1, 1), (3, -1, 2)]]
    sampled = Fixed(offers, [0.6, 0.3, 0.1], elders=[-1, 0, 1], law=0.25)
    drafting = Drafting([Fixed([chain(7)], [0.5], names=("other",)), sampled], 63, CPU)
    for learned in ([0.5, 0.1, 0.8, 0.9], [0.5, 0.4, 0.4000001, 0.4], [0.5, 0.2, 0.1, 0.9]):
        told = np.array(learned)
        drafting.set_chances(told)
        assert told.tolist() == learned, "which are still the planner's"
        for nodes in (2, 3, 4):
            tree = trees_of(chosen(drafting, view(), nodes)[0], [ROOT])[0]
            assert tree.tokens.tolist() == [ROOT, 1, 2, 3][:nodes]


def test_nobody_s_drafts_leave_the_root() -> None:
    silent = Fixed([[(-1, -1, 0)]], [0.9])
    verified, _ = chosen(Drafting([silent, silent], 63, CPU), view())
    assert verified.trees.counts_M.tolist() == [0]
    assert verified.trees.offers_M.tolist() == [-1]
    assert not verified.trees.survivals_MO.any()


CHANCES = (0.5, 0.25, 0.75)  # products are exact in float32, so that ties are ties


@st.composite
def offers(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    size = draw(st.integers(1, 6))
    return [
        (draw(st.integers(-1, 2)), draw(st.integers(-1, place - 1)), draw(st.integers(0, len(CHANCES) - 1)))
        for place in range(size)
    ]


@given(st.lists(offers(), min_size=1, max_size=3), st.integers(1, 12), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_the_merge_is_that_made_by_hand(all_offers: list[list[tuple[int, int, int]]], nodes: int, max_depth: int) -> None:
    drafters = [Fixed([found], CHANCES, names=(str(number),), repeats=True) for number, found in enumerate(all_offers)]
    survivals: dict[tuple[int, ...], float] = {}
    for found in all_offers:
        known: list[tuple[tuple[int, ...], float]] = []
        for token, parent, kind in found:
            above, chance = known[parent] if parent >= 0 else ((), 1.0)
            known.append(((*above, token), chance * CHANCES[kind] * (token >= 0)))
            if known[-1][1] > 0 and len(known[-1][0]) <= max_depth:
                survivals[known[-1][0]] = max(survivals.get(known[-1][0], 0.0), known[-1][1])
    ranked = sorted(survivals, key=lambda path: -survivals[path])  # equal ones in the order they came
    merged = paths(drafters, nodes, max_depth)
    assert len(set(merged)) == len(merged)
    assert set(merged) == set(ranked[: nodes - 1])
