"""Drafts from earlier responses of this server (suffix decoding, arXiv 2411.04975, on automata and in bounded memory)."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from specdec.draft.protocol import DraftContext, Observation, Proposal
from specdec.drafters.automaton import ROOT, SEPARATOR, SuffixAutomaton
from specdec.drafters.continuations import TreeBuilder, expand

MAX_TOKENS = 131_072  # remembered; about 60 MB
FEED_TOKENS = 4096  # learned in one call: about 8 ms of Python
_REREAD = 64  # tokens of context that find a match again in a fresh automaton


@dataclass(slots=True)
class _Reader:
    """Where one request stands in one automaton."""

    automaton: SuffixAutomaton
    state: int = ROOT
    match: int = 0
    num_read: int = 0  # tokens of the context
    num_known: int = 0  # tokens of the automaton then

    def read(self, tokens: Sequence[int]) -> None:
        """Advance to the end of the context; from some way back where the automaton may know a longer match by now."""
        if self.num_known != self.automaton.num_tokens or len(tokens) - self.num_read > _REREAD:
            self.state, self.match, self.num_read = ROOT, 0, max(len(tokens) - _REREAD, 0)
        self.state, self.match = self.automaton.follow(self.state, self.match, tokens[self.num_read :])
        self.num_read, self.num_known = len(tokens), self.automaton.num_tokens


@dataclass(slots=True)
class _Request:
    readers: list[_Reader] = field(default_factory=list)
    response: list[int] = field(default_factory=list)


class SuffixDrafter:
    """Two automata, young and old, shared by all requests.

    The young one learns finished responses; when it holds half of `max_tokens` it becomes the old one, and what was old is
    forgotten. So between half and all of the last `max_tokens` tokens are remembered.
    """

    name = "suffix"
    hidden_layers: tuple[int, ...] = ()
    samples = False

    def __init__(self, source: int, max_tokens: int = MAX_TOKENS) -> None:
        self._source = source
        self._half = max(max_tokens // 2, 1)
        self._automata = [SuffixAutomaton(), SuffixAutomaton()]  # young, old
        self._requests: dict[str, _Request] = {}
        self._to_learn: deque[int] = deque(maxlen=max_tokens)

    @property
    def num_tokens(self) -> int:
        """Tokens remembered, separators counted."""
        return sum(automaton.num_tokens for automaton in self._automata) + len(self._to_learn)

    def start(self, request_id: str, prompt_ids: Sequence[int], prediction_ids: Sequence[int]) -> None:
        self._requests[request_id] = _Request()

    def propose(self, contexts: Sequence[DraftContext]) -> list[Proposal | None]:
        self._learn()
        return [self._draft(context) for context in contexts]

    def _draft(self, context: DraftContext) -> Proposal | None:
        request = self._requests[context.request_id]
        kept = {id(reader.automaton): reader for reader in request.readers}
        request.readers = [kept.get(id(automaton)) or _Reader(automaton) for automaton in self._automata]
        for reader in request.readers:
            reader.read(context.tokens)
        best = max(request.readers, key=lambda reader: reader.match)  # the young one where both match alike
        builder = TreeBuilder(context.tokens[-1])
        expand(best.automaton, best.state, best.match, builder, context.max_nodes, context.max_depth)
        tree = builder.build(self._source)
        return Proposal(tree=tree) if tree is not None else None

    def observe(self, observations: Sequence[Observation]) -> None:
        for seen in observations:
            self._requests[seen.request_id].response.extend(seen.emitted)

    def release(self, request_id: str, finished: bool) -> None:
        request = self._requests.pop(request_id, None)
        if finished and request is not None and request.response:
            self._to_learn.extend(request.response)
            self._to_learn.append(SEPARATOR)

    def _learn(self) -> None:
        """Learn some of the finished responses."""
        tokens = [self._to_learn.popleft() for _ in range(min(FEED_TOKENS, len(self._to_learn)))]
        while tokens:
            young = self._automata[0]
            room = self._half - young.num_tokens
            if room <= 0:
                self._automata = [SuffixAutomaton(), young]
                continue
            young.extend(tokens[:room])
            tokens = tokens[room:]
