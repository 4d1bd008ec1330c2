"""Drafts from the request's own prompt and output: what followed the last times that the present words stood there."""

from collections.abc import Sequence

from specdec.draft.protocol import DraftContext, Observation, Proposal
from specdec.drafters.automaton import SuffixAutomaton
from specdec.drafters.continuations import TreeBuilder, expand

FEED_TOKENS = 8192  # tokens read in one call, all requests together: about 12 ms of Python


class NgramDrafter:
    """A suffix automaton per request. A long prompt is read over several calls, without drafts until it is read."""

    name = "ngram"
    hidden_layers: tuple[int, ...] = ()
    samples = False

    def __init__(self, source: int) -> None:
        self._source = source
        self._automata: dict[str, SuffixAutomaton] = {}

    def start(self, request_id: str, prompt_ids: Sequence[int], prediction_ids: Sequence[int]) -> None:
        self._automata[request_id] = SuffixAutomaton()

    def propose(self, contexts: Sequence[DraftContext]) -> list[Proposal | None]:
        proposals: list[Proposal | None] = []
        budget = FEED_TOKENS
        for context in contexts:
            automaton = self._automata[context.request_id]
            new = context.tokens[automaton.num_tokens : automaton.num_tokens + budget]
            automaton.extend(new)
            budget -= len(new)
            ready = automaton.num_tokens == len(context.tokens)
            proposals.append(self._draft(automaton, context) if ready else None)
        return proposals

    def _draft(self, automaton: SuffixAutomaton, context: DraftContext) -> Proposal | None:
        builder = TreeBuilder(context.tokens[-1])
        expand(automaton, *automaton.repeated_suffix(), builder, context.max_nodes, context.max_depth)
        tree = builder.build(self._source)
        return Proposal(tree=tree) if tree is not None else None

    def observe(self, observations: Sequence[Observation]) -> None:
        """Nothing to learn here: `propose` reads the context."""

    def release(self, request_id: str, finished: bool) -> None:
        self._automata.pop(request_id, None)
