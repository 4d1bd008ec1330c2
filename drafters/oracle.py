"""Drafts that are always right, because the answers are given: what verification alone is worth. For benches only."""

from collections.abc import Mapping, Sequence

from specdec.drafting import DraftContext, Observation, Proposal
from specdec.tree import DraftTree


class OracleDrafter:
    """Proposes the known continuation as one chain, as long as it may be.

    Args:
        source: index of the drafter.
        answers: output tokens by request id.
    """

    name = "oracle"
    hidden_layers: tuple[int, ...] = ()
    samples = False

    def __init__(self, source: int, answers: Mapping[str, Sequence[int]]) -> None:
        self._source = source
        self._answers = answers

    def start(self, request_id: str, prompt_ids: Sequence[int], prediction_ids: Sequence[int]) -> None:
        """Nothing to prepare."""

    def propose(self, contexts: Sequence[DraftContext]) -> list[Proposal | None]:
        return [self._chain(context) for context in contexts]

    def _chain(self, context: DraftContext) -> Proposal | None:
        first = len(context.tokens) - context.num_prompt_tokens
        right = self._answers.get(context.request_id, ())[first : first + min(context.max_depth, context.max_nodes - 1)]
        return Proposal(tree=DraftTree.chain(context.tokens[-1], list(right), self._source)) if right else None

    def observe(self, observations: Sequence[Observation]) -> None:
        """Nothing to learn."""

    def release(self, request_id: str, finished: bool) -> None:
        """Nothing to free."""
