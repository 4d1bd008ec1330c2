"""Rounds of random trees for kernels that lay out, walk, edit and commit them; and where a Triton kernel is run."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from specdec.draft.tree import DraftTree
from specdec.kernels.tree_rows import Layout, Texts, TreeRows
from specdec.kernels.tree_rows.reference import tree_rows_reference

NUM_PAGES = 16  # of each text
SPARE_ENTRY, SCRATCH_ENTRY = 29_999, 20_000


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernel_device(request: pytest.FixtureRequest) -> torch.device:
    """Where a Triton kernel runs: on CPU tensors in Triton's interpreter, or on a GPU where there is one."""
    if request.param == "interpreter":
        request.getfixturevalue("triton_interpreter")
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return torch.device("cuda")


@dataclass
class Forest:
    """The trees of a round's members, as tensors; `trees` as they are on the host, None where a member has none."""

    trees: Sequence[DraftTree | None]
    texts: Texts
    layout: Layout
    drafts: tuple[Tensor, Tensor, Tensor]
    num_nodes: int
    page_size: int

    @property
    def shape(self) -> dict[str, int]:
        """The keyword arguments of `tree_rows`."""
        return {
            "num_nodes": self.num_nodes,
            "num_pages": NUM_PAGES,
            "page_size": self.page_size,
            "spare_entry": SPARE_ENTRY,
            "scratch_entry": SCRATCH_ENTRY,
        }

    def rows(self) -> TreeRows:
        """Laid out by the reference."""
        return TreeRows(
            *tree_rows_reference(self.texts, self.layout, self.drafts, torch.zeros(1, dtype=torch.int64), **self.shape)
        )

    def alone(self, member: int) -> "Forest":
        """A round of one of the members, its tree with no rows to spare."""
        own, layout, tree = slice(member, member + 1), self.layout, self.trees[member]
        size = 0 if tree is None else len(tree)
        mine = Layout(
            texts_M=layout.texts_M[own],
            nodes_M=torch.tensor([size]),
            firsts_M=torch.zeros(1, dtype=torch.int64),
            bases_M=layout.bases_M[own],
            starts_M=layout.starts_M[own],
            trees_T=torch.zeros(size, dtype=torch.int64),
        )
        tokens_MN, parents_MN, counts_M = self.drafts
        drafts = tokens_MN[own], parents_MN[own], counts_M[own]
        return Forest([tree], self.texts, mine, drafts, self.num_nodes, self.page_size)


def forest(
    trees: Sequence[DraftTree | None],
    lengths: Sequence[int],
    *,
    surplus: int = 0,
    page_size: int = 4,
    num_nodes: int | None = None,
) -> Forest:
    """Members with texts of these lengths, which end with their roots. Text m + 1 belongs to the last member but m; text 0 to
    nobody. Every tree gets `surplus` rows more than it has nodes."""
    size, members = len(trees) + 1, len(trees)
    rng = np.random.default_rng(sum(lengths))
    tokens = torch.zeros(size, NUM_PAGES * page_size + 64, dtype=torch.int32)
    nodes = [0 if tree is None else len(tree) + surplus for tree in trees]
    num_nodes = num_nodes or max([1, *nodes])
    drafts = torch.full((members, num_nodes), -1), torch.zeros(members, num_nodes, dtype=torch.int64)
    for member, (tree, length) in enumerate(zip(trees, lengths, strict=True)):
        tokens[members - member, :length] = torch.from_numpy(rng.integers(0, 50, length))
        if tree is not None:
            tokens[members - member, length - 1] = int(tree.tokens[0])
            drafts[0][member, 1 : len(tree)] = torch.from_numpy(tree.tokens[1:])
            drafts[1][member, : len(tree)] = torch.from_numpy(tree.parents)
    nodes_M = torch.tensor(nodes)
    layout = Layout(
        texts_M=torch.arange(members, 0, -1),
        nodes_M=nodes_M,
        firsts_M=nodes_M.cumsum(0) - nodes_M,
        bases_M=torch.tensor([length if tree is None else -1 for tree, length in zip(trees, lengths, strict=True)]),
        starts_M=torch.tensor(
            [max(length - 3, 0) if tree is None else -1 for tree, length in zip(trees, lengths, strict=True)]
        ),
        trees_T=torch.repeat_interleave(torch.arange(members), nodes_M),
    )
    pages = torch.from_numpy(rng.permutation(size * NUM_PAGES)).view(size, NUM_PAGES)
    texts = Texts(tokens, torch.tensor([1, *lengths[::-1]]), pages)
    counts_M = torch.tensor([0 if tree is None else len(tree) - 1 for tree in trees])
    return Forest(trees, texts, layout, (*drafts, counts_M), num_nodes, page_size)


def random_tree(num_nodes: int, seed: int, bushiness: int, vocab: int = 50) -> DraftTree:
    """Parents among the last `bushiness` nodes, so that 1 gives a chain; siblings carry different tokens."""
    rng = np.random.default_rng(seed)
    parents = np.array([0, *(rng.integers(max(0, node - bushiness), node) for node in range(1, num_nodes))])
    tokens = rng.permutation(max(vocab, num_nodes))[:num_nodes]
    return DraftTree(tokens, parents)


def moved(value: Any, device: torch.device) -> Any:
    """A copy on a device of tensors, of dataclasses and tuples of tensors, and of anything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, tuple):
        return tuple(moved(item, device) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{field.name: moved(getattr(value, field.name), device) for field in fields(value)})
    return value


def same(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors hold the same, wherever they lie; NaN is NaN."""
    found = found.cpu()
    return (
        found.dtype == expected.dtype
        and found.shape == expected.shape
        and torch.allclose(found, expected, 0, 0, equal_nan=True)
    )
