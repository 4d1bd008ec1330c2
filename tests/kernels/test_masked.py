"""Masked means absent: a row that is not finite changes no bit of another, in any kernel; attention's own tests are beside."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from specdec.draft.tree import DraftTree
from specdec.kernels.entry_move import accepted_moves
from specdec.kernels.entry_move.reference import move_accepted_reference
from specdec.kernels.gumbel import Keys, gumbel_argmax, gumbel_topk
from specdec.kernels.linear import linear, pack, rms_norm
from specdec.kernels.logit_edits import Edits, edit_logits
from specdec.kernels.moe import moe
from specdec.kernels.swiglu import swiglu
from specdec.kernels.tree_walk import Accepted
from specdec.kernels.tree_walk.reference import walk_trees_reference
from tests.kernels.conftest import forest

if torch.cuda.is_available():
    pytest.skip("the GPU tests run the kernels themselves", allow_module_level=True)
pytestmark = pytest.mark.usefixtures("triton_interpreter")
ROWS, VOCAB, HIDDEN = 5, 300, 64
OfRows = Callable[[Tensor], tuple[Tensor, ...]]


def of(name: str) -> Any:
    """A module that needs Triton."""
    pytest.importorskip("triton")
    __import__(f"specdec.kernels.{name}")
    return sys.modules[f"specdec.kernels.{name}"]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def half(*shape: int, seed: int = 0) -> Tensor:
    return random(*shape, seed=seed, dtype=torch.float16)


def keys() -> Keys:
    return Keys(torch.tensor([3, 9]), torch.tensor([1.0, 0.7]), torch.tensor([False, True]))


def owners(count: int) -> Tensor:
    return torch.arange(count) % 2


def edits() -> Edits:
    counts = torch.zeros(2, VOCAB, dtype=torch.int32)
    counts[:, 5] = 2
    lists = torch.tensor([[7, 9], [8, 0]]), torch.tensor([[3.0, -torch.inf], [-2.0, 0.0]]), torch.full((2, 2), 99)
    ones = torch.full((2,), 1.5)
    return Edits(*lists, torch.tensor([2, 1]), ones, ones, ones, torch.tensor([True, False]), counts)


def edited(logits_TV: Tensor, edit: Callable[..., None]) -> tuple[Tensor, ...]:
    """Rows of two chains."""
    rows = forest([DraftTree.chain(1, [2, 3]), DraftTree.chain(4, [5])], [7, 9]).rows()
    out = logits_TV.clone()
    texts = rows.texts_T - 1
    edit(out, type(rows)(**{name: getattr(rows, name) for name in rows.__dataclass_fields__} | {"texts_T": texts}), edits())
    return (out,)


def experts(x_RE: Tensor) -> tuple[Tensor, ...]:
    gate_up, down = random(4, 2 * 24, HIDDEN, seed=2), random(4, HIDDEN, 24, seed=3)
    packed_gate_up, packed_down = ([pack(weight.contiguous()) for weight in part] for part in (gate_up, down))
    return (moe(x_RE, pack(random(4, HIDDEN, seed=1)), packed_gate_up, packed_down, 2, True),)


def experts_triton(x_RE: Tensor) -> tuple[Tensor, ...]:
    gate_up, down = half(4, 2 * 24, 128, seed=2) / 8, half(4, 128, 24, seed=3) / 4
    norms = {"norm_E": half(128, seed=4), "next_norm_E": half(128, seed=5)}
    found: tuple[Tensor, ...] = of("moe.kernel").moe_triton(x_RE, half(4, 128, seed=1) / 8, gate_up, down, 2, True, **norms)
    return found


def heads_triton(qkv_RC: Tensor) -> tuple[Tensor, ...]:
    """Queries, and what each row wrote to its entry."""
    pages = [torch.zeros(ROWS, 1, 4, 16, dtype=torch.float16) for _ in range(2)]
    entries, norm, table = torch.arange(ROWS) * 4 + 1, half(16, seed=1), random(32, 8, seed=2)
    q = of("tree_attention.heads").heads_triton(
        qkv_RC, norm, norm, table, table, positions_R=torch.arange(ROWS), entries_R=entries, k_pages=pages[0], v_pages=pages[1]
    )
    return q, *(part[:, 0].flatten(1) for part in pages)


OF_ROWS: dict[str, tuple[OfRows, Tensor]] = {
    "linear": (lambda x: (linear(x, pack(random(37, HIDDEN))),), random(ROWS, HIDDEN, seed=9)),
    "linear of Triton": (
        lambda x: (of("linear.kernel").linear_triton(x, half(37, HIDDEN), half(37), residual=half(len(x), 37)),),
        half(ROWS, HIDDEN, seed=9),
    ),
    "norm": (lambda x: (rms_norm(x, random(HIDDEN), 1e-6),), random(ROWS, HIDDEN, seed=9)),
    "norm of Triton": (lambda x: (of("linear.kernel").rms_norm_triton(x, half(100), 1e-6),), half(ROWS, 100, seed=9)),
    "swiglu": (lambda x: (swiglu(x),), random(ROWS, 2 * 37, seed=9)),
    "swiglu of Triton": (lambda x: (of("swiglu.kernel").swiglu_triton(x),), half(ROWS, 2 * 37, seed=9)),
    "experts": (experts, random(ROWS, HIDDEN, seed=9)),
    "experts of Triton, few rows": (experts_triton, half(3, 128, seed=9)),
    "experts of Triton, many rows": (experts_triton, half(18, 128, seed=9)),
    "heads of Triton": (heads_triton, half(ROWS, 4 * 16, seed=9)),
    "draw": (lambda x: gumbel_argmax(x, keys(), owners(len(x)), owners(len(x)) + 7), random(ROWS, VOCAB, seed=9)),
    "draw of Triton, few rows": (
        lambda x: of("gumbel.kernel").gumbel_argmax_triton(x, keys(), owners(len(x)), owners(len(x)) + 7),
        random(3, VOCAB, seed=9),
    ),
    "draw of Triton, many rows": (
        lambda x: of("gumbel.kernel").gumbel_argmax_triton(x, keys(), owners(len(x)), owners(len(x)) + 7),
        random(10, VOCAB, seed=9),
    ),
    "best": (lambda x: gumbel_topk(x, keys(), owners(len(x)), owners(len(x)) + 7, 3), random(ROWS, VOCAB, seed=9)),
    "best of Triton": (
        lambda x: of("gumbel.kernel").gumbel_topk_triton(x, keys(), owners(len(x)), owners(len(x)) + 7, 3),
        random(3, VOCAB, seed=9),
    ),
    "edits": (lambda x: edited(x, edit_logits), random(ROWS, VOCAB, seed=9)),
    "edits of Triton": (lambda x: edited(x, of("logit_edits.kernel").edit_logits_triton), random(ROWS, VOCAB, seed=9)),
}


@pytest.mark.parametrize("name", OF_ROWS)
def test_a_row_that_is_not_finite_changes_no_other(name: str) -> None:
    compute, rows = OF_ROWS[name]
    whole = compute(rows.clone())
    for bad, value in ((0, torch.nan), (2, torch.inf)):
        spoilt = rows.clone()
        spoilt[bad] = value
        others = [row for row in range(len(rows)) if row != bad]
        for found, expected in zip(compute(spoilt), whole, strict=True):
            assert torch.equal(found[others], expected[others])


@pytest.mark.parametrize("kernel", ["reference", "Triton"])
def test_rejected_drafts_are_not_judged(kernel: str) -> None:
    """The second child of the root is right, and so is its child; what stands on the first branch gives no token."""
    tree = DraftTree(np.array([1, 10, 11, 12, 13]), np.array([0, 0, 0, 1, 2]))
    f = forest([tree, DraftTree.chain(1, [2])], [7, 9], surplus=1)
    rows, layout = f.rows(), f.layout
    chosen = torch.full((len(rows.tokens_T),), 40)
    chosen[0], chosen[2] = 11, 13
    walk = walk_trees_reference if kernel == "reference" else of("tree_walk.kernel").walk_trees_triton
    tops = torch.zeros(len(chosen))
    expected = walk(rows, layout.nodes_M, layout.firsts_M, chosen, tops, None)
    assert expected[0].tolist() == [2, 0]
    for value in (torch.nan, torch.inf):
        spoilt = tops.clone()
        spoilt[[1, 3]] = value  # the first branch
        spoilt[7] = value  # a draft of the other tree
        found = walk(rows, layout.nodes_M, layout.firsts_M, chosen, spoilt, None)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        spoilt[2] = value
        assert walk(rows, layout.nodes_M, layout.firsts_M, chosen, spoilt, None)[3].tolist() == [False, True]


@pytest.mark.parametrize("kernel", ["reference", "Triton"])
def test_moves_bring_accepted_rows_alone(kernel: str) -> None:
    """Of two trees one is not sound: none of its entries may be overwritten; rejected drafts stay where they are."""
    tree = DraftTree(np.array([1, 10, 11, 12, 13]), np.array([0, 0, 0, 1, 2]))
    f = forest([tree, tree], [7, 9])
    rows, layout = f.rows(), f.layout
    rows_MD = torch.tensor([[0, 2, 4, 4, 4], [5, 7, 9, 9, 9]])
    accepted = Accepted(torch.tensor([2, 2]), rows_MD, rows_MD, torch.tensor([True, False]), rows_MD[0])
    store = random(2, 30_000 // 4, 1, 4, 4)
    of_entry = store.transpose(2, 3).reshape(2, -1, 4).clone()
    moves, sources, targets = accepted_moves(rows, accepted, layout.nodes_M, 4)
    of_entry[:, targets[moves]] = of_entry[:, sources[moves]]
    rejected = rows.entries_T[[3, 6, 8]]
    store.view(2, -1, 4, 4)[:, rejected // 4, rejected % 4] = torch.nan
    of_entry[:, rejected] = torch.nan
    move = move_accepted_reference if kernel == "reference" else of("entry_move.kernel").move_accepted_triton
    move(store, rows, accepted, layout.nodes_M)
    torch.testing.assert_close(store.transpose(2, 3).reshape(2, -1, 4), of_entry, rtol=0, atol=0, equal_nan=True)
    assert moves[0].any()
    assert not moves[1].any()
