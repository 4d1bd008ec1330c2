"""The kernels around a forward pass, each beside its meaning in plain PyTorch: `python -m specdec.bench.kernels --small`.

They look for drafts, lay rows out, edit logits, draw, walk the trees, move what was accepted and tell the host; a round runs
each once. A kernel is captured several times in one CUDA graph; its reference runs as PyTorch runs it, launch by launch. Both
begin with the same tensors, and what they leave behind is compared.

Legend of shape suffixes: M trees, T tree rows, S texts, V vocabulary.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specdec.draft.tree import DraftTree
from specdec.drafters.lookup.kinds import labels, lookup_kinds
from specdec.kernels.commit import Verified, told_width
from specdec.kernels.commit.kernel import commit_triton
from specdec.kernels.commit.reference import commit_reference
from specdec.kernels.entry_move.kernel import move_accepted_triton
from specdec.kernels.entry_move.reference import move_accepted_reference
from specdec.kernels.gumbel import Keys
from specdec.kernels.gumbel.kernel import gumbel_argmax_triton
from specdec.kernels.gumbel.reference import gumbel_argmax_reference
from specdec.kernels.logit_edits import IN_PROMPT, Edits
from specdec.kernels.logit_edits.kernel import edit_logits_triton
from specdec.kernels.logit_edits.reference import edit_logits_reference
from specdec.kernels.suffix_match import Library
from specdec.kernels.suffix_match.kernel import suffix_candidates_triton
from specdec.kernels.suffix_match.reference import suffix_candidates_reference
from specdec.kernels.tree_rows import Texts, TreeRows
from specdec.kernels.tree_rows.kernel import tree_rows_triton
from specdec.kernels.tree_rows.reference import tree_rows_reference
from specdec.kernels.tree_select import Candidates, Trees
from specdec.kernels.tree_select.kernel import select_trees_triton
from specdec.kernels.tree_select.reference import select_trees_reference
from specdec.kernels.tree_walk import Accepted
from specdec.kernels.tree_walk.kernel import walk_trees_triton
from specdec.kernels.tree_walk.reference import walk_trees_reference
from specdec.round.graphs import Recording
from specdec.round.probe import Part, ProbeRound
from specdec.round.rows import Entries

_PAGE = 64
_CALLS = 16  # of a kernel in one graph
_REPLAYS = 12
_CONTEXT = 1024  # tokens of a text before its root
_OFFERED = 31  # tokens that a lookup follows the best place for
_ALPHABET = 50  # so few different tokens that every lookup finds as many places as it follows
_TURNS = 4  # of the ring that rounds tell to


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a round: trees, nodes of each, tokens; and of the cache that accepted rows are moved in."""

    trees: int
    nodes: int
    vocabulary: int
    layers: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel and its reference. Each takes what `fresh` makes, and gives all that it wrote."""

    name: str
    fresh: Callable[[], Any]
    kernel: Callable[[Any], Sequence[Tensor]]
    reference: Callable[[Any], Sequence[Tensor]]


@dataclass(frozen=True, slots=True)
class Result:
    """Microseconds of one call. same: whether kernel and reference agree."""

    kernel: str
    sizes: Sizes
    microseconds: float
    reference_microseconds: float
    same: bool


class Inputs:
    """The tensors of a round whose kept paths lie off the spine, on one device."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes, self.device = sizes, device
        generator = torch.Generator().manual_seed(0)
        trees, nodes = sizes.trees, sizes.nodes
        pages = _CONTEXT // _PAGE + 2
        # nobody reads the history's pages here: all texts share the first one, and have two of their own for their trees
        own = torch.arange(2 * trees).view(trees, 2) + 1
        shared = torch.zeros(trees, pages - 2, dtype=torch.int64)
        self.num_pages = 2 * trees + 1
        # every call of a graph appends, and so does every replay
        room = _CONTEXT + (_CALLS * (_REPLAYS + 2) + 2) * nodes
        tokens_SL = torch.randint(0, min(_ALPHABET, sizes.vocabulary), (trees, room), generator=generator).int()
        lengths_S = torch.full((trees,), _CONTEXT + 1)
        self.texts = Texts(*(part.to(device) for part in (tokens_SL, lengths_S, torch.cat((shared, own), 1))))
        part = Part(_CONTEXT, np.zeros(0, np.int64), _beside_the_spine(nodes))
        self.entries = Entries(_PAGE, spare=(self.num_pages + _scratch(sizes)) * _PAGE, scratch=self.num_pages * _PAGE)
        probe = ProbeRound.of([part] * trees, self.entries, trees * pages, device)
        assert probe.trees is not None, "every part has a tree"
        self.layout, self.drafts = probe.tables.layout, probe.trees
        self.budgets_M = probe.tables.budgets_M
        self.turns_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self.logits_TV = torch.randn(trees * nodes, sizes.vocabulary, generator=generator).mul_(4).to(device)

    @cached_property
    def rows(self) -> TreeRows:
        """Of the trees."""
        return TreeRows(*tree_rows_triton(self.texts, self.layout, self.drafted, self.turns_1, **self.row_options))

    @property
    def drafted(self) -> tuple[Tensor, Tensor, Tensor]:
        """As `tree_rows` takes it."""
        return self.drafts.tokens_MN, self.drafts.parents_MN, self.drafts.counts_M

    @property
    def row_options(self) -> dict[str, int]:
        """Keyword arguments of `tree_rows`."""
        return {
            "num_nodes": self.sizes.nodes,
            "num_pages": self.texts.pages_SP.shape[1],
            "page_size": _PAGE,
            "spare_entry": self.entries.spare,
            "scratch_entry": self.entries.scratch,
        }

    @cached_property
    def chosen(self) -> tuple[Tensor, Tensor]:
        """The target's token after each row, which leads down the path beside the spine; and the largest logits."""
        tree = _beside_the_spine(self.sizes.nodes)
        following = np.append(tree.tokens[1:], 0)
        following[0] = tree.tokens[min(2, len(tree) - 1)]
        tokens_T = torch.from_numpy(np.tile(following, self.sizes.trees)).to(self.device)
        return tokens_T, self.logits_TV.amax(1)

    @cached_property
    def accepted(self) -> Accepted:
        """What is kept of the trees."""
        walked = walk_trees_triton(self.rows, self.layout.nodes_M, self.layout.firsts_M, *self.chosen, None)
        return Accepted(*(*walked, self.chosen[0]))

    @cached_property
    def lookup(self) -> tuple[Library, Tensor, Tensor, Tensor]:
        """Arguments of `suffix_candidates`: each text is searched by itself."""
        trees, nothing = self.sizes.trees, torch.zeros(self.sizes.trees, dtype=torch.int64, device=self.device)
        texts_SL = self.texts.tokens_SL[:, : _CONTEXT + 2 * _PAGE]
        none = texts_SL.new_zeros(trees, 0)
        library = Library(texts_SL, self.texts.lengths_S, none, nothing, none[0])
        return library, self.layout.texts_M, torch.tensor(labels(np.zeros(3, np.int64)), device=self.device), nothing

    @cached_property
    def candidates(self) -> Candidates:
        """What the lookup finds."""
        return Candidates(*suffix_candidates_triton(*self.lookup, width=_OFFERED))

    @cached_property
    def selection(self) -> tuple[Any, ...]:
        """Arguments of `select_trees`."""
        chances_K = torch.tensor(lookup_kinds(1).priors_X, dtype=torch.float32, device=self.device)
        odds_M = torch.ones(self.sizes.trees, device=self.device)
        least_1 = torch.zeros(1, device=self.device)
        return self.candidates, chances_K, odds_M, self.budgets_M, least_1, self.sizes.nodes, _PAGE, False

    @cached_property
    def verified(self) -> Verified:
        """Candidates, and the trees that were chosen among them."""
        return Verified(self.candidates, Trees(*select_trees_triton(*self.selection)))

    @cached_property
    def keys(self) -> Keys:
        """Every text draws at T = 1."""
        ones = torch.ones(self.sizes.trees, device=self.device)
        return Keys(torch.arange(self.sizes.trees, device=self.device), ones, ones > 0)

    def edits(self) -> Edits:
        """Of texts that ask for everything: four biases, and penalties for what stood in them."""
        trees, device = self.sizes.trees, self.device
        counts_SV = torch.zeros(trees, self.sizes.vocabulary, dtype=torch.int32, device=device)
        counts_SV[:, : _ALPHABET // 2] = IN_PROMPT + 3
        ones = torch.ones(trees, device=device)
        tokens_SB = torch.arange(4, device=device).repeat(trees, 1)
        return Edits(
            tokens_SB=tokens_SB,
            values_SB=torch.ones_like(tokens_SB, dtype=torch.float32),
            untils_SB=torch.full_like(tokens_SB, 2 * _CONTEXT),
            sizes_S=torch.full((trees,), 4, device=device),
            repetition_S=1.125 * ones,
            presence_S=0.5 * ones,
            frequency_S=0.25 * ones,
            penalised_S=ones > 0,
            counts_SV=counts_SV,
        )

    def store(self) -> Tensor:
        """Keys and values of all layers."""
        s = self.sizes
        shape = (2 * s.layers, self.num_pages + _scratch(s) + 1, s.kv_heads, _PAGE, s.head_dim)
        generator = torch.Generator(self.device).manual_seed(0)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        return torch.empty(shape, dtype=dtype, device=self.device).normal_(generator=generator)

    def ring(self, pinned: bool) -> Tensor:
        """Where a round tells."""
        width = self.sizes.trees * told_width(self.sizes.nodes, True)
        if pinned and self.device.type == "cuda":
            return torch.zeros(_TURNS, width, dtype=torch.int64, device="cpu", pin_memory=True)
        return torch.zeros(_TURNS, width, dtype=torch.int64, device=self.device)


def cases(r: Inputs) -> list[Case]:
    """All of them, in the order of a round."""
    return [
        _suffix_match(r),
        _tree_select(r),
        _tree_rows(r),
        _logit_edits(r),
        _gumbel(r),
        _tree_walk(r),
        _entry_move(r),
        _commit(r),
    ]


def _suffix_match(r: Inputs) -> Case:
    return Case(
        "suffix_match (2 kernels)",
        lambda: r.lookup,
        lambda arguments: suffix_candidates_triton(*arguments, width=_OFFERED),
        lambda arguments: suffix_candidates_reference(*arguments, width=_OFFERED),
    )


def _tree_select(r: Inputs) -> Case:
    return Case(
        "tree_select",
        lambda: r.selection,
        lambda arguments: select_trees_triton(*arguments),
        lambda arguments: select_trees_reference(*arguments),
    )


def _tree_rows(r: Inputs) -> Case:
    return Case(
        "tree_rows",
        lambda: torch.zeros_like(r.turns_1),
        lambda calls_1: (*tree_rows_triton(r.texts, r.layout, r.drafted, calls_1, **r.row_options), calls_1),
        lambda calls_1: (*tree_rows_reference(r.texts, r.layout, r.drafted, calls_1, **r.row_options), calls_1),
    )


def _changed(values: Tensor, change: Callable[..., None], *arguments: object) -> Sequence[Tensor]:
    change(values, *arguments)
    return (values,)


def _logit_edits(r: Inputs) -> Case:
    edits = r.edits()
    return Case(
        "logit_edits",
        lambda: r.logits_TV.clone(),
        lambda logits_TV: _changed(logits_TV, edit_logits_triton, r.rows, edits),
        lambda logits_TV: _changed(logits_TV, edit_logits_reference, r.rows, edits),
    )


def _gumbel(r: Inputs) -> Case:
    arguments = (r.logits_TV, r.keys, r.rows.texts_T, r.rows.positions_T)
    return Case(
        "gumbel (2 kernels)",
        lambda: arguments,
        lambda arguments: gumbel_argmax_triton(*arguments),
        lambda arguments: gumbel_argmax_reference(*arguments),
    )


def _tree_walk(r: Inputs) -> Case:
    arguments = (r.rows, r.layout.nodes_M, r.layout.firsts_M, *r.chosen, None)
    return Case(
        "tree_walk",
        lambda: arguments,
        lambda arguments: walk_trees_triton(*arguments),
        lambda arguments: walk_trees_reference(*arguments),
    )


def _entry_move(r: Inputs) -> Case:
    arguments = (r.rows, r.accepted, r.layout.nodes_M)
    return Case(
        "entry_move",
        r.store,
        lambda store: _changed(store, move_accepted_triton, *arguments),
        lambda store: _changed(store, move_accepted_reference, *arguments),
    )


def _commit(r: Inputs) -> Case:
    def fresh() -> tuple[Texts, Tensor, Tensor]:
        texts = replace(r.texts, tokens_SL=r.texts.tokens_SL.clone(), lengths_S=r.texts.lengths_S.clone())
        return texts, r.ring(pinned=True), r.ring(pinned=False)

    def kernel(state: tuple[Texts, Tensor, Tensor]) -> Sequence[Tensor]:
        texts, ring, _ = state
        commit_triton(texts, r.layout, r.accepted, r.verified, ring, r.turns_1)
        return texts.tokens_SL, texts.lengths_S, ring

    def reference(state: tuple[Texts, Tensor, Tensor]) -> Sequence[Tensor]:
        texts, _, ring = state
        commit_reference(texts, r.layout, r.accepted, r.verified, ring, r.turns_1)
        return texts.tokens_SL, texts.lengths_S, ring

    return Case("commit", fresh, kernel, reference)


def agrees(case: Case, device: torch.device) -> bool:
    """Whether kernel and reference leave the same behind: integers to the bit, floats as the same number nearly."""
    found = [values.cpu() for values in case.kernel(case.fresh())]
    with device:  # where the reference makes tensors of its own
        expected = [values.cpu() for values in case.reference(case.fresh())]
    return all(
        torch.equal(a, b) if not a.is_floating_point() else torch.allclose(a, b, rtol=1e-5, atol=1e-5)
        for a, b in zip(found, expected, strict=True)
    )


@torch.inference_mode()
def measure(sizes: Sequence[Sizes], device: torch.device) -> list[Result]:
    """Every kernel at all sizes, on a GPU."""
    results = []
    for each in sizes:
        for case in cases(Inputs(each, device)):
            same = agrees(case, device)
            results.append(Result(case.name, each, _kernel_seconds(case) * 1e6, _reference_seconds(case, device) * 1e6, same))
    return results


def _kernel_seconds(case: Case) -> float:
    state = case.fresh()

    def work() -> None:
        for _ in range(_CALLS):
            case.kernel(state)

    return Recording(work).seconds(_REPLAYS) / _CALLS


def _reference_seconds(case: Case, device: torch.device) -> float:
    """Launches by the host included."""
    taken = []
    for _ in range(3):
        state = case.fresh()
        torch.cuda.synchronize()
        started = time.perf_counter()
        with device:
            case.reference(state)
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def show(results: Sequence[Result]) -> None:
    """Print a line for each kernel and size."""
    print(f"{'kernel':<26}{'trees x nodes':>14}{'us':>9}{'reference us':>14}{'times':>8}  same")
    for r in results:
        times = r.reference_microseconds / r.microseconds
        size = f"{r.sizes.trees}x{r.sizes.nodes}"
        print(f"{r.kernel:<26}{size:>14}{r.microseconds:>9.2f}{r.reference_microseconds:>14.0f}{times:>8.0f}", end="")
        print("  yes" if r.same else "  NO")


def _scratch(sizes: Sizes) -> int:
    """Pages for rows off the spine."""
    return -(-sizes.trees * sizes.nodes // _PAGE)


def _beside_the_spine(nodes: int) -> DraftTree:
    """One wrong draft, and beside it the path that the target takes."""
    parents = np.array([0, 0, 0, *range(2, nodes - 1)])[:nodes]
    return DraftTree(np.arange(nodes) + 1, parents)
