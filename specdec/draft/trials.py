"""When drafters run although they do not pay, and rest although they do: so that it stays known what either gives."""

import math

# Where drafting does not pay, it stops. It is tried again for a few rounds, also when a new sequence has come, whenever rounds
# without it have made up for that: trials take this share of the time, a tenth of what is lost where nothing matches at all.
# Part of what drafting has gained may go there too, so that it is found back soon where it pays now and then. The first four:
# fitted in a simulation of traffic, 336 answers of SmolLM2-135M-Instruct at 1, 8, 32 and 128 in flight, with costs of an H200
# whose host is as fast as it was measured, or half as fast. The best are within a percent of each other.
_SHARE = 0.01
_EARNED, _FASTER = 0.3, 0.04  # of what drafting gains; of the time, as long as that lasts
_ROUNDS = 2  # of a trial: so many teach what a sequence's drafters offer
# Where drafting pays and the host would set the pace of plain rounds, these are tried as well, for the same share of the time,
# unless it is clear: what they take the host is not known any more once they do not run, and varies by half within minutes.
_CLEAR = 1.5  # times as fast as plain decoding
_PLAIN_ROUNDS = 4  # of such a trial: what the host takes is known from the third of a kind on
_SPACING = 16  # rounds between such trials, at least


class Trials:
    """All in seconds; deterministic in what it is told."""

    def __init__(self) -> None:
        self._left = 0  # rounds of the trial that goes on
        self._cost = 0.0  # of one of them, over a plain one
        self._saved = math.inf  # that trials may take
        self._earned = 0.0  # of what drafting has gained, that trials may take as well
        self._plain_left = 0  # rounds that plain decoding is still tried for
        self._since_plain = 0  # rounds since then in which it was not clear that drafting pays
        self._fresh = False  # whether a sequence has come since drafters ran last

    def enter(self) -> None:
        """A new sequence has come."""
        self._fresh = True

    def drafts(self, lead: float, cost: float, plain: float, paced: bool) -> bool:
        """Whether drafters run: where they pay, where they cost next to nothing, and where they are tried.

        Args:
            lead: how many times as fast as plain decoding drafting promises to be; 0 where it does not pay.
            cost: that drafters add where nothing is verified.
            plain: of a plain round.
            paced: whether the host sets its pace.
        """
        self._cost = cost
        if lead or cost < _SHARE * plain:
            self._left, self._fresh = 0, False
            self._saved = max(self._saved, self._most_saved)
            return not (paced and self._tries_plain(lead))
        if self._left or self.may_begin():
            self._left = (self._left or _ROUNDS) - 1
            self._saved = min(self._saved, self._most_saved) - cost
            self._fresh = False
            return True
        self.save(plain)
        return False

    def may_begin(self) -> bool:
        """Whether drafters may be tried. What is saved allows two trials at most, one of which is kept for new sequences."""
        return bool(self._left) or self._saved >= self._most_saved / (2 if self._fresh else 1)

    def save(self, plain: float) -> None:
        """A round that takes so long goes without drafters."""
        earned = min(self._earned, _FASTER * plain)
        self._earned -= earned
        self._saved = min(self._saved + _SHARE * plain + earned, self._most_saved)

    def earn(self, gained: float) -> None:
        """A round with drafts was so much faster than plain ones would have been, or slower."""
        self._earned = max(self._earned + _EARNED * gained, 0.0)

    def _tries_plain(self, lead: float) -> bool:
        """Whether a round goes without drafters although they pay."""
        if not 0.0 < lead < _CLEAR:
            return False
        if not self._plain_left:
            self._since_plain += 1
            # each round of drafting allows for a hundredth of what a plain one takes; each plain one loses what drafting gains
            due = _PLAIN_ROUNDS * (1.0 - 1.0 / lead) / _SHARE
            if self._since_plain < max(due, _SPACING):
                return False
            self._plain_left = _PLAIN_ROUNDS
        self._plain_left -= 1
        self._since_plain = 0
        return True

    @property
    def _most_saved(self) -> float:
        return 2 * _ROUNDS * self._cost
