"""One round of decoding as tensors only: nothing here waits for the host, and no shape depends on a value.

A sequence brings `width` rows: its root and a chain of drafts, which follow the latest earlier occurrence of its longest
suffix. Rows without a draft repeat the last row that has one, whose experts are read anyway, and write to a slot that
nobody reads. So a round in which nothing matches costs next to nothing more than a plain one.

Legend of shape suffixes: S sequences, W rows of a sequence, R all rows (S * W), L room of a history, C tokens of the corpus,
P pages of a sequence.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from specdec.graphs import Tables
from specdec.kernels.suffix_match import suffix_match

LONGEST_MATCH = 16  # tokens; a longer one is no surer
SHORTEST_MATCH = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopState:
    """What the device knows of the sequences of a loop. Rounds move `history_SL` and `lengths_S` on, the host sets the rest.

    A history holds a reference text (the expected answer, say) and a separator where there is one, then prompt and output;
    its last token is the root of the next chain.
    """

    history_SL: Tensor  # int32
    corpus_C: Tensor  # int32, what else there is to copy from
    lengths_S: Tensor  # int64, tokens of each history
    offsets_S: Tensor  # int64, where the prompt begins
    page_table_SP: Tensor  # int64
    mirrors_S: Tensor  # bool; padding that repeats another sequence and writes to the spare slot
    most_drafts_S: Tensor  # int64
    seeds_S: Tensor  # int64
    temperatures_S: Tensor  # float32; 1 where greedy
    noisy_S: Tensor  # bool; False where greedy


@dataclass(frozen=True, slots=True)
class RoundDraft:
    """The rows of a round before the forward pass.

    counts_S: drafts of each sequence that are verified. found_S: whether there was a match. guesses_S: what it says of
    the next token, verified or not. origins_S: see `Origin`.
    """

    tables: Tables
    tokens_SW: Tensor
    counts_S: Tensor
    found_S: Tensor
    guesses_S: Tensor
    origins_S: Tensor


class Origin(IntEnum):
    """Where a match lies."""

    HISTORY = 0  # prompt and output
    REFERENCE = 1
    CORPUS = 2


class Told(IntEnum):
    """Columns of what a round tells the host; behind them the rows' tokens, then the target's own tokens after each row."""

    ACCEPTED = 0
    DRAFTED = 1
    SOUND = 2  # every row's logits gave a token
    FOUND = 3
    GUESSED = 4  # the match was right about the next token
    ORIGIN = 5


def draft_rows(state: LoopState, width: int, page_size: int, spare_slot: int, lookup: bool) -> RoundDraft:
    """Draft, and lay the rows out.

    Args:
        state: of the sequences.
        width: rows of each.
        page_size: tokens per page.
        spare_slot: where rows write whose keys nobody reads.
        lookup: look for matches; without it there are no drafts.
    """
    num_sequences = len(state.lengths_S)
    device = state.lengths_S.device
    places_W = torch.arange(width, device=device)
    roots_S1 = state.history_SL.gather(1, (state.lengths_S - 1)[:, None]).long()
    found_S, ahead_SW, origins_S = _matches(state, places_W) if lookup else _no_matches(state, places_W)
    drafts_SD = ahead_SW[:, : width - 1]
    known_S = (drafts_SD >= 0).long().cumprod(1).sum(1)
    counts_S = torch.where(found_S, torch.minimum(known_S, state.most_drafts_S), 0)
    tokens_SW = torch.cat((roots_S1, drafts_SD.clamp(min=0)), 1)
    depths_SW = torch.minimum(places_W, counts_S[:, None])
    tokens_SW = tokens_SW.gather(1, depths_SW)
    bases_S = state.lengths_S - 1 - state.offsets_S
    reached_SW = bases_S[:, None] + places_W
    slots_SW = state.page_table_SP.gather(1, reached_SW // page_size) * page_size + reached_SW % page_size
    writes_SW = (places_W <= counts_S[:, None]) & ~state.mirrors_S[:, None]
    paths_SWW = torch.minimum(places_W, depths_SW[:, :, None])
    tables = Tables(
        tokens_R=tokens_SW.reshape(-1),
        positions_R=(bases_S[:, None] + depths_SW).view(-1),
        sequences_R=torch.arange(num_sequences * width, device=device) // width,
        slots_R=torch.where(writes_SW, slots_SW, spare_slot).view(-1),
        bases_S=bases_S,
        starts_S=bases_S,
        page_table_SP=state.page_table_SP,
        ancestor_slots_RD=slots_SW[:, None].expand(-1, width, -1).gather(2, paths_SWW).view(-1, width),
    )
    return RoundDraft(tables, tokens_SW, counts_S, found_S, ahead_SW[:, 0], origins_S)


def _matches(state: LoopState, places_W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(bool [S]: whether there is a match, int64 [S, W]: what followed it, SEPARATOR behind its end, int64 [S]: `Origin`)."""
    size, width = len(state.corpus_C), len(places_W)
    ends_S, matched_S = suffix_match(state.history_SL, state.lengths_S, state.corpus_C, LONGEST_MATCH)
    in_corpus_S = ends_S < size
    own_S = torch.where(in_corpus_S, state.lengths_S, ends_S - size)
    # where the text's end follows soon, it repeats itself with that period
    period_S1 = (state.lengths_S - own_S).clamp(min=1)[:, None]
    first_S1 = torch.minimum(own_S, state.lengths_S - 1)[:, None]
    ahead_SW = state.history_SL.gather(1, first_S1 + places_W % period_S1)
    if size:
        from_corpus_SW = state.corpus_C[(torch.where(in_corpus_S, ends_S, 0)[:, None] + places_W).clamp(max=size - 1)]
        ahead_SW = torch.where(in_corpus_S[:, None], from_corpus_SW, ahead_SW)
    found_S = (matched_S >= SHORTEST_MATCH) & (ahead_SW[:, 0] >= 0)
    in_reference_S = own_S < state.offsets_S
    origins_S = torch.where(in_corpus_S, Origin.CORPUS, torch.where(in_reference_S, Origin.REFERENCE, Origin.HISTORY))
    return found_S, ahead_SW.long().view(-1, width), origins_S


