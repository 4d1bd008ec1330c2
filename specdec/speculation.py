"""Speculator: the drafters and the planner, as the engine sees them."""

import time
from collections.abc import Sequence as SequenceOf
from collections.abc import Set
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specdec.arrays import IntArray
from specdec.config import EngineConfig
from specdec.draft.planner import Planner
from specdec.draft.protocol import DraftContext, Drafter, Observation, Proposal
from specdec.draft.tree import NO_DRAFTER, DraftTree, merge
from specdec.engine.sequence import Sequence
from specdec.kernels.chain import Origin
from specdec.lookup_width import WidthPolicy
from specdec.loop_members import LONGEST_MATCH, LoopPlan, LoopRound, LoopTime, Member
from specdec.request import SpeculationStats
from specdec.round.batch import RoundRows

# the drafters that the device's own lookup stands in for, by where it finds a match
_LOOKUP = {Origin.HISTORY: "ngram", Origin.REFERENCE: "prediction", Origin.CORPUS: "suffix"}


@dataclass(frozen=True, slots=True)
class Draft:
    """The tree of one sequence for this round. `q` as in `Proposal`."""

    tree: DraftTree
    q: Tensor | None = None

    def cut(self, keep: npt.NDArray[np.bool_]) -> "Draft":
        """The nodes marked in `keep` ([n], closed under parents)."""
        if keep.all():
            return self
        q = self.q[torch.from_numpy(np.flatnonzero(keep))] if self.q is not None else None
        return Draft(self.tree.select(keep), q)


