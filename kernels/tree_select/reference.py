"""Reference of the choice of nodes, in plain PyTorch; see the package for the legend."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from specdec.kernels.tree_select import Candidates

OFFERED = 31  # candidates whose survival is told
# A node must not come before the one above it, however their products are rounded. So each step down loses more than 64
# roundings could win back, and survivals are normal numbers, which are rounded by no more than that.
SUREST = 1.0 - 2.0**-12  # as what the chance of a candidate counts at most
FAINTEST = 2.0**-126  # candidates that survive less likely are dropped
PATH_FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)  # odd, so that products of int64 lose no bits


def doublings(num_candidates: int, max_depth: int) -> int:
    """Steps after which every candidate has seen all of its path, each twice as much as the one before."""
    return max(min(num_candidates, max_depth + 1) - 1, 0).bit_length()


def select_trees_reference(
    candidates: "Candidates",
    chances_K: Tensor,
    odds_M: Tensor,
    nodes_M: Tensor,
    least_1: Tensor,
    num_nodes: int,
    max_depth: int,
    shared: bool,
) -> tuple[Tensor, ...]:
    """As `specdec.kernels.tree_select.select_trees`; the fields of `Trees`."""
    tokens_MC, parents_MC = candidates.tokens_MC, candidates.parents_MC
    num_trees, size = tokens_MC.shape
    places_C = torch.arange(size, device=tokens_MC.device)
    odds_MC = chances_K[candidates.kinds_MC] * odds_M[:, None]
    chances_MC = (odds_MC / (odds_MC + (1.0 - chances_K[candidates.kinds_MC]))).clamp(max=SUREST)
    chances_MC = torch.where(tokens_MC >= 0, chances_MC, 0.0)
    survival_MC, depths_MC, paths_MC = _along_paths(tokens_MC, parents_MC, chances_MC, doublings(size, max_depth))
    allowed_MC = (survival_MC >= least_1) & (survival_MC >= FAINTEST) & (depths_MC <= max_depth)
    firsts_MC = places_C.expand(num_trees, -1)
    if shared:
        same_MCC = (paths_MC[:, :, None] == paths_MC[:, None]) & (depths_MC[:, :, None] == depths_MC[:, None])
        same_MCC &= allowed_MC[:, :, None] & allowed_MC[:, None]
        firsts_MC = torch.where(same_MCC, places_C, size).amin(2)
        survival_MC = torch.where(same_MCC, survival_MC[:, None], 0.0).amax(2)
        allowed_MC = allowed_MC & (firsts_MC == places_C)
        above_MC = firsts_MC.gather(1, parents_MC.clamp(min=0).expand_as(tokens_MC)).clamp(max=size - 1)
        parents_MC = torch.where(parents_MC >= 0, above_MC, -1)
    left, right = survival_MC[:, :, None], survival_MC[:, None]
    ahead_MCC = allowed_MC[:, None] & ((right > left) | ((right == left) & (places_C < places_C[:, None])))
    ranks_MC = ahead_MCC.sum(2)
    chosen_MC = allowed_MC & (ranks_MC < nodes_M[:, None] - 1)
    nodes_MC = torch.where(chosen_MC, chosen_MC.cumsum(1), num_nodes)
    above_MC = torch.where(parents_MC >= 0, nodes_MC.gather(1, parents_MC.clamp(min=0).expand_as(tokens_MC)), 0)

    def of_nodes(values_MC: Tensor, filling: int) -> Tensor:
        out = torch.full((num_trees, num_nodes + 1), filling, dtype=torch.int64, device=tokens_MC.device)
        return out.scatter_(1, nodes_MC, torch.where(chosen_MC, values_MC, filling))[:, :num_nodes].contiguous()

    below_MC = torch.where((parents_MC < 0) & (tokens_MC >= 0), chances_MC, -1.0)
    best_M = below_MC.argmax(1)
    offers_M = torch.where(below_MC.amax(1) >= 0, best_M, -1)
    picks_MC = places_C.expand(num_trees, -1)
    told_MC = torch.where(allowed_MC, ranks_MC.clamp(max=OFFERED), OFFERED)
    survivals_MO = survival_MC.new_zeros(num_trees, OFFERED + 1).scatter_(1, told_MC, survival_MC)[:, :OFFERED].contiguous()
    nodes = of_nodes(tokens_MC, -1), of_nodes(above_MC, 0), of_nodes(picks_MC, -1)
    return *nodes, chosen_MC.sum(1), offers_M, survivals_MO


def _along_paths(tokens_MC: Tensor, parents_MC: Tensor, chances_MC: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each candidate's path from the root: the product of the chances, the number of candidates, a number that tells it
    from others of the same length (int64, products that wrap)."""
    survival_MC, depths_MC = chances_MC, torch.ones_like(tokens_MC)
    paths_MC, factors_MC = tokens_MC + 1, torch.full_like(tokens_MC, PATH_FACTOR)
    above_MC = parents_MC.expand_as(tokens_MC)
    for _ in range(steps):
        more_MC, at_MC = above_MC >= 0, above_MC.clamp(min=0)
        survival_MC = survival_MC * torch.where(more_MC, survival_MC.gather(1, at_MC), 1.0)
        depths_MC = depths_MC + torch.where(more_MC, depths_MC.gather(1, at_MC), 0)
        paths_MC = paths_MC + torch.where(more_MC, factors_MC * paths_MC.gather(1, at_MC), 0)
        factors_MC = factors_MC * torch.where(more_MC, factors_MC.gather(1, at_MC), 1)
        above_MC = torch.where(more_MC, above_MC.gather(1, at_MC), -1)
    return survival_MC, depths_MC, paths_MC
