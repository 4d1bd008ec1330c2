"""Drafts from text that the request supplies (OpenAI's `prediction`): the output is followed along it, as a diff would."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log

from specdec.draft.protocol import DraftContext, Observation, Proposal
from specdec.drafters.continuations import TreeBuilder

_LONGEST_MATCH = 16  # tokens compared behind a candidate place; more prove nothing
_CANDIDATES = 64  # places compared when the way is lost, the nearest to where it was lost first
_FIRST_DIVERGED = log(0.45)  # that the output replaced one token, and goes on behind it
_SECOND_DIVERGED = log(0.25)  # that it inserted one, and goes on where it left


@dataclass(slots=True)
class Alignment:
    """Where the output stands in the predicted text.

    place: the predicted token that is expected next. run: how many tokens were followed since the way was last lost.
    lost: output tokens since then, 0 while it is followed.
    """

    text: Sequence[int]
    place: int = 0
    run: int = 0
    lost: int = 0
    places: dict[int, list[int]] = field(default_factory=dict)  # token -> where it stands in the text, ascending

    def __post_init__(self) -> None:
        for place, token in enumerate(self.text):
            self.places.setdefault(token, []).append(place)

    def advance(self, output: Sequence[int], num_seen: int) -> None:
        """Follow `output[num_seen:]`; what came before was followed already."""
        for end in range(num_seen + 1, len(output) + 1):
            if self.place < len(self.text) and output[end - 1] == self.text[self.place]:
                self.place += 1
                self.run += 1
                self.lost = 0
            else:
                self._find(output, end)

    def _find(self, output: Sequence[int], end: int) -> None:
        """Look for the place again: where the longest part of the output's end stands, near where the way was lost."""
        self.run, self.lost = 0, self.lost + 1
        nearest = sorted(self.places.get(output[end - 1], ()), key=lambda place: abs(place - self.place))
        best = 0.0
        found = self.place
        for place in nearest[:_CANDIDATES]:
            match = self._match(output, end, place)
            distance = place - self.place
            # a far or backward jump needs a longer match to be believed
            score = match - 0.5 * log(1 + abs(distance)) - (1.0 if distance < 0 else 0.0)
            if score > best:
                best, found, self.run, self.lost = score, place + 1, match, 0
        self.place = found

    def _match(self, output: Sequence[int], end: int, place: int) -> int:
        """How many tokens up to output[end - 1] and text[place] are the same."""
        most = min(end, place + 1, _LONGEST_MATCH)
        for length in range(most):
            if output[end - 1 - length] != self.text[place - length]:
                return length
        return most


@dataclass(slots=True)
class _Request:
    alignment: Alignment
    num_seen: int = 0


class PredictionDrafter:
    """Follows the predicted text; after a divergence it tries both sides of it until the output is found again."""

    name = "prediction"
    hidden_layers: tuple[int, ...] = ()
    samples = False

    def __init__(self, source: int) -> None:
        self._source = source
        self._requests: dict[str, _Request] = {}

    def start(self, request_id: str, prompt_ids: Sequence[int], prediction_ids: Sequence[int]) -> None:
        if prediction_ids:
            self._requests[request_id] = _Request(Alignment(prediction_ids))

    def propose(self, contexts: Sequence[DraftContext]) -> list[Proposal | None]:
        return [self._draft(context) if context.request_id in self._requests else None for context in contexts]

    def _draft(self, context: DraftContext) -> Proposal | None:
        request = self._requests[context.request_id]
        output = context.tokens[context.num_prompt_tokens :]
        alignment = request.alignment
        alignment.advance(output, request.num_seen)
        request.num_seen = len(output)
        builder = TreeBuilder(context.tokens[-1])
        length = min(context.max_nodes - 1, context.max_depth)
        if alignment.lost:
            share = max(length - length // 3, 1)
            self._chain(builder, alignment, alignment.place + 1, share, _FIRST_DIVERGED - log(alignment.lost), rank=0)
            if context.max_nodes - 1 > share:
                second = min(context.max_nodes - 1 - share, context.max_depth)
                self._chain(builder, alignment, alignment.place, second, _SECOND_DIVERGED, rank=1)
        else:
            self._chain(builder, alignment, alignment.place, length, 0.0, rank=0)
        tree = builder.build(self._source)
        return Proposal(tree=tree) if tree is not None else None

    def _chain(self, builder: TreeBuilder, alignment: Alignment, place: int, length: int, log_q: float, rank: int) -> None:
        """Add text[place : place + length] as a path below the root, its first token with `log_q` besides the run's trust."""
        parent = 0
        for depth, token in enumerate(alignment.text[place : place + length]):
            if depth == 0 and token in builder.tokens[:1]:  # the two sides begin alike
                return
            trust = alignment.run + depth + 2
            first = log_q if depth == 0 else 0.0
            parent = builder.add(token, parent, first + log(trust / (trust + 1.0)), rank if depth == 0 else 0)

    def observe(self, observations: Sequence[Observation]) -> None:
        """Nothing to learn here: `propose` reads the context."""

    def release(self, request_id: str, finished: bool) -> None:
        self._requests.pop(request_id, None)
