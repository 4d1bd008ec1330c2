"""Trees meant to break a verifier: random, wrong, deep and bushy ones. For tests and `bench lossless` only."""

from collections.abc import Mapping, Sequence

import numpy as np

from specdec.draft.protocol import DraftContext, Observation, Proposal
from specdec.draft.tree import DraftTree
from specdec.drafters.continuations import TreeBuilder

_SILENT = 0.1  # share of rounds without a proposal
_RIGHT = 0.7  # share of nodes on the right path that get a right child, where it is known


class AdversarialDrafter:
    """Draws a shape and tokens anew each round.

    Args:
        source: index of the drafter.
        vocab_size: tokens are drawn below it, half of them from the context, which are right more often.
        seed: of the draws.
        oracle: output tokens by request id, for trees that contain a part of the right path.
    """

    name = "adversarial"
    hidden_layers: tuple[int, ...] = ()
    samples = False

    def __init__(self, source: int, vocab_size: int, seed: int = 0, oracle: Mapping[str, Sequence[int]] | None = None) -> None:
        self._source = source
        self._vocab_size = vocab_size
        self._rng = np.random.default_rng(seed)
        self._oracle = oracle or {}

    def start(self, request_id: str, prompt_ids: Sequence[int], prediction_ids: Sequence[int]) -> None:
        """Nothing to prepare."""

    def propose(self, contexts: Sequence[DraftContext]) -> list[Proposal | None]:
        trees = [self._tree(context) for context in contexts]
        return [Proposal(tree=tree) if tree is not None else None for tree in trees]

    def _tree(self, context: DraftContext) -> DraftTree | None:
        rng = self._rng
        if rng.random() < _SILENT:
            return None
        num_output = len(context.tokens) - context.num_prompt_tokens
        right = self._oracle.get(context.request_id, ())[num_output:]
        builder = TreeBuilder(context.tokens[-1])
        depths, right_path, edges = [0], [0], set[tuple[int, int]]()
        deepening = rng.random()  # 0: bushy, 1: a chain
        for _ in range(int(rng.integers(1, context.max_nodes))):
            on_path = len(right_path) <= min(len(right), context.max_depth) and rng.random() < _RIGHT
            if on_path:
                parent, token = right_path[-1], right[len(right_path) - 1]
            else:
                newest = len(depths) - 1
                parent = newest if rng.random() < deepening else int(rng.integers(0, newest + 1))
                token = self._token(context)
            if depths[parent] >= context.max_depth or (parent, token) in edges:
                continue
            node = builder.add(token, parent, float(np.log(rng.uniform(0.01, 1.0))), int(rng.integers(0, 4)))
            depths.append(depths[parent] + 1)
            edges.add((parent, token))
            if on_path:
                right_path.append(node)
        return builder.build(self._source)

    def _token(self, context: DraftContext) -> int:
        if self._rng.random() < 0.5:
            return context.tokens[int(self._rng.integers(0, len(context.tokens)))]
        return int(self._rng.integers(0, self._vocab_size))

    def observe(self, observations: Sequence[Observation]) -> None:
        """Nothing to learn."""

    def release(self, request_id: str, finished: bool) -> None:
        """Nothing to free."""
