"""The end of a round, held to books kept by hand: texts, lengths, counts, and what the host is told; and the kernels to the
reference."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from specdec.draft.tree import DraftTree
from specdec.kernels.commit import KIND_BITS, SURE, Told, Verified, commit, tell, told_width
from specdec.kernels.commit.reference import commit_reference, tell_reference
from specdec.kernels.tree_rows import TreeRows
from specdec.kernels.tree_select import OFFERED, Candidates, Trees, select_trees
from specdec.kernels.tree_walk import Accepted
from specdec.kernels.tree_walk.reference import walk_trees_reference
from tests.kernels.conftest import Forest, forest, moved, same

kernel = pytest.importorskip("specdec.kernels.commit.kernel")

LENGTHS = (5, 1, 9, 12, 7)
NO_TREE = 3  # the member without one
VOCAB, TURNS = 60, 3


@dataclass
class Round:
    """A round that was decided."""

    forest: Forest
    rows: TreeRows
    accepted: Accepted
    verified: Verified | None
    ring: Tensor
    turns: Tensor
    counts: Tensor

    @property
    def told(self) -> Tensor:
        """What the host is told, int64 [members, columns]."""
        width = told_width(self.forest.num_nodes, self.verified is not None)
        row = self.ring[int(self.turns) % TURNS].cpu()
        assert (row[len(LENGTHS) * width :] == -7).all(), "the rest of the row is as it was"
        return row[: len(LENGTHS) * width].view(-1, width)

    def commit(self, device: torch.device | None = None) -> "Round":
        """The same round, committed: by the reference, or by the kernel on a device."""
        if device is None:
            f = self.forest
            commit(f.texts, f.layout, self.accepted, self.verified, self.ring, self.turns, self.counts)
            return self
        arguments = self.forest.texts, self.forest.layout, self.accepted, self.verified, self.ring, self.turns, self.counts
        texts, layout, accepted, verified, ring, turns, counts = moved(arguments, device)
        kernel.commit_triton(texts, layout, accepted, verified, ring, turns, counts)
        f = Forest(self.forest.trees, texts, layout, self.forest.drafts, self.forest.num_nodes, self.forest.page_size)
        return Round(f, self.rows, accepted, verified, ring, turns, counts)


def decided(seed: int, drafted: bool = True, num_nodes: int = 8) -> Round:
    """Trees chosen from random candidates, a target that often agrees, and rows that gave no token."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    members, size = len(LENGTHS), 12
    parents = torch.minimum(integers(-1, size, size), torch.arange(size) - 1)
    candidates = Candidates(
        integers(-1, VOCAB, members, size), parents.expand(members, -1), integers(0, 4, size).expand(members, -1)
    )
    budgets = integers(1, num_nodes + 1, members) * drafted
    budgets[0] = 1  # nothing may be drafted
    budgets[NO_TREE] = 0
    chances = torch.rand(4, generator=generator)
    shape = {"num_nodes": num_nodes, "max_depth": 9}
    trees = select_trees(candidates, chances, torch.ones(members), budgets, torch.zeros(1), shared=True, **shape)
    f = forest([None if m == NO_TREE else tree_of(trees, m) for m in range(members)], LENGTHS, num_nodes=num_nodes)
    rows = f.rows()
    chosen = integers(0, VOCAB, len(rows.tokens_T))
    follows = (torch.rand(len(chosen), generator=generator) < 0.8) & (rows.depths_T > 0)
    chosen[rows.parents_T[follows]] = rows.tokens_T[follows]
    tops = torch.where(torch.rand(len(chosen), generator=generator) < 0.1, torch.nan, 0.0)
    accepted = Accepted(*(*walk_trees_reference(rows, f.layout.nodes_M, f.layout.firsts_M, chosen, tops, None), chosen))
    ring = torch.full((TURNS, members * told_width(num_nodes, True) + 9), -7)
    counts = integers(0, 3, members + 1, VOCAB).int()
    return Round(f, rows, accepted, Verified(candidates, trees) if drafted else None, ring, torch.tensor([seed]), counts)


