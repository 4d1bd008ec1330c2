"""The walk of states: every row, however it is computed, has the bits of its tokens taken one by one."""

import dataclasses
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.kernels.gated_delta import GatedDelta, gated_delta
from specdec.kernels.gated_delta.reference import gated_delta_reference
from specdec.kernels.state_scan import StateStore, StateTables, scan_states
from specdec.kernels.state_scan.reference import scan_states_reference
from tests.kernels.recurrence import STEP, TAPS, VALUE, VALUE_HEADS, WEIGHTS, WIDTH

LONGEST_PATH, STATES, MARKS = 6, 3, 2
Tree = list[tuple[Tensor, int]]  # rows and parents


def new_store() -> StateStore:
    """All but the states is full of what no row may read."""
    return StateStore(
        torch.zeros(STATES + 1, *WEIGHTS.state_shape),
        torch.full((STATES + 1, LONGEST_PATH + TAPS, WIDTH), torch.nan),
        torch.full((MARKS + 1, *WEIGHTS.state_shape), torch.nan),
        torch.full((MARKS + 1, TAPS - 1, WIDTH), torch.nan),
    )


def draw_rows(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def one_by_one(rows_RW: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and states of tokens taken one by one, by the step alone: no walk, no ring."""
    state, outputs, states = torch.zeros(1, *WEIGHTS.state_shape), [], []
    padded_RW = torch.cat((torch.zeros(TAPS - 1, WIDTH), rows_RW))
    for row in range(len(rows_RW)):
        state, output = STEP.advance(state, *STEP.read(padded_RW[None, row : row + TAPS]))
        outputs.append(output)
        states.append(state)
    return torch.cat(outputs), torch.cat(states)


@dataclass
class Member:
    """A sequence's part in a call: prompt rows from `first` on, then a tree, whose last node some rows repeat."""

    state: int
    folded: int
    first: int
    chunk: Tensor
    tree: Tree
    marks: tuple[tuple[int, int], ...] = ()
    repeats: int = 0

    @property
    def base(self) -> int:
        return self.first + len(self.chunk)

    def tree_rows(self) -> list[tuple[Tensor, int, int]]:
        """Rows, parents and depths."""
        depths: list[int] = []
        for node, (_, parent) in enumerate(self.tree):
            depths.append(depths[parent] + 1 if node else 0)
        nodes = [(row, parent, depth) for (row, parent), depth in zip(self.tree, depths, strict=True)]
        return [*nodes, *nodes[-1:] * self.repeats]


def call(store: StateStore, members: list[Member], padding: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Lay rows out as a round does; the outputs of each member's prompt rows and of its tree rows."""
    chunk = [(row, m, member.first + i) for m, member in enumerate(members) for i, row in enumerate(member.chunk)]
    chunk += chunk[-1:] * padding
    trees: list[tuple[Tensor, int, int]] = []
    parents: list[int] = []
    for m, member in enumerate(members):
        first = len(trees)
        parents += [first + parent for _, parent, _ in member.tree_rows()]
        trees += [(row, m, member.base + depth) for row, _, depth in member.tree_rows()]
    marks, kept = torch.full((len(members), 2), -1), torch.zeros(len(members), 2, dtype=torch.int64)
    for m, member in enumerate(members):
        for x, (position, mark) in enumerate(member.marks):
            marks[m, x], kept[m, x] = position, mark
    rows, sequences, positions = zip(*chunk, *trees, strict=True)
    tables = StateTables(
        states_M=torch.tensor([member.state for member in members]),
        folded_M=torch.tensor([member.folded for member in members]),
        starts_M=torch.tensor([member.first for member in members]),
        bases_M=torch.tensor([member.base for member in members]),
        sequences_R=torch.tensor(sequences),
        positions_R=torch.tensor(positions),
        parents_T=torch.tensor(parents, dtype=torch.int64),
        num_chunk=len(chunk),
        num_nodes=max(len(member.tree_rows()) for member in members),
        waiting=LONGEST_PATH,
        taps=TAPS,
        marks_MX=marks,
        kept_MX=kept,
    )
    out = gated_delta(torch.stack(rows), WEIGHTS, store, tables)
    for row in range(len(chunk) - padding, len(chunk)):
        assert torch.equal(out[row], out[row - 1]), "a row that repeats another has its output"
    counts = [len(member.tree_rows()) for member in members]
    in_chunks = torch.split(out[: len(chunk) - padding], [len(member.chunk) for member in members])
    return list(zip(in_chunks, torch.split(out[len(chunk) :], counts), strict=True))


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("cuts", [(20,), (1, 19), (7, 2, 11), (3, 3, 3, 11)])
def test_a_prompt_may_be_cut_anywhere(cuts: tuple[int, ...], padding: int) -> None:
    rows_RW = draw_rows(20)
    wanted, states = one_by_one(rows_RW)
    store, first, found = new_store(), 0, []
    for count in cuts:
        found.append(call(store, [Member(1, first, first, rows_RW[first : first + count], [])], padding)[0][0])
        first += count
        assert torch.equal(store.states[1], states[first - 1])
    assert torch.equal(torch.cat(found), wanted)


def random_tree(draw: random.Random, right: Tensor, seed: int) -> Tree:
    """A root and up to 17 more nodes; some of the rows behind the root lie on any branch."""
    wrong, tree, follow = draw_rows(18, seed + 50), [(right[0], 0)], 0
    for row in right[1 : 1 + draw.randrange(LONGEST_PATH)]:
        tree += [(wrong[len(tree)], draw.randrange(len(tree))) for _ in range(draw.randrange(3))]
        tree.append((row, follow))
        follow = len(tree) - 1
    return [*tree, *[(wrong[17], draw.randrange(len(tree)))] * draw.randrange(2)]


def path_to(tree: Tree, node: int) -> list[int]:
    path = [node]
    while path[0]:
        path.insert(0, tree[path[0]][1])
    return path


def right_path(tree: Tree, right: Tensor) -> list[int]:
    path = [0]
    while below := [n for n, (row, parent) in enumerate(tree) if n and parent == path[-1] and row.equal(right[len(path)])]:
        path.append(below[0])
    return path


@pytest.mark.parametrize("seed", range(6))
def test_trees_of_any_shape_have_the_bits_of_their_paths(seed: int) -> None:
    """A sequence's life: a prompt in chunks, trees, void rounds, neighbours that read a prompt or are padding."""
    draw = random.Random(seed)
    rows_RW = draw_rows(50, seed)
    _, states = one_by_one(rows_RW)
    store, folded, first, prompt = new_store(), 0, 0, draw.randrange(12)
    while first < prompt:
        count = min(draw.randrange(1, 5), prompt - first)
        call(store, [Member(0, folded, first, rows_RW[first : first + count], [])], draw.randrange(3))
        folded = first = first + count
    while first < 30:
        tree = random_tree(draw, rows_RW[first:], seed)
        member = Member(0, folded, first, rows_RW[:0], tree, repeats=draw.randrange(3))
        reader = Member(1, 0, 0, draw_rows(3, seed), random_tree(draw, rows_RW[5:], seed + 1))
        store.states[1] = 0
        place = draw.randrange(2)
        members = [reader, Member(STATES, 0, 0, rows_RW[:0], [])]
        members.insert(place, member)
        _, out = call(store, members, draw.randrange(2))[place]
        for node in range(len(out)):
            way = torch.stack([tree[i][0] for i in path_to(tree, min(node, len(tree) - 1))])
            alone, _ = one_by_one(torch.cat((rows_RW[:first], way)))
            assert torch.equal(out[node], alone[-1]), f"node {node} of {[parent for _, parent in tree]}"
        folded = first
        assert torch.equal(store.states[0], states[first - 1] if first else torch.zeros_like(states[0]))
        if draw.random() < 0.8:  # else the round was void: its rows are forgotten by doing nothing
            path = right_path(tree, rows_RW[first:])
            for depth, node in enumerate(path):
                store.recent_SBW[0, (first + depth) % store.recent_SBW.shape[1]] = tree[node][0]
            first += len(path)


def test_a_state_kept_aside_leads_to_the_same_bits() -> None:
    rows_RW = draw_rows(30)
    wanted, states = one_by_one(rows_RW)
    store = new_store()
    call(store, [Member(0, 0, 0, rows_RW[:5], [], marks=((2, 0),))])
    before = torch.cat((torch.zeros(1, WIDTH), rows_RW[:2]))
    assert torch.equal(store.kept_rows_KJW[0], before), "zeros stand before the text"
    call(store, [Member(0, 5, 5, rows_RW[5:20], [], marks=((9, 0), (20, 1)))], padding=3)
    for mark, position in ((0, 9), (1, 20)):
        assert torch.equal(store.kept[mark], states[position - 1])
        other = new_store()
        other.states[2] = store.kept[mark]
        for back in range(1, TAPS):
            other.recent_SBW[2, (position - back) % other.recent_SBW.shape[1]] = store.kept_rows_KJW[mark, TAPS - 1 - back]
        ((out, _),) = call(other, [Member(2, position, position, rows_RW[position:], [])])
        assert torch.equal(out, wanted[position:])


def test_no_value_is_read_back() -> None:
    """Tensors that have no values will do."""

    def indices(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int64, device="meta")

    def on_meta(values: Any) -> dict[str, Any]:
        fields = {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}
        return {name: value.to("meta") if isinstance(value, Tensor) else value for name, value in fields.items()}

    tables = StateTables(
        states_M=indices(2),
        folded_M=indices(2),
        starts_M=indices(2),
        bases_M=indices(2),
        sequences_R=indices(9),
        positions_R=indices(9),
        parents_T=indices(5),
        num_chunk=4,
        num_nodes=3,
        waiting=LONGEST_PATH,
        taps=TAPS,
        marks_MX=indices(2, 2),
        kept_MX=indices(2, 2),
    )
    weights, store = GatedDelta(**on_meta(WEIGHTS)), StateStore(**on_meta(new_store()))
    out = gated_delta_reference(torch.empty(9, WIDTH, device="meta"), weights, store, tables)
    assert out.shape == (9, VALUE_HEADS * VALUE)


class DecayingSum:
    """A step without a window."""

    def read(self, windows_NJW: Tensor) -> tuple[Tensor, ...]:
        return (windows_NJW[:, -1],)

    def advance(self, states: Tensor, *read: Tensor) -> tuple[Tensor, Tensor]:
        states = states * 0.5 + read[0]
        return states, states


@pytest.mark.parametrize("scan", [scan_states, scan_states_reference])
def test_a_step_may_read_its_own_token_alone(scan: Any) -> None:
    rows_RW = draw_rows(6)[:, :3]
    store = StateStore(torch.zeros(2, 3), torch.zeros(2, 4, 3), torch.zeros(1, 3), torch.zeros(1, 0, 3))
    one = torch.zeros(1, dtype=torch.int64)
    tables = StateTables(
        states_M=one,
        folded_M=one,
        starts_M=one,
        bases_M=one + 4,
        sequences_R=torch.zeros(6, dtype=torch.int64),
        positions_R=torch.arange(6),
        parents_T=torch.tensor([0, 0]),
        num_chunk=4,
        num_nodes=2,
        waiting=3,
        taps=1,
    )
    state, wanted = torch.zeros(3), []
    for row in rows_RW:
        state = state * 0.5 + row
        wanted.append(state)
    assert torch.equal(scan(rows_RW, DecayingSum(), store, tables), torch.stack(wanted))
