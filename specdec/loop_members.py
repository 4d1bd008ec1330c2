"""What goes into the device loop and what comes out of it, as the host sees it."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from specdec.arrays import IntArray
from specdec.kernels.chain import Told
from specdec.kernels.suffix_match import SEPARATOR
from specdec.request import SamplingParams

LONGEST_MATCH = 16  # tokens; a longer one is no surer
SURE_MATCH = 2  # always worth a look
SHORTEST_MATCH = 1  # where rows are cheap


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A sequence as it enters the loop.

    key: the same whenever the same sequence enters. tokens: prompt and output. most_drafts: in one round, 0 for none.
    stop_ids: forbidden while the output is shorter than min_tokens.
    """

    key: Hashable
    tokens: Sequence[int]
    reference: Sequence[int]
    sampling: SamplingParams
    most_drafts: int
    num_prompt_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()


class LoopPlan(NamedTuple):
    """What each sequence brings to a round.

    width: rows. shortest: a match of fewer tokens is not drafted from; 0 looks for none at all.
    """

    width: int
    shortest: int


class LoopTime(NamedTuple):
    """Seconds of a round of so many sequences, so many rows of each, so many drafts of all together."""

    num_sequences: int
    width: int
    drafts: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RoundScores:
    """Of one round, by member and row: the log p of the target's own token after the row, and the most likely ones there."""

    own: list[list[float]]
    top_tokens: list[list[list[int]]]
    top_logs: list[list[list[float]]]


@dataclass(frozen=True, slots=True)
class LoopRound:
    """What a round told, on the host; one entry per member, in order.

    emitted: tokens that follow the root: the accepted drafts, then the target's own. drafted: how many were verified.
    sound: False where the round must be run again by the host. matched, guessed: see `Told`. origins: see `Origin`.
    seconds: what it took; None unless it followed another round at once. scores: None where nobody asked.
    """

    plan: LoopPlan
    emitted: list[list[int]]
    drafted: list[int]
    sound: list[bool]
    matched: list[int]
    guessed: list[bool]
    origins: list[int]
    seconds: float | None
    scores: RoundScores | None = None

    @property
    def accepted(self) -> list[int]:
        """Accepted drafts of each member."""
        return [len(tokens) - 1 for tokens in self.emitted]

    @property
    def time(self) -> LoopTime | None:
        """As what the round's time is remembered."""
        if self.seconds is None:
            return None
        return LoopTime(len(self.emitted), self.plan.width, sum(self.drafted), self.seconds)

    @staticmethod
    def read(told: IntArray, plan: LoopPlan, seconds: float | None = None, scores: RoundScores | None = None) -> "LoopRound":
        """From what `commit_chains` tells, int64 [members, len(Told) + 2 * plan.width]."""
        rows, own = told.tolist(), len(Told) + plan.width  # where the target's own tokens begin
        return LoopRound(
            plan=plan,
            emitted=[row[own : own + row[Told.ACCEPTED] + 1] for row in rows],
            drafted=[row[Told.DRAFTED] for row in rows],
            sound=[row[Told.SOUND] != 0 for row in rows],
            matched=[row[Told.MATCHED] for row in rows],
            guessed=[row[Told.GUESSED] != 0 for row in rows],
            origins=[row[Told.ORIGIN] for row in rows],
            seconds=seconds,
            scores=scores,
        )


@dataclass(frozen=True, slots=True)
class HistoryText:
    """What a row of the histories holds: a reference and a separator where there is one, then prompt and output."""

    key: Hashable
    before: Sequence[int]
    tokens: Sequence[int]

    @staticmethod
    def of(member: Member, most_reference: int) -> "HistoryText":
        """A reference of more tokens loses its beginning."""
        before = [*member.reference[-most_reference:], SEPARATOR] if member.reference else []
        return HistoryText(member.key, before, member.tokens)

    def __len__(self) -> int:
        return len(self.before) + len(self.tokens)

    @property
    def offset(self) -> int:
        """Where the prompt begins."""
        return len(self.before)

    def tail(self, known: int) -> list[int]:
        """What follows the first `known` tokens."""
        return [*self.before[known:], *self.tokens[max(known - self.offset, 0) :]]