def tree_of(trees: Trees, member: int) -> DraftTree:
    nodes = slice(0, int(trees.counts_M[member]) + 1)
    tokens = trees.tokens_MN[member, nodes].clone()
    tokens[0] = member
    return DraftTree(tokens.numpy(), trees.parents_MN[member, nodes].numpy())


@pytest.mark.parametrize("drafted", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_texts_grow_by_what_was_emitted_and_unsound_ones_stay(seed: int, drafted: bool) -> None:
    before, after = decided(seed, drafted), decided(seed, drafted).commit()
    unsound = 0
    for member, length in enumerate(LENGTHS):
        text = int(before.forest.layout.texts_M[member])
        emitted = before.accepted.emitted_MD[member, : int(before.accepted.num_M[member]) + 1].tolist()
        if member == NO_TREE or not before.accepted.sound_M[member]:
            unsound += member != NO_TREE
            emitted = []
        assert int(after.forest.texts.lengths_S[text]) == length + len(emitted)
        tokens = before.forest.texts.tokens_SL[text, :length].tolist() + emitted
        assert after.forest.texts.tokens_SL[text, : len(tokens)].tolist() == tokens
        counted = torch.bincount(torch.tensor(emitted, dtype=torch.int64), minlength=VOCAB)
        assert torch.equal(after.counts[text], before.counts[text] + counted)
    assert torch.equal(after.forest.texts.tokens_SL[0], before.forest.texts.tokens_SL[0]), "nobody owns text 0"
    assert unsound < len(LENGTHS) - 1, "some are sound"


@pytest.mark.parametrize("seed", range(6))
def test_the_host_is_told_what_became_of_every_draft(seed: int) -> None:
    r = decided(seed).commit()
    assert r.verified is not None
    candidates, trees, size = r.verified.candidates, r.verified.trees, r.forest.num_nodes
    parts = torch.split(r.told, [len(Told), size, size, size, OFFERED], 1)
    for member, (columns, emitted, paths, nodes, survivals) in enumerate(zip(*parts, strict=True)):
        if member == NO_TREE:
            assert columns.tolist() == [0, 1, 0, -1, 0]
            continue
        num, first = int(r.accepted.num_M[member]), int(r.forest.layout.firsts_M[member])
        offer = int(trees.offers_M[member])
        right = offer >= 0 and int(candidates.tokens_MC[member, offer]) == int(r.accepted.emitted_MD[member, 0])
        kind = int(candidates.kinds_MC[member, offer]) if offer >= 0 else -1
        assert columns.tolist() == [num, int(r.accepted.sound_M[member]), int(trees.counts_M[member]), kind, int(right)]
        assert torch.equal(emitted, r.accepted.emitted_MD[member])
        assert paths.tolist() == [row - first for row in r.accepted.rows_MD[member].tolist()]
        for node, pick in enumerate(trees.picks_MN[member].tolist()):
            expected = int(candidates.kinds_MC[member, pick]) | int(trees.parents_MN[member, node]) << KIND_BITS
            assert int(nodes[node]) == (expected if pick >= 0 else -1)
        assert torch.equal(survivals, (trees.survivals_MO[member] * SURE).long())


def test_without_a_drafter_only_the_outcome_is_told() -> None:
    r = decided(2, drafted=False).commit()
    columns, emitted = torch.split(r.told, [len(Told), r.forest.num_nodes], 1)
    assert columns[:, Told.ACCEPTED].tolist() == [0] * len(LENGTHS)
    assert columns[:, Told.SOUND].tolist() == [int(m == NO_TREE or r.accepted.sound_M[m]) for m in range(len(LENGTHS))]
    assert columns[:, Told.DRAFTED :].tolist() == [[0, -1, 0]] * len(LENGTHS)
    assert torch.equal(emitted, r.accepted.emitted_MD)


def test_rounds_tell_in_turn() -> None:
    r = decided(0).commit()
    first = r.told.clone()
    r.turns += 1
    r.commit()
    assert (r.ring[2] == -7).all(), "its turn is still to come"
    r.turns -= 1
    assert torch.equal(r.told, first)


@pytest.mark.parametrize("drafted", [True, False])
def test_a_ring_that_is_too_small_is_refused(drafted: bool) -> None:
    r = decided(1, drafted)
    r.ring = torch.zeros(TURNS, len(LENGTHS) * told_width(r.forest.num_nodes, drafted), dtype=torch.int64)
    r.commit()
    r.ring = r.ring[:, 1:].contiguous()
    with pytest.raises(AssertionError, match="room for a round"):
        r.commit()


@pytest.mark.parametrize("drafted", [True, False])
def test_the_kernel_needs_no_more_room_than_it_tells(drafted: bool, kernel_device: torch.device) -> None:
    r = decided(1, drafted)
    r.ring = r.ring[:, : len(LENGTHS) * told_width(r.forest.num_nodes, drafted)].contiguous()
    assert (r.commit(kernel_device).told != -7).all()


@pytest.mark.parametrize("num_nodes", [8, 13, 64])
@pytest.mark.parametrize("drafted", [True, False])
def test_the_kernel_commits_as_the_reference_does(drafted: bool, num_nodes: int, kernel_device: torch.device) -> None:
    for seed in range(4):
        found, expected = decided(seed, drafted, num_nodes).commit(kernel_device), decided(seed, drafted, num_nodes)
        f = expected.forest
        commit_reference(
            f.texts, f.layout, expected.accepted, expected.verified, expected.ring, expected.turns, expected.counts
        )
        assert same(found.forest.texts.tokens_SL, f.texts.tokens_SL)
        assert same(found.forest.texts.lengths_S, f.texts.lengths_S)
        assert same(found.counts, expected.counts)
        mine, theirs = found.told, expected.told
        for told in (mine, theirs) if drafted else ():  # the path of nobody's tree is void
            told[NO_TREE, len(Told) + num_nodes : len(Told) + 2 * num_nodes] = 0
        assert torch.equal(mine, theirs)
        others = [turn for turn in range(TURNS) if turn != seed % TURNS]
        assert (found.ring[others] == -7).all()


@pytest.mark.parametrize("counted", [True, False])
def test_members_that_share_a_text_nobody_owns_leave_it_alone(counted: bool, kernel_device: torch.device) -> None:
    r = decided(3)
    for name in ("nodes_M", "texts_M"):
        getattr(r.forest.layout, name)[1:] = 0
    texts, layout, accepted, ring, turns, counts = moved(
        (r.forest.texts, r.forest.layout, r.accepted, r.ring, r.turns, r.counts), kernel_device
    )
    kernel.commit_triton(texts, layout, accepted, None, ring, turns, counts if counted else None)
    assert same(texts.tokens_SL[:5], r.forest.texts.tokens_SL[:5])
    assert same(counts[:5], r.counts[:5])


@pytest.mark.parametrize("values", [torch.randn(37, 9), torch.arange(1030), torch.zeros(1, 1)])
def test_more_can_be_told_in_a_ring_beside(values: Tensor, kernel_device: torch.device) -> None:
    rings = [torch.full((3, 1100), -7, dtype=values.dtype, device=device) for device in ("cpu", kernel_device)]
    for turn in (2, 4):
        turns = torch.tensor([turn])
        tell_reference(values, rings[0], turns)
        kernel.tell_triton(values.to(kernel_device), rings[1], turns.to(kernel_device))
    assert same(rings[1], rings[0])
    assert torch.equal(rings[0][1, : values.numel()], values.flatten())
    assert (rings[0][0] == -7).all()
    with pytest.raises(AssertionError, match="room for a round"):
        tell(torch.zeros(1101, dtype=values.dtype), rings[0], torch.zeros(1, dtype=torch.int64))