class Speculator:
    """Asks the drafters, merges what they say and lets the planner cut it to what pays.

    Args:
        drafters: in order of precedence where they propose the same path.
        planner: decides how much of a tree is verified.
        width: decides how many rows a sequence brings where rounds run without the host.
        config: the limits of a tree.
        max_model_len: positions a sequence may take.
    """

    def __init__(
        self,
        drafters: SequenceOf[Drafter],
        planner: Planner,
        width: WidthPolicy,
        config: EngineConfig,
        max_model_len: int,
    ) -> None:
        self.drafters = tuple(drafters)
        self._planner = planner
        self._config = config
        self._max_model_len = max_model_len
        self._names = tuple(drafter.name for drafter in self.drafters)
        self._width = width

    @property
    def looks_up(self) -> bool:
        """Whether the device may look for drafts by itself."""
        return _LOOKUP[Origin.HISTORY] in self._names

    def loop_widths(self, limit: int) -> tuple[int, ...]:
        """Rows that a lone sequence may bring to the device loop's rounds."""
        return self._width.widths(limit) if self.looks_up else (1,)

    @property
    def copies_responses(self) -> bool:
        """Whether earlier responses are drafted from."""
        return _LOOKUP[Origin.CORPUS] in self._names

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """Layers of the target that some drafter observes."""
        return tuple(sorted({layer for drafter in self.drafters for layer in drafter.hidden_layers}))

    def start(self, sequence: Sequence) -> None:
        """The sequence runs for the first time."""
        self._planner.start(sequence.request_id)
        self._width.start(sequence.request_id)
        for drafter in self.drafters:
            drafter.start(sequence.request_id, sequence.request.prompt_ids, sequence.request.prediction_ids)

    def release(self, sequence: Sequence, finished: bool) -> None:
        """The sequence is over."""
        self._planner.release(sequence.request_id)
        self._width.release(sequence.request_id)
        for drafter in self.drafters:
            drafter.release(sequence.request_id, finished)

    def propose(self, sequences: SequenceOf[Sequence], other_rows: int, waiting: Set[str] = frozenset()) -> list[Draft]:
        """One tree per sequence, each at least its root.

        Args:
            sequences: those whose next token is due.
            other_rows: prompt rows that the round computes anyway.
            waiting: request ids of those that get no more.
        """
        drafts = [Draft(DraftTree.root(sequence.tokens[-1])) for sequence in sequences]
        if not sequences or not self.drafters:
            return drafts
        contexts = self._contexts(sequences, waiting)
        for index, found in self._ask(sequences, contexts).items():
            drafts[index] = _join(found)
        context = max(len(sequence.tokens) for sequence in sequences)
        keeps = self._planner.plan(
            [sequence.request_id for sequence in sequences], [draft.tree for draft in drafts], other_rows, context
        )
        drafts = [draft.cut(keep) for draft, keep in zip(drafts, keeps, strict=True)]
        return [_at_most(draft, contexts[i].max_nodes) if i in contexts else draft for i, draft in enumerate(drafts)]

    def can_loop(self, sequence: Sequence) -> bool:
        """Whether the device alone can draft for a sequence what this engine would."""
        wish = sequence.request.speculation
        if not self.drafters or not wish.enabled:
            return True
        names = set(self._names)
        alone = wish.drafter is None or names == {wish.drafter}  # the lookup does not tell its sources apart beforehand
        return alone and self.looks_up and names <= set(_LOOKUP.values())

    def member(self, sequence: Sequence) -> Member:
        """A sequence as the device loop takes it."""
        wish = sequence.request.speculation
        most = min(self._config.max_tree_nodes, wish.max_nodes or self._config.max_tree_nodes) - 1
        drafts = min(most, self._config.max_tree_depth) if wish.enabled and self.looks_up else 0
        refers = drafts and _LOOKUP[Origin.REFERENCE] in self._names
        return Member(
            key=sequence,
            tokens=sequence.tokens,
            reference=_reference(sequence) if refers else (),
            sampling=sequence.sampling,
            most_drafts=drafts,
            num_prompt_tokens=sequence.num_prompt_tokens,
            stop_ids=sequence.stop_ids,
        )

    def loop_plan(self, sequences: SequenceOf[Sequence], limit: int) -> LoopPlan:
        """What each sequence brings to the device loop's next round, at most `limit` rows."""
        if not self.looks_up or not any(sequence.request.speculation.enabled for sequence in sequences):
            return LoopPlan(1, 0)
        context = max(len(sequence.tokens) for sequence in sequences)
        return self._width.choose([sequence.request_id for sequence in sequences], context, limit)

    def observe_loop(self, sequences: SequenceOf[Sequence], outcome: LoopRound) -> None:
        """What a round of the device loop gave and took."""
        if outcome.plan.shortest:
            self._width.observe([sequence.request_id for sequence in sequences], outcome)
        if (taken := outcome.time) is not None:
            self.observe_loop_time(taken)

    def observe_loop_time(self, taken: LoopTime) -> None:
        """What a round of the device loop took; at start-up one that served nobody."""
        self._width.costs.observe(taken)

    def observe_looked_up(self, sequence: Sequence, drafted: int, accepted: int, origin: int, emitted: SequenceOf[int]) -> None:
        """What became of a sequence's draft in a round of the device loop; the planner's trees are not concerned.

        Args:
            sequence: whose.
            drafted, accepted: drafts, of one chain.
            origin: see `Origin`; it tells the drafter that the device stood in for.
            emitted: tokens that the sequence kept.
        """
        accepted = min(accepted, len(emitted))
        count_steps(sequence.stats, drafted, drafted, accepted)
        if drafted:
            name = _LOOKUP[Origin(origin)]
            count_source(sequence.stats, name, drafted, accepted)
        if self.drafters:
            self.tell(Observation(request_id=sequence.request_id, emitted=emitted))

    def _contexts(self, sequences: SequenceOf[Sequence], waiting: Set[str]) -> dict[int, DraftContext]:
        """What each sequence may be drafted, by its index; those that may not or need not are left out."""
        contexts = {}
        for index, sequence in enumerate(sequences):
            wish = sequence.request.speculation
            depth = min(
                self._config.max_tree_depth,
                sequence.sampling.max_tokens - sequence.num_output_tokens - 1,
                self._max_model_len - len(sequence.tokens),
            )
            if not wish.enabled or depth < 1 or sequence.request_id in waiting:
                continue
            budget = self._planner.budget(sequence.request_id, len(sequences), len(sequence.tokens))
            nodes = min(self._config.max_tree_nodes, budget, wish.max_nodes or budget)
            if nodes >= 2:
                contexts[index] = DraftContext(
                    request_id=sequence.request_id,
                    tokens=sequence.tokens,
                    num_prompt_tokens=sequence.num_prompt_tokens,
                    sampling=sequence.sampling,
                    max_nodes=nodes,
                    max_depth=min(depth, nodes - 1),
                )
        return contexts

    def _ask(self, sequences: SequenceOf[Sequence], contexts: dict[int, DraftContext]) -> dict[int, list[Proposal]]:
        found: dict[int, list[Proposal]] = {}
        for number, drafter in enumerate(self.drafters):
            asked = [i for i in contexts if sequences[i].request.speculation.drafter in (None, drafter.name)]
            if not asked:
                continue
            started = time.perf_counter()
            proposals = drafter.propose([contexts[i] for i in asked])
            self._planner.observe_draft(number, time.perf_counter() - started, len(asked))
            for index, proposal in zip(asked, proposals, strict=True):
                if proposal is not None and len(proposal.tree) > 1:
                    sources = np.where(np.arange(len(proposal.tree)) > 0, number, NO_DRAFTER)
                    found.setdefault(index, []).append(replace(proposal, tree=replace(proposal.tree, sources=sources)))
        return found

    def observe(self, sequence: Sequence, draft: Draft, path: IntArray, observation: Observation) -> None:
        """What became of a sequence's draft. Statistics leave out what was accepted past the end of the request.

        Args:
            sequence: whose.
            draft: the tree as verified.
            path: kept nodes of the tree, root first.
            observation: what was emitted.
        """
        self._planner.observe(sequence.request_id, draft.tree, path)
        kept = path[: 1 + len(observation.emitted)]
        count(sequence.stats, draft.tree, kept, self._names)
        self.tell(observation)

    def observe_cost(self, rows: RoundRows, seconds: float) -> None:
        """What a round's verification took."""
        self._planner.observe_cost(rows.num_rows, max(segment.base for segment in rows.segments), seconds)

    def tell(self, observation: Observation) -> None:
        """Pass an observation on to every drafter."""
        for drafter in self.drafters:
            drafter.observe([observation])


