"""The choice of nodes, held to a choice by hand and to the best of all subtrees; and kernel and reference to each other."""

import itertools
from dataclasses import dataclass, fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specdec.draft.tree import DraftTree
from specdec.kernels.tree_select import OFFERED, Candidates, Trees, select_trees
from specdec.kernels.tree_select.host import select_trees_host
from specdec.kernels.tree_select.reference import select_trees_reference
from tests.kernels.conftest import moved, same

kernel = pytest.importorskip("specdec.kernels.tree_select.kernel")

# their products are exact in float32, so that a choice by hand has the same ties
CHANCES = (0.5, 0.25, 0.75, 0.125)


@dataclass(frozen=True)
class Offer:
    """The candidates of one tree, and how many nodes it may have."""

    tokens: list[int]
    parents: list[int]
    kinds: list[int]
    nodes: int

    def path(self, candidate: int) -> list[int]:
        """The candidates from the root's child to this one."""
        found = [candidate]
        while self.parents[found[-1]] >= 0:
            found.append(self.parents[found[-1]])
        return found[::-1]

    def survival(self, candidate: int) -> float:
        chance = 1.0
        for above in self.path(candidate):
            chance *= CHANCES[self.kinds[above]] if self.tokens[above] >= 0 else 0.0
        return chance

    def words(self, candidate: int) -> tuple[int, ...]:
        return tuple(self.tokens[above] for above in self.path(candidate))


def select(offers: list[Offer], *, least: float = 0.0, max_depth: int = 9, shared: bool, num_nodes: int = 8) -> Trees:
    candidates = Candidates(
        *(torch.tensor([getattr(offer, name) for offer in offers]) for name in ("tokens", "parents", "kinds"))
    )
    nodes_M = torch.tensor([offer.nodes for offer in offers])
    return select_trees(
        candidates,
        torch.tensor(CHANCES),
        torch.ones(len(offers)),
        nodes_M,
        torch.tensor([least]),
        num_nodes=num_nodes,
        max_depth=max_depth,
        shared=shared,
    )


@st.composite
def offers(draw: st.DrawFn) -> Offer:
    size = draw(st.integers(1, 8))

    def several(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=size, max_size=size))

    parents = [draw(st.integers(-1, place - 1)) for place in range(size)]
    return Offer(several(-1, 2), parents, several(0, len(CHANCES) - 1), draw(st.integers(0, 8)))


def by_hand(offer: Offer, least: float, max_depth: int, shared: bool) -> tuple[list[int], dict[int, float]]:
    """The candidates that are kept, and the survival of all that are not dropped, equal paths counted once."""
    allowed = [
        candidate
        for candidate in range(len(offer.tokens))
        if offer.survival(candidate) >= max(least, 1e-30) and len(offer.path(candidate)) <= max_depth
    ]
    survivals: dict[int, float] = {}
    owners: dict[tuple[int, ...], int] = {}
    for candidate in allowed:
        owner = owners.setdefault(offer.words(candidate), candidate) if shared else candidate
        survivals[owner] = max(survivals.get(owner, 0.0), offer.survival(candidate))
    best = sorted(survivals, key=lambda candidate: (-survivals[candidate], candidate))
    return sorted(best[: max(offer.nodes - 1, 0)]), survivals


@given(offers(), st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([1, 2, 9]), st.booleans())
@settings(max_examples=300, deadline=None)
def test_the_choice_is_that_made_by_hand(offer: Offer, least: float, max_depth: int, shared: bool) -> None:
    trees = select([offer], least=least, max_depth=max_depth, shared=shared)
    kept, survivals = by_hand(offer, least, max_depth, shared)
    filling = [-1] * (7 - len(kept))
    assert trees.counts_M.tolist() == [len(kept)]
    assert trees.picks_MN[0].tolist() == [-1, *kept, *filling]
    assert trees.tokens_MN[0].tolist() == [-1, *(offer.tokens[candidate] for candidate in kept), *filling]
    told = sorted(survivals.values(), reverse=True)
    assert trees.survivals_MO[0].tolist() == told + [0.0] * (OFFERED - len(told))
    # along the parents of a node stand the tokens of its candidate's path
    nodes = DraftTree(trees.tokens_MN[0].numpy(), trees.parents_MN[0].numpy())
    for node, candidate in enumerate(kept, 1):
        assert nodes.parents[node] < node
        assert nodes.tokens[nodes.path(node)[1:]].tolist() == list(offer.words(candidate))
    assert not trees.parents_MN[0, len(kept) + 1 :].any()


