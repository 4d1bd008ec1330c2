"""The round: draft, lay out, verify, accept, commit, tell. One function of tensors, whatever the device.

On a GPU a round is a CUDA graph, and the host enqueues the next one before it reads what this one told. On a CPU a round
runs when it is enqueued, and drafts that were not found take no rows. Nothing else differs.

Legend of shape suffixes: M members of a round, T tree rows, R rows, V vocabulary, H rounds whose outcome is kept, X integers.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from specdec.arrays import BoolArray, FloatArray
from specdec.cache.kinds import Caches
from specdec.draft.protocol import Drafter, DraftView, ObserveView, Starter
from specdec.kernels.commit import Verified, commit
from specdec.kernels.logit_edits import edit_logits
from specdec.kernels.tree_rows import Layout, TreeRows
from specdec.kernels.tree_select import MAX_NODES
from specdec.round.accept.base import AcceptanceRule, Accepted, Verification
from specdec.round.chunks import ChunkRing
from specdec.round.drafts import Drafting, SharedNoiseRanking
from specdec.round.faults import check_device
from specdec.round.forward import Forward
from specdec.round.graphs import Graphs
from specdec.round.outcome import Outcome, outcome_width
from specdec.round.plan import (
    MOST_TREE_ROWS,
    PlanTables,
    RoundPlan,
    RoundShape,
    chunk_bucket,
    members_bucket,
    page_bucket,
    power_of_two,
    row_bucket,
)
from specdec.round.rows import Entries, lay_out
from specdec.round.sample.draw import Nucleus, first_rows
from specdec.round.sample.logprobs import log_probs
from specdec.round.scores import ScoreRing, emitted_tokens
from specdec.round.slots import Needs, Occupant, Slots
from specdec.round.stand_ins import StandIns
from specdec.round.tables import Tables
from specdec.round.trim import trim
from specdec.round.underway import RoundsUnderway, Underway

TURNS_KEPT = 4  # outcomes in the ring, more than are ever underway
GRAPH_CHUNK = 1024  # prompt rows of a round that is worth a graph
_FIXED = (Nucleus.NARROW, Nucleus.WIDE)  # of recordings


class Round:
    """Runs rounds over slots.

    Args:
        forward: the target.
        slots: the state of all sequences.
        drafters: in order of precedence; see `Drafting`.
        rule: how drafts are accepted.
        entries: where rows write.
        max_depth: of a tree.
        max_chunk: prompt rows of a round.
        fixed_shapes: whether no shape may depend on what was drafted, as where rounds are recorded.
    """

    def __init__(
        self,
        *,
        forward: Forward,
        slots: Slots,
        drafters: Sequence[Drafter],
        rule: AcceptanceRule,
        entries: Entries,
        max_depth: int,
        max_chunk: int,
        fixed_shapes: bool,
    ) -> None:
        self.forward = forward
        self.slots = slots
        self.drafting = Drafting(drafters, max_depth, forward.model.device)
        shared = {name for drafter in drafters for name in getattr(drafter, "shared_names", ())}
        self._shared = sum(1 << bit for bit, name in enumerate(self.drafting.names.names) if name in shared)
        self._rule = rule
        self._entries = entries
        self.fixed_shapes = fixed_shapes
        self._reads = frozenset(name for drafter in drafters for name in drafter.reads)
        self._device = forward.model.device
        on_gpu = self._device.type == "cuda"
        members = row_bucket(min(slots.num_slots, MOST_TREE_ROWS))
        self._turns_1 = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._turn = 0  # the same as the host counts
        most_told = members * outcome_width(MAX_NODES, True)
        self._told_HX = torch.zeros(TURNS_KEPT, most_told, dtype=torch.int64, pin_memory=on_gpu)
        self._read_HX = self._told_HX.numpy()  # the same memory
        vocab_size = forward.model.config.vocab_size
        self._scores = ScoreRing(MOST_TREE_ROWS, TURNS_KEPT, vocab_size, self._device)
        self._prompt_scores = ScoreRing(chunk_bucket(max_chunk), TURNS_KEPT, vocab_size, self._device)
        self._chunks = ChunkRing(members, TURNS_KEPT, self._device)
        self._underway = RoundsUnderway(TURNS_KEPT, on_gpu)
        self.graphs = Graphs(self._launch, self._device, lambda shape: shape.chunk <= GRAPH_CHUNK)
        chunk = chunk_bucket(max_chunk)
        recorded = min(chunk, GRAPH_CHUNK)
        self.stand_ins = StandIns(self.graphs, most_members=members, most_pages=slots.max_pages, most_chunk=recorded)
        self._tables = Tables(
            lambda plan: self.shape_of(plan),
            self._fits,
            self.stand_ins,
            members=members,
            chunk=chunk,
            spare=slots.spare,
            rounds=TURNS_KEPT - 1,
            device=self._device,
        )
        self._drafting_seconds = 0.0  # of the round that just ran, where it runs as it is launched
        self._trimmed: Layout | None = None  # of the round that just ran, where shapes follow drafts

    @property
    def caches(self) -> Caches:
        """What the layers keep."""
        return self.forward.caches

    @property
    def beside_host(self) -> bool:
        """Whether the device works while the host goes on."""
        return self._device.type == "cuda"

    @property
    def num_underway(self) -> int:
        """Rounds enqueued whose outcome was not collected yet."""
        return len(self._underway)

    @torch.inference_mode()
    def enter(self, slot: int, occupant: Occupant, allowed: int, group: str = "") -> None:
        """A sequence takes a free slot.

        Args:
            slot: its number.
            occupant: the sequence.
            allowed: bits of the drafters' names that it may use.
            group: see `specdec.draft.protocol.Starter`.
        """
        self._tables.forget()
        if group:
            allowed &= ~self._shared
        starter = Starter(occupant.tokens, occupant.num_prompt_tokens, occupant.sampling, occupant.prediction_ids, group)
        allowed &= ~self.drafting.crew.enter(slot, starter)
        self.slots.enter(slot, occupant, allowed, allowed != (1 << len(self.drafting.names.names)) - 1)
        self.caches.enter(slot, occupant.position, occupant.mark)

    @torch.inference_mode()
    def leave(self, slot: int, output: Sequence[int]) -> None:
        """A sequence is over; drafters may learn from `output`."""
        self._tables.forget()
        self.drafting.crew.leave(slot, output)

    @torch.inference_mode()
    def forget(self) -> None:
        """Drafters know nothing of earlier answers any more."""
        self.drafting.crew.forget()

    def widen(self, slot: int) -> bool:
        """Look at wide nuclei as well in what a slot's next rounds draw; False where it has no nucleus."""
        truncated = bool(self.slots.needs[slot] & Needs.TRUNCATED)
        self.slots.needs[slot] |= Needs.WIDE * truncated
        self._tables.forget()
        return truncated

    @torch.inference_mode()
    def set_pages(self, slots: Sequence[int], indices: Sequence[int], pages: Sequence[int]) -> None:
        """See `Slots.set_pages`."""
        self.slots.set_pages(slots, indices, pages)

    @torch.inference_mode()
    def set_chances(self, chances_X: FloatArray) -> None:
        """See `Drafting.set_chances`."""
        self.drafting.set_chances(chances_X)

    @torch.inference_mode()
    def enqueue(self, plan: RoundPlan) -> None:
        """One more round. Between two rounds of a small model there is time for little more than this."""
        if plan.drafting:
            self.drafting.crew.catch_up()
        shape, firsts = self._tables.put(plan)
        recorded = shape in self.graphs
        self._turn += 1
        entry = Underway(self._turn, plan, shape, firsts)
        if shape.scored_rows:  # they are told alone
            rows = np.where(self._members_with(Needs.SCORED, plan), plan.rows(shape.trees), 0)
            entry.firsts = np.cumsum(rows) - rows
        self._underway.add(entry, recorded)
        started = time.perf_counter()
        self.graphs.launch(shape)
        taken = time.perf_counter() - started
        self._underway.launched(taken)
        if not recorded:
            self.stand_ins.took(shape, taken)
        if shape.drafting and entry.done is None:
            entry.drafting_seconds = self._drafting_seconds
        if self._trimmed is not None:
            entry.firsts = self._trimmed.firsts_M[: len(plan)].numpy()
            nodes = int(self._trimmed.nodes_M.max())
            entry.shape = shape._replace(trees=len(self._trimmed.trees_T), nodes=max(nodes, 1))

    def collect(self) -> Outcome:
        """The outcome of the oldest round underway; waits for it."""
        entry = self._underway.wait()
        shape, ring = entry.shape, entry.turn % TURNS_KEPT
        width = outcome_width(shape.nodes, shape.drafting)
        told = self._read_HX[ring, : shape.members * width].reshape(-1, width).copy()
        if not shape.trees:
            told[:] = 0
            told[:, 1] = 1
        num = shape.scored_rows or shape.trees
        scores = self._scores.read(entry.turn, num, entry.firsts) if shape.scored and num else None
        prompt_scores = None
        if shape.prompt_scored:
            prompt_scores = self._prompt_scores.read(entry.turn, shape.chunk, entry.plan.chunk_firsts)
        chunks_sound = self._chunks.read(entry.turn, len(entry.plan)) if shape.chunk else None
        return Outcome.read(told, entry.plan, shape, entry.seconds, scores, entry.drafting_seconds, prompt_scores, chunks_sound)

    def discard(self) -> None:
        """Forget the rounds underway, after one of them failed.

        Raises:
            DeviceError: no other will succeed.
        """
        self._underway.clear()
        self._tables.forget()
        check_device(self._device)
        with torch.inference_mode():
            self._turns_1.fill_(self._turn)  # it may have been counted on one side only

    def shape_of(self, plan: RoundPlan) -> RoundShape:
        """The shape of a plan's round."""
        slots = self.slots
        needs = Needs(int(np.bitwise_or.reduce(slots.needs[plan.slots])))
        nucleus = Nucleus.NONE
        if Needs.TRUNCATED in needs:
            # a rule that keeps the distribution alone may decide a round that was void otherwise when it comes again
            wide = not self._rule.per_seed or Needs.WIDE in needs
            nucleus = (Nucleus.WIDE if wide else Nucleus.NARROW) if self.fixed_shapes else Nucleus.EXACT
        trees, chunk, members = plan.num_nodes, plan.num_chunk, len(plan)
        pages = min(plan.pages, slots.max_pages)
        if self.fixed_shapes:
            trees = row_bucket(trees) if trees else 0
            chunk, members = chunk_bucket(chunk), row_bucket(members)
            pages = self.page_bucket(pages, members)
        largest = int(plan.rows(trees).max()) if trees else 1
        return RoundShape(
            members=members,
            chunk=chunk,
            trees=trees,
            nodes=power_of_two(largest) if self.fixed_shapes else largest,
            pages=pages,
            chunk_members=members_bucket(int(np.count_nonzero(plan.chunks)), self.fixed_shapes),
            tree_members=members_bucket(plan.num_trees, self.fixed_shapes),
            drafting=plan.drafting and trees > 0,
            nucleus=nucleus,
            truncated=self._rows_with(Needs.TRUNCATED, plan, trees) if nucleus in _FIXED else 0,
            edited=Needs.EDITED in needs,
            scored=Needs.SCORED in needs,
            scored_rows=self._rows_with(Needs.SCORED, plan, trees) if Needs.SCORED in needs and self.fixed_shapes else 0,
            restricted=Needs.RESTRICTED in needs and plan.drafting,
            lists=slots.list_room,
            keepers=self.drafting.crew.shapes,
            prompt_scored=bool(chunk) and bool((slots.needs[plan.slots[plan.chunks > 0]] & Needs.PROMPT_SCORED).any()),
        )

    def _members_with(self, need: Needs, plan: RoundPlan) -> BoolArray:
        found: BoolArray = (self.slots.needs[plan.slots] & need) != 0
        return found

    def _rows_with(self, need: Needs, plan: RoundPlan, trees: int) -> int:
        """Of so many tree rows, those of members with a need, as a bucket."""
        return min(power_of_two(int(plan.rows(trees)[self._members_with(need, plan)].sum())), trees)

    def _fits(self, plan: RoundPlan, shape: RoundShape) -> bool:
        """Whether a shape with more tree rows than a plan asks for holds it: they are shared out among its trees."""
        rooms = ((Needs.TRUNCATED, shape.truncated), (Needs.SCORED, shape.scored_rows))
        return int(plan.rows(shape.trees).max()) <= shape.nodes and all(
            self._rows_with(need, plan, shape.trees) <= room for need, room in rooms if room
        )

    def page_bucket(self, count: int, members: int) -> int:
        """Pages of a round's tables where its longest member holds `count`."""
        return page_bucket(count, members, self.slots.max_pages)

    @torch.inference_mode()
    def _launch(self, shape: RoundShape) -> None:
        """All steps of a round, in order."""
        tables = PlanTables(self._tables.flat, shape.members, shape.chunk, shape.trees)
        view = self._view(shape, tables)
        verified, laws = None, None
        if shape.drafting:
            started = time.perf_counter()
            verified, laws = self.drafting.trees(view, tables, shape, self.slots.allowed_S)
            self._drafting_seconds = time.perf_counter() - started
        self._trimmed = None
        if verified is not None and not self.fixed_shapes:
            tables, shape, verified = trim(tables, shape, verified)
            self._trimmed = tables.layout
        trees = verified.trees if verified is not None else None
        rows, tree_rows = lay_out(self.slots.texts, tables, shape, trees, self._turns_1, self._entries)
        self.caches.begin(rows)
        hidden_RE, captured = self.forward(rows, self._reads)
        if shape.chunk:
            self._chunks.tell(hidden_RE[: shape.chunk], tables.chunk_members_C, shape.members, self._turns_1)
        accepted = None
        if shape.prompt_scored:
            tokens_C = self.slots.texts.tokens_SL[tables.chunk_slots_C, tables.chunk_positions_C + 1].long()
            self._prompt_scores.score_prompts(self.forward.logits, hidden_RE[: shape.chunk], tokens_C, self._turns_1)
        if shape.trees:
            accepted = self._accept(shape, tables, tree_rows, hidden_RE, verified, laws)
        observed = ObserveView(view=view, rows=rows, trees=tree_rows, hidden=captured, accepted=accepted)
        self.drafting.crew.observe(observed)
        if accepted is not None:
            if shape.drafting and shape.nodes > 1:
                self.caches.move(rows, tree_rows, accepted, tables.layout.nodes_M)
            counts_SV = self.slots.sampling.edits.counts_SV if shape.edited else None
            commit(self.slots.texts, tables.layout, accepted, verified, self._told_HX, self._turns_1, counts_SV)
        self.caches.finish(rows)

    def _view(self, shape: RoundShape, tables: PlanTables) -> DraftView:
        sampling = self.slots.sampling
        return DraftView(
            slots_M=tables.layout.texts_M,
            texts=self.slots.texts,
            has_tree_M=tables.budgets_M > 0,
            starts_M=tables.layout.starts_M,
            keys=sampling.keys,
            rank=SharedNoiseRanking(tables.layout.texts_M, sampling, shape.nucleus),
            num_nodes=shape.nodes,
            num_pages=shape.pages,
            page_size=self._entries.page_size,
            spare_entry=self._entries.spare,
        )

    def _accept(
        self,
        shape: RoundShape,
        tables: PlanTables,
        rows: TreeRows,
        hidden_RE: Tensor,
        verified: Verified | None,
        laws_MLV: Tensor | None,
    ) -> Accepted:
        """Logits of the tree rows, as requests want them edited; then the rule's decision."""
        logits_TV = self.forward.logits(hidden_RE[shape.chunk :])
        wanted: slice | Tensor = slice(None)
        if shape.scored_rows:
            wanted = first_rows(self.slots.sampling.scored_S[rows.texts_T], shape.scored_rows)
        logs_NV = log_probs(logits_TV[wanted]) if shape.scored else None  # before they are edited
        sampling = self.slots.sampling
        if shape.edited:
            edit_logits(logits_TV, rows, sampling.edits)
        accepted = self._rule.accept(
            Verification(
                rows=rows,
                layout=tables.layout,
                logits_TV=logits_TV,
                sampling=sampling,
                nucleus=shape.nucleus,
                truncated=shape.truncated,
                verified=verified,
                laws_MLV=laws_MLV,
            )
        )
        if logs_NV is not None:
            tokens_T = emitted_tokens(accepted, tables.layout.nodes_M > 0, len(logits_TV)).clamp(0, logs_NV.shape[1] - 1)
            self._scores.tell([self._scores.score(logs_NV, tokens_T[wanted])], self._turns_1)
        return accepted

    @contextmanager
    def staying(self) -> Iterator[None]:
        """Rounds of this block leave the texts where they were."""
        lengths_S, turns_1 = self.slots.texts.lengths_S.clone(), self._turns_1.clone()
        yield
        self.slots.texts.lengths_S.copy_(lengths_S)
        self._turns_1.copy_(turns_1)

    @torch.inference_mode()
    def rehearse(self, plan: RoundPlan, compute: bool) -> None:
        """Run a round that serves nobody: unrecorded first, if asked; then recorded where it is worth that. Texts stay."""
        shape = self.shape_of(plan)
        self._tables.send(plan, shape)
        for run in (self._launch, self.graphs.launch) if compute else (self.graphs.launch,):
            with self.staying():
                run(shape)

    @torch.inference_mode()
    def seconds_of(self, plan: RoundPlan) -> float:
        """What a recorded round takes on the device with this plan."""
        shape = self.shape_of(plan)
        self._tables.send(plan, shape)
        return self.graphs.seconds(shape, self.staying)