def _reference(sequence: Sequence) -> tuple[int, ...]:
    """The text that the request expects, behind the prompt's end, so that a match leads from there into it."""
    request = sequence.request
    return (*request.prompt_ids[-LONGEST_MATCH:], *request.prediction_ids) if request.prediction_ids else ()


def _join(proposals: list[Proposal]) -> Draft:
    """One tree out of all proposals; a sampled one stands alone, since its q describes whole sets of siblings."""
    for proposal in proposals:
        if proposal.q is not None:
            return Draft(proposal.tree, proposal.q)
    return Draft(merge([proposal.tree for proposal in proposals]))


def _at_most(draft: Draft, max_nodes: int) -> Draft:
    """Several drafters together may say more than one may; what lies nearest to the root stays."""
    if len(draft.tree) <= max_nodes:
        return draft
    keep = np.zeros(len(draft.tree), np.bool_)
    keep[np.argsort(draft.tree.depths(), kind="stable")[:max_nodes]] = True
    return draft.cut(keep)


def count(stats: SpeculationStats, tree: DraftTree, path: IntArray, names: SequenceOf[str]) -> None:
    """Add one verified tree to a request's statistics."""
    accepted, depth = len(path) - 1, int(tree.depths().max())
    count_steps(stats, len(tree) - 1, depth, accepted)
    found, kept = tree.sources[1:], tree.sources[path[1:]]
    for source in set(found.tolist()):
        count_source(stats, names[source], int((found == source).sum()), int((kept == source).sum()))


def count_steps(stats: SpeculationStats, drafted: int, depth: int, accepted: int) -> None:
    """Add a verification of so many drafts, `depth` of them on the longest path."""
    stats.num_steps += 1
    if accepted >= len(stats.accepted_histogram):
        _extend(stats.accepted_histogram, accepted + 1)
    stats.accepted_histogram[accepted] += 1
    if not drafted:
        return
    stats.num_draft_tokens += drafted
    stats.num_accepted_tokens += accepted
    _extend(stats.drafted_by_depth, depth)
    _extend(stats.accepted_by_depth, depth)
    for level in range(depth):
        stats.drafted_by_depth[level] += 1
        stats.accepted_by_depth[level] += level < accepted


def count_source(stats: SpeculationStats, name: str, drafted: int, accepted: int) -> None:
    """Add a drafter's part of a verification."""
    for counts, number in ((stats.drafted_by_drafter, drafted), (stats.accepted_by_drafter, accepted)):
        if number:
            counts[name] = counts.get(name, 0) + number


def _extend(counts: list[int], length: int) -> None:
    counts.extend([0] * (length - len(counts)))