@given(offers())
@settings(max_examples=100, deadline=None)
def test_no_other_subtree_of_as_many_nodes_is_likelier(offer: Offer) -> None:
    trees = select([offer], shared=True)
    values: dict[tuple[int, ...], float] = {}
    for candidate in range(len(offer.tokens)):
        path = offer.words(candidate)
        values[path] = max(values.get(path, 0.0), offer.survival(candidate))
    best = 0.0
    for subset in itertools.combinations(values, min(max(offer.nodes - 1, 0), len(values))):
        if all(len(path) == 1 or path[:-1] in subset for path in subset):
            best = max(best, sum(values[path] for path in subset))
    assert sum(trees.survivals_MO[0, : int(trees.counts_M)].tolist()) == best


@given(offers())
def test_the_offer_is_the_likeliest_candidate_below_the_root_whatever_is_kept(offer: Offer) -> None:
    below = [place for place, parent in enumerate(offer.parents) if parent < 0 and offer.tokens[place] >= 0]
    likeliest = max(below, key=lambda place: (CHANCES[offer.kinds[place]], -place), default=-1)
    for least in (0.0, 2.0):
        assert select([offer], least=least, shared=True).offers_M.tolist() == [likeliest]


def test_two_drafters_that_agree_share_their_path() -> None:
    # 5 6 7 from the first; 5 6 8 and 9 from the second, surer of 6
    offer = Offer([5, 6, 7, 5, 6, 8, 9], [-1, 0, 1, -1, 3, 4, -1], [0, 1, 1, 0, 2, 2, 3], 6)
    trees = select([offer], shared=True)
    assert trees.tokens_MN[0].tolist() == [-1, 5, 6, 7, 8, 9, -1, -1]
    assert trees.parents_MN[0].tolist() == [0, 0, 1, 2, 2, 0, 0, 0]
    assert trees.survivals_MO[0, :5].tolist() == [0.5, 0.375, 0.28125, 0.125, 0.03125]


def test_odds_lift_and_lower_every_chance() -> None:
    candidates = Candidates(
        torch.tensor([[1, 2]]).expand(3, -1), torch.tensor([[-1, 0]]).expand(3, -1), torch.tensor([[0, 1]]).expand(3, -1)
    )
    chances, odds = torch.tensor([0.3, 0.9]), torch.tensor([0.25, 1.0, 4.0])
    trees = select_trees(candidates, chances, odds, torch.full((3,), 3), torch.zeros(1), num_nodes=3, max_depth=9, shared=False)
    lifted = odds[:, None] * chances / (odds[:, None] * chances + 1 - chances)
    torch.testing.assert_close(trees.survivals_MO[:, :2], lifted.cumprod(1))


def certain_chains(num_trees: int = 400, length: int = 24) -> tuple[Candidates, Tensor, Tensor]:
    """Chains of candidates that are all but certain, so that only roundings tell their survivals apart."""
    generator = torch.Generator().manual_seed(0)
    chances = torch.cat((0.9 + 0.1 * torch.rand(32, generator=generator), torch.full((16,), 1.0 - 2.0**-24), torch.ones(16)))
    kinds = torch.randint(0, len(chances), (num_trees, length), generator=generator)
    places = torch.arange(length).expand(num_trees, -1)
    nodes = torch.randint(2, 12, (num_trees,), generator=generator)
    return Candidates(places, places - 1, kinds), chances, nodes


def test_what_is_kept_is_closed_under_parents_however_survivals_are_rounded() -> None:
    candidates, chances, nodes = certain_chains()
    trees = select_trees(
        candidates, chances, torch.ones(len(nodes)), nodes, torch.zeros(1), num_nodes=12, max_depth=64, shared=False
    )
    assert torch.equal(trees.counts_M, nodes - 1)
    places = torch.arange(12)
    assert torch.equal(trees.picks_MN, torch.where(places <= trees.counts_M[:, None], places - 1, -1))


def test_many_candidates_are_kept_up_to_the_largest_tree() -> None:
    places = torch.arange(200)[None]
    candidates = Candidates(places, places - 1, torch.zeros_like(places))
    trees = select_trees(
        candidates,
        torch.tensor([0.99]),
        torch.ones(1),
        torch.tensor([64]),
        torch.zeros(1),
        num_nodes=64,
        max_depth=50,
        shared=True,
    )
    assert trees.counts_M.tolist() == [50]
    assert trees.picks_MN[0].tolist() == [-1, *range(50), *[-1] * 13]


