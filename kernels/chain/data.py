"""What goes in and out of a chain round's ends; see the package for the legend."""

from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor


class Origin(IntEnum):
    """Where a match lies."""

    HISTORY = 0  # prompt and output
    REFERENCE = 1
    CORPUS = 2


class Told(IntEnum):
    """Columns of what a round tells the host; behind them W tokens of the rows and W of the target's own after each row."""

    ACCEPTED = 0
    DRAFTED = 1
    SOUND = 2  # every row's logits gave a token
    MATCHED = 3  # tokens of the match, 0 where there was none
    GUESSED = 4  # the match was right about the next token, whether that was verified or not
    ORIGIN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Chains:
    """What the device knows of the sequences that decode. Rounds move `history_SL`, `lengths_S` and `turns_1` on and write to
    `told_TX`, the host sets the rest.

    A history holds a reference text (the expected answer, say) and a separator where there is one, then prompt and output;
    its last token is the root of the next chain.
    """

    history_SL: Tensor  # int32
    lengths_S: Tensor  # int64, tokens of each history
    offsets_S: Tensor  # int64, where the prompt begins
    corpus_C: Tensor  # int32, what else there is to copy from
    page_table_SP: Tensor  # int64
    mirrors_S: Tensor  # bool; padding that repeats another sequence and writes to the spare slot
    most_drafts_S: Tensor  # int64
    shortest_1: Tensor  # int64, a match of fewer tokens is not drafted from
    turns_1: Tensor  # int64, rounds laid out so far
    # int64, a ring: row `turns_1 % T` takes what the host is told of that round, [S, len(Told) + 2 W] in its first entries.
    # It may be host memory that the device reaches, so that no copy stands between two rounds.
    told_TX: Tensor


@dataclass(frozen=True, slots=True)
class Match:
    """As `suffix_match` gives it; int64 [S] each."""

    ends_S: Tensor
    lengths_S: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainRows:
    """The rows of a round, int64. The first six are as in `RoundRows`, W being the depth of the ancestor table.

    draws_R: positions of the tokens that are drawn. counts_S: drafts that are verified. matched_S: tokens of the match,
    drafted from or not. guesses_S: what it says of the next token. origins_S: see `Origin`.
    """

    tokens_R: Tensor
    positions_R: Tensor
    sequences_R: Tensor
    slots_R: Tensor
    bases_S: Tensor
    ancestor_slots_RD: Tensor  # [S * W, W]
    draws_R: Tensor
    counts_S: Tensor
    matched_S: Tensor
    guesses_S: Tensor
    origins_S: Tensor
