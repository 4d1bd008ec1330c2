"""Trees and logits as acceptance rules get them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from specdec.draft.tree import DraftTree
from specdec.kernels.commit import Verified
from specdec.kernels.tree_rows import Layout, Texts, tree_rows
from specdec.kernels.tree_select import Candidates, Trees
from specdec.request import SamplingParams
from specdec.round.accept.base import Verification
from specdec.round.sample.draw import Nucleus, Sampling
from specdec.round.slots import Occupant, Slots

_PAGE = 64


def sampling_of(params: SamplingParams, seeds_S: Tensor, vocab_size: int) -> Sampling:
    """Sequences that differ in their seeds alone."""
    slots = Slots(1, _PAGE, _PAGE, 0, vocab_size, torch.device("cpu"))
    occupant = Occupant(tokens=(0,), num_prompt_tokens=1, sampling=params, stop_ids=frozenset(), pages=[0])
    slots.enter(0, occupant, 1, restricted=False)
    one, zeros_S = slots.sampling, torch.zeros_like(seeds_S)
    keys = type(one.keys)(seeds_S, one.keys.temperatures_S[zeros_S], one.keys.noisy_S[zeros_S])
    return Sampling(
        keys, one.truncation.of(zeros_S), one.truncated_S[zeros_S], one.scored_S[zeros_S], one.ones_S[zeros_S], one.edits
    )


def verification(
    tokens_MN: Tensor,
    parents_MN: Tensor,
    sizes_M: Tensor,
    positions_M: Tensor,
    logits_TV: Tensor,
    sampling: Sampling,
    *,
    laws_MNV: Tensor | None = None,
    truncates: bool = False,
) -> Verification:
    """Of trees that begin with their roots' tokens, one of each sequence.

    Args:
        tokens_MN, parents_MN: int64; what lies behind a tree's last node is not read.
        sizes_M: int64, nodes of each, the root counted.
        positions_M: int64, of the roots, below 64.
        logits_TV: float32, of the nodes of all trees.
        sampling: of the sequences.
        laws_MNV: float32, what the children of each node were drawn from; zero where they are a fixed choice.
        truncates: whether a filter drops anything.
    """
    members, num_nodes = tokens_MN.shape
    texts = Texts(torch.zeros(members, _PAGE, dtype=torch.int32), positions_M + 1, torch.zeros(members, 1, dtype=torch.int64))
    texts.tokens_SL[torch.arange(members), positions_M] = tokens_MN[:, 0].int()
    minus_M = torch.full((members,), -1)
    trees_T = torch.repeat_interleave(torch.arange(members), sizes_M)
    layout = Layout(torch.arange(members), sizes_M, sizes_M.cumsum(0) - sizes_M, minus_M, minus_M, trees_T)
    nodes_N = torch.arange(num_nodes)
    there_MN = (nodes_N > 0) & (nodes_N < sizes_M[:, None])
    trees = Trees(
        tokens_MN=torch.where(there_MN, tokens_MN, -1),
        parents_MN=torch.where(there_MN, parents_MN, 0),
        picks_MN=torch.where(there_MN, nodes_N - 1, -1),
        counts_M=sizes_M - 1,
        offers_M=minus_M,
        survivals_MO=torch.zeros(members, 1),
    )
    rows = tree_rows(
        texts,
        layout,
        (trees.tokens_MN, trees.parents_MN, trees.counts_M),
        torch.zeros(1, dtype=torch.int64),
        num_nodes=num_nodes,
        num_pages=1,
        page_size=_PAGE,
        spare_entry=0,
        scratch_entry=0,
    )
    return Verification(
        rows=rows,
        layout=layout,
        logits_TV=logits_TV.contiguous(),
        sampling=sampling,
        nucleus=Nucleus.EXACT if truncates else Nucleus.NONE,
        verified=Verified(Candidates(trees.tokens_MN, trees.parents_MN, trees.picks_MN), trees),
        laws_MLV=laws_MNV,
    )


def stacked(trees: Sequence[DraftTree]) -> tuple[Tensor, Tensor, Tensor]:
    """tokens_MN, parents_MN, sizes_M of trees of any sizes."""
    sizes = [len(tree) for tree in trees]
    tokens, parents = np.zeros((2, len(trees), max(sizes)), np.int64)
    for member, tree in enumerate(trees):
        tokens[member, : len(tree)], parents[member, : len(tree)] = tree.tokens, tree.parents
    return torch.from_numpy(tokens), torch.from_numpy(parents), torch.tensor(sizes)