def case(members: int, size: int, num_nodes: int, seed: int) -> tuple[Candidates, Tensor, Tensor, Tensor, Tensor]:
    """The arguments of `select_trees`, of candidates that often have the same path or none."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    places = torch.arange(size)
    parents = torch.minimum(integers(-1, size, members, size), places - 1)
    parents = torch.where(torch.rand(members, size, generator=generator) < 0.5, places - 1, parents)
    # a drafter whose topology never changes tells it once for all
    candidates = Candidates(integers(-1, 4, members, size), parents[:1].expand(members, -1), integers(0, 16, members, size))
    chances, odds = torch.rand(16, generator=generator), 2.0 * torch.rand(members, generator=generator) + 0.1
    if seed % 2:  # many candidates survive alike
        chances, odds = (4.0 * chances).ceil() / 4.0, torch.ones(members)
    return candidates, chances, odds, integers(0, num_nodes + 1, members), torch.tensor([0.002 * (seed % 3)])


CASES = [(1, 1, 1), (3, 5, 4), (4, 16, 8), (5, 33, 16), (2, 59, 64), (2, 130, 32)]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("members", "size", "num_nodes"), CASES)
def test_the_kernel_chooses_as_the_reference_does(
    members: int, size: int, num_nodes: int, shared: bool, kernel_device: torch.device
) -> None:
    for seed in range(3):
        arguments = case(members, size, num_nodes, seed)
        shape = num_nodes, 3 + 9 * seed, shared
        found = kernel.select_trees_triton(*moved_as_views(arguments, kernel_device), *shape)
        for field, mine, theirs in zip(fields(Trees), found, select_trees_reference(*arguments, *shape), strict=True):
            assert same(mine, theirs), field.name


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("members", "size", "num_nodes"), CASES)
def test_the_reference_chooses_as_the_cpu_does(members: int, size: int, num_nodes: int, shared: bool) -> None:
    """Where products are exact in any precision."""
    for seed in range(6):
        candidates, _, odds, nodes, least = case(members, size, num_nodes, seed)
        arguments = (candidates, torch.tensor(CHANCES * 4), torch.ones_like(odds), nodes, least)
        found, expected = (choose(*arguments, num_nodes, 9, shared) for choose in (select_trees_host, select_trees_reference))
        for field, mine, theirs in zip(fields(Trees), found, expected, strict=True):
            assert same(mine, theirs), field.name


@pytest.mark.parametrize("shared", [False, True])
def test_a_tree_is_the_same_alone(shared: bool, kernel_device: torch.device) -> None:
    candidates, chances, odds, nodes, least = case(5, 20, 12, 1)
    together = kernel.select_trees_triton(*moved((candidates, chances, odds, nodes, least), kernel_device), 12, 9, shared)
    for tree in (0, 4):
        own = slice(tree, tree + 1)
        mine = Candidates(*(getattr(candidates, field.name)[own] for field in fields(Candidates)))
        alone = kernel.select_trees_triton(*moved((mine, chances, odds[own], nodes[own], least), kernel_device), 12, 9, shared)
        assert all(torch.equal(a, b[own]) for a, b in zip(alone, together, strict=True))


def test_the_kernel_keeps_what_is_closed_under_parents(kernel_device: torch.device) -> None:
    candidates, chances, nodes = certain_chains(num_trees=60)
    arguments = moved((candidates, chances, torch.ones(len(nodes)), nodes, torch.zeros(1)), kernel_device)
    picks = kernel.select_trees_triton(*arguments, 12, 64, False)[2].cpu()
    assert torch.equal(picks, torch.where(torch.arange(12) < nodes[:, None], torch.arange(12) - 1, -1))


def moved_as_views(arguments: tuple[Candidates, Tensor, Tensor, Tensor, Tensor], device: torch.device) -> tuple[object, ...]:
    """As `moved`, but what is shared by all trees stays one row."""
    candidates, *others = arguments
    parents = candidates.parents_MC[:1].to(device).expand(len(candidates.parents_MC), -1)
    on_device = moved(candidates, device)
    return Candidates(on_device.tokens_MC, parents, on_device.kinds_MC), *(value.to(device) for value in others)
