"""Reference of a chain round's ends, in plain PyTorch; see the package for the legend."""

import torch
from torch import Tensor

from specdec.kernels.chain.data import ChainRows, Chains, Match, Origin, Told


def chain_rows_reference(chains: Chains, match: Match | None, *, width: int, page_size: int, spare_slot: int) -> ChainRows:
    """As `specdec.kernels.chain.chain_rows`."""
    chains.turns_1.add_(1)
    num_sequences, device = len(chains.lengths_S), chains.lengths_S.device
    places_W = torch.arange(width, device=device)
    roots_S1 = chains.history_SL.gather(1, (chains.lengths_S - 1)[:, None]).long()
    if match is None:
        counts_S = matched_S = origins_S = torch.zeros_like(chains.lengths_S)
        ahead_SW = torch.full((num_sequences, width), -1, dtype=torch.int64, device=device)
    else:
        ahead_SW, origins_S = _ahead(chains, match, places_W)
        matched_S = torch.where(ahead_SW[:, 0] >= 0, match.lengths_S, 0)
        known_S = (ahead_SW[:, : width - 1] >= 0).long().cumprod(1).sum(1)
        counts_S = (matched_S >= chains.shortest_1) * torch.minimum(known_S, chains.most_drafts_S)
    depths_SW = torch.minimum(places_W, counts_S[:, None])
    tokens_SW = torch.cat((roots_S1, ahead_SW[:, : width - 1]), 1).gather(1, depths_SW)
    bases_S = chains.lengths_S - 1 - chains.offsets_S
    reached_SW = bases_S[:, None] + places_W
    slots_SW = chains.page_table_SP.gather(1, reached_SW // page_size) * page_size + reached_SW % page_size
    writes_SW = (places_W <= counts_S[:, None]) & ~chains.mirrors_S[:, None]
    paths_SWW = torch.minimum(places_W, depths_SW[:, :, None])
    positions_R = (bases_S[:, None] + depths_SW).view(-1)
    return ChainRows(
        tokens_R=tokens_SW.view(-1),
        positions_R=positions_R,
        sequences_R=torch.arange(num_sequences * width, device=device) // width,
        slots_R=torch.where(writes_SW, slots_SW, spare_slot).view(-1),
        bases_S=bases_S,
        ancestor_slots_RD=slots_SW[:, None].expand(-1, width, -1).gather(2, paths_SWW).view(-1, width),
        draws_R=positions_R + 1,
        counts_S=counts_S,
        matched_S=matched_S,
        guesses_S=ahead_SW[:, 0].contiguous(),
        origins_S=origins_S,
    )


def _ahead(chains: Chains, match: Match, places_W: Tensor) -> tuple[Tensor, Tensor]:
    """(int64 [S, W]: what followed the match, negative behind its end, int64 [S]: `Origin`)."""
    size = len(chains.corpus_C)
    in_corpus_S = match.ends_S < size
    own_S = torch.where(in_corpus_S, chains.lengths_S, match.ends_S - size)
    # where the text's end follows soon, it repeats itself with that period
    period_S1 = (chains.lengths_S - own_S).clamp(min=1)[:, None]
    first_S1 = torch.minimum(own_S, chains.lengths_S - 1)[:, None]
    ahead_SW = chains.history_SL.gather(1, first_S1 + places_W % period_S1)
    if size:
        from_corpus_SW = chains.corpus_C[(torch.where(in_corpus_S, match.ends_S, 0)[:, None] + places_W).clamp(max=size - 1)]
        ahead_SW = torch.where(in_corpus_S[:, None], from_corpus_SW, ahead_SW)
    in_reference_S = own_S < chains.offsets_S
    origins_S = in_corpus_S * int(Origin.CORPUS) + in_reference_S * int(Origin.REFERENCE)
    return ahead_SW.long(), origins_S


def commit_chains_reference(
    chains: Chains, rows: ChainRows, chosen_R: Tensor, tops_R: Tensor, settled_R: Tensor | None
) -> None:
    """As `specdec.kernels.chain.commit_chains`."""
    num_sequences = len(chains.lengths_S)
    tokens_SW, chosen_SW = rows.tokens_R.view(num_sequences, -1), chosen_R.view(num_sequences, -1)
    places_W = torch.arange(chosen_SW.shape[1], device=chosen_R.device)
    right_SD = (tokens_SW[:, 1:] == chosen_SW[:, :-1]) & (places_W[1:] <= rows.counts_S[:, None])
    accepted_S = right_SD.long().cumprod(1).sum(1)
    # what lies behind the new length is overwritten later
    chains.history_SL.scatter_(1, chains.lengths_S[:, None] + places_W, chosen_SW.int())
    chains.lengths_S.add_(accepted_S + 1)
    sound_R = torch.isfinite(tops_R) if settled_R is None else torch.isfinite(tops_R) & settled_R
    told = {
        Told.ACCEPTED: accepted_S,
        Told.DRAFTED: rows.counts_S,
        Told.SOUND: sound_R.view_as(chosen_SW).all(1).long(),
        Told.MATCHED: rows.matched_S,
        Told.GUESSED: (rows.matched_S > 0) * (rows.guesses_S == chosen_SW[:, 0]),
        Told.ORIGIN: rows.origins_S,
    }
    flat = torch.cat((torch.stack([told[column] for column in Told], 1), tokens_SW, chosen_SW), 1).flatten()
    chains.told_TX[chains.turns_1 % len(chains.told_TX), : len(flat)] = flat


def tell_reference(values: Tensor, ring_TX: Tensor, turns_1: Tensor) -> None:
    """As `specdec.kernels.chain.tell`."""
    ring_TX[turns_1 % len(ring_TX), : values.numel()] = values.flatten()