def _no_matches(state: LoopState, places_W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    nothing_S = torch.zeros_like(state.lengths_S)
    return torch.zeros_like(state.mirrors_S), (nothing_S - 1)[:, None].expand(-1, len(places_W)), nothing_S


def commit_round(state: LoopState, draft: RoundDraft, chosen_SW: Tensor, sound_SW: Tensor) -> Tensor:
    """Accept by the shared-noise walk down each chain, and move the histories on.

    Args:
        state: of the sequences.
        draft: the round's rows.
        chosen_SW: int64, the target's own token after each row.
        sound_SW: bool, whether the row's logits gave one.

    Returns:
        int64 [S, len(Told) + 2 W]: what the host is told.
    """
    width = chosen_SW.shape[1]
    places_W = torch.arange(width, device=chosen_SW.device)
    right_SD = (draft.tokens_SW[:, 1:] == chosen_SW[:, :-1]) & (places_W[1:] <= draft.counts_S[:, None])
    accepted_S = right_SD.long().cumprod(1).sum(1)
    # what lies behind the new length is overwritten later
    state.history_SL.scatter_(1, state.lengths_S[:, None] + places_W, chosen_SW.int())
    state.lengths_S.add_(accepted_S + 1)
    guessed_S = draft.found_S & (draft.guesses_S == chosen_SW[:, 0])
    columns = (accepted_S, draft.counts_S, sound_SW.all(1), draft.found_S, guessed_S, draft.origins_S)
    return torch.cat((torch.stack([column.long() for column in columns], 1), draft.tokens_SW, chosen_SW), 1)
