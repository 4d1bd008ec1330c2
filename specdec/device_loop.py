"""Rounds that the device runs by itself: enqueued ahead, their outcome read one round late.

While the same sequences decode and none asks for what only the host can do, a round needs nothing from the host: drafts come
from the device's own histories, and the next round's inputs are this one's outputs. The host enqueues the next round before
it looks at the last one, so the device never waits. What a stop string makes void is thrown away.

Legend of shape suffixes: S sequences of a bucket, W rows of a sequence, L room of a history, P pages of a bucket.
"""

from collections import deque
from collections.abc import Hashable, Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from specdec.arrays import IntArray
from specdec.cache.attention import KVPool
from specdec.kernels.chain import ChainRows, Chains, Match, Told, chain_rows, commit_chains
from specdec.kernels.gumbel import gumbel_argmax
from specdec.kernels.suffix_match import SEPARATOR, suffix_match
from specdec.loop_edits import LoopEdits
from specdec.loop_graphs import LoopGraphs, RoundKey
from specdec.loop_members import LONGEST_MATCH, SURE_MATCH, HistoryText, LoopPlan, LoopRound, LoopTime, Member
from specdec.loop_scores import LoopScores
from specdec.models.base import Model
from specdec.request import SamplingParams
from specdec.round.graphs import ROW_BUCKETS, DeviceContext, Tables, half_octave, octave, row_bucket
from specdec.round.sample.candidates import Truncation, truncate_among
from specdec.round.sample.sampling import Kind

ROUNDS_AHEAD = 1  # enqueued beyond the one whose outcome the host waits for
_TURNS_KEPT = 4  # outcomes in the ring, more than are ever underway
MOST_ROWS = ROW_BUCKETS[-1]
MAX_WIDTH = 8
_PREPARED_PAGES = 128  # of a lone sequence; longer ones are recorded when they come
_FEW_SEQUENCES = 4
_CANDIDATES = 1024  # of a nucleus; a wider one is the host's affair


@dataclass(slots=True)
class _Underway:
    """A round that was enqueued."""

    turn: int
    members: int
    plan: LoopPlan
    done: torch.cuda.Event | None = None  # since when `told` can be read
    before: torch.cuda.Event | None = None  # the same of the round that it follows at once


class DeviceLoop:
    """Owns the device's view of the sequences that decode without the host.

    Args:
        model: the target.
        pool: its K/V pages.
        max_sequences: at once.
        max_model_len: positions of a sequence.
        corpus_tokens: of earlier responses that are kept to copy from, 0 for none.
    """

    def __init__(self, model: Model, pool: KVPool, *, max_sequences: int, max_model_len: int, corpus_tokens: int = 0) -> None:
        self._model = model
        self._pool = pool
        self._windows = tuple(spec.window for spec in model.cache_specs)
        self.max_sequences = min(max_sequences, MOST_ROWS)
        self._most_pages = -(-max_model_len // pool.page_size)
        self._most_reference = max_model_len
        self._room = self._most_reference + 1 + max_model_len + MAX_WIDTH
        size, device = row_bucket(self.max_sequences), pool.device

        def of_sequences(dtype: torch.dtype) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self._history_SL = torch.zeros(size, self._room, dtype=torch.int32, device=device)
        self._corpus_C = torch.full((corpus_tokens,), SEPARATOR, dtype=torch.int32, device=device)
        self._lengths_S, self._offsets_S = of_sequences(torch.int64), of_sequences(torch.int64)
        self._turns_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self._turn = 0  # the same as the host counts
        most_told = len(Told) * size + 2 * MOST_ROWS
        on_gpu = device.type == "cuda"
        self._told_TX = torch.zeros(_TURNS_KEPT, most_told, dtype=torch.int64, pin_memory=on_gpu)
        self._read_TX = self._told_TX.numpy()  # the same memory
        self._done = [torch.cuda.Event(enable_timing=True) for _ in range(_TURNS_KEPT)] if on_gpu else []  # type: ignore[no-untyped-call]
        self._mirrors_S = of_sequences(torch.bool)
        self._most_drafts_S = of_sequences(torch.int64)
        self._shortest = SURE_MATCH  # what the device was told last
        self._shortest_1 = torch.full((1,), SURE_MATCH, dtype=torch.int64, device=device)
        self._seeds_S = of_sequences(torch.int64)
        self._temperatures_S = of_sequences(torch.float32)  # 1 where greedy
        self._noisy_S = of_sequences(torch.bool)  # False where greedy
        self._truncation = Truncation(
            top_k_N=of_sequences(torch.int64), top_p_N=of_sequences(torch.float64), min_p_N=of_sequences(torch.float64)
        )
        self._edits = LoopEdits(size, model.config.vocab_size, device)
        self._scores = LoopScores(MOST_ROWS, _TURNS_KEPT, model.config.vocab_size, device)
        self._rows: list[tuple[Hashable, int]] = []  # whose history each row holds, and how much of it at least
        self._corpus_end = 0  # where the next response goes
        self._to_learn: list[int] = []
        self._page_tables: dict[tuple[int, int], Tensor] = {}
        self._pages: IntArray = np.zeros((0, 0), np.int64)
        self._num_members = 0
        self._truncated = False
        self._underway: deque[_Underway] = deque()
        self._graphs = LoopGraphs(self._round, device)

    @property
    def num_underway(self) -> int:
        """Rounds enqueued whose outcome was not collected yet."""
        return len(self._underway)

    @property
    def rows_underway(self) -> int:
        """Rows of a sequence in all of them: by so much it may have grown at most."""
        return sum(entry.plan.width for entry in self._underway)

    def width_limit(self, num_members: int) -> int:
        """The most rows that each of so many members may bring to a round."""
        return min(MAX_WIDTH, MOST_ROWS // row_bucket(num_members))

    @torch.inference_mode()
    def prepare(self, widths: SequenceOf[int], lookup: bool) -> Iterator[list[LoopTime]]:
        """Record the rounds of one sequence before it is there, one for each step of the iterator, and time them.

        So that no answer waits for the compiler. Rounds of several sequences are recorded when they come for the second time.

        Args:
            widths: that a lone sequence may bring.
            lookup: whether it looks for matches.

        Yields:
            What such rounds took, with all their drafts and with none; nothing where that was not timed.
        """
        on_gpu, buckets = self._pool.device.type == "cuda", self._prepared_pages()
        sampled = SamplingParams(temperature=1.0, top_p=0.9)
        # what follows the match is drawn at random: a mixture of experts is the dearer the more experts a round visits
        text = np.random.default_rng(1).integers(0, self._model.config.vocab_size, MAX_WIDTH + 1).tolist()
        tokens = (*text, *text[:SURE_MATCH])
        for sampling in (replace(sampled, top_p=1.0), sampled):
            member = Member(key=self, tokens=tokens, reference=(), sampling=sampling, most_drafts=max(widths) - 1)
            self.start([member], 1)
            for pages in buckets:
                self._pages = np.full((1, pages), -1, np.int64)
                self._page_table().zero_()
                for width in widths:
                    key = self._key(width, lookup)
                    with self._staying():
                        self._round(key)  # compiles
                    if on_gpu:
                        self._graphs.record(key)
                    timed = on_gpu and pages == buckets[0] and not key.truncated
                    yield [self._time(key, drafts) for drafts in sorted({0, (width - 1) * lookup})] if timed else []
        self._rows = []

    @contextmanager
    def _staying(self) -> Iterator[None]:
        """Rounds of this block leave the sequences where they were."""
        lengths_S, turns_1 = self._lengths_S.clone(), self._turns_1.clone()
        yield
        self._lengths_S.copy_(lengths_S)
        self._turns_1.copy_(turns_1)

    def _time(self, key: RoundKey, drafts: int) -> LoopTime:
        """Of a recorded round with all its drafts, or none."""
        self._tell_shortest(SURE_MATCH if drafts else LONGEST_MATCH + 1)
        seconds = self._graphs.seconds(key, self._staying)
        self._tell_shortest(SURE_MATCH)
        return LoopTime(key.sequences, key.width, drafts, seconds)

    def num_prepared(self, widths: SequenceOf[int]) -> int:
        """Steps of `prepare`."""
        return 2 * len(widths) * len(self._prepared_pages())

    def learn(self, response: SequenceOf[int]) -> None:
        """A response to copy from later; the oldest ones make room."""
        if len(self._corpus_C):
            self._to_learn += [*response, SEPARATOR]

    @torch.inference_mode()
    def start(self, members: SequenceOf[Member], num_pages: int) -> None:
        """Tell the device of the sequences; no round may be underway.

        Args:
            members: at most `max_sequences`.
            num_pages: the most that one of them holds already.
        """
        assert not self._underway, "the rounds before are collected"
        self._write_corpus()
        self._num_members = len(members)
        self._turns_1.fill_(self._turn)  # a round that failed may have been counted on one side only
        size = row_bucket(len(members))
        mirrored = [*members, *[members[-1]] * (size - len(members))]
        texts = [HistoryText.of(member, self._most_reference) for member in mirrored]
        self._write_histories(texts)
        self._edits.set(mirrored)
        self._scores.set(members)
        params = [member.sampling for member in mirrored]
        vocab_size = self._model.config.vocab_size
        self._truncated = any(Kind.of(p) == Kind.TRUNCATED for p in params)
        for target, values in (
            (self._lengths_S, [len(text) for text in texts]),
            (self._offsets_S, [text.offset for text in texts]),
            (self._mirrors_S, [index >= len(members) for index in range(size)]),
            (self._most_drafts_S, [member.most_drafts for member in mirrored]),
            (self._seeds_S, [p.seed for p in params]),
            (self._temperatures_S, [1.0 if p.greedy else p.temperature for p in params]),
            (self._noisy_S, [not p.greedy for p in params]),
            (self._truncation.top_k_N, [vocab_size if p.greedy else min(p.top_k or vocab_size, vocab_size) for p in params]),
            (self._truncation.top_p_N, [1.0 if p.greedy else p.top_p for p in params]),
            (self._truncation.min_p_N, [0.0 if p.greedy else p.min_p for p in params]),
        ):
            target[:size] = torch.tensor(values, dtype=target.dtype)
        self._pages = np.full((size, self._page_bucket(size, num_pages)), -1, np.int64)

    def set_pages(self, pages: SequenceOf[SequenceOf[int]]) -> bool:
        """Tell the device of the members' pages, where there are new ones; False when this loop has no room for so many."""
        longest = max(map(len, pages))
        if longest > self._pages.shape[1]:
            return False
        known = self._pages
        changed = False
        for row, mine in zip(known, pages, strict=False):
            if row[len(mine) - 1] < 0:
                row[: len(mine)] = mine
                changed = True
        if changed:
            known[len(pages) :] = known[len(pages) - 1]
            self._upload(self._page_table(), torch.from_numpy(np.maximum(known, 0)))
        return True

    def enqueue(self, plan: LoopPlan) -> None:
        """One more round. Between two rounds of a small model there is time for little more than this."""
        key = self._key(plan.width, plan.shortest > 0)
        self._tell_shortest(plan.shortest)
        before = self._underway[-1].done if self._underway and key in self._graphs else None
        self._graphs.launch(key)
        self._turn += 1
        done = self._done[self._turn % _TURNS_KEPT] if self._done else None
        if done is not None:
            done.record()
        self._underway.append(_Underway(self._turn, self._num_members, plan, done, before))

    def collect(self) -> LoopRound:
        """The outcome of the oldest round underway; waits for it."""
        entry = self._underway.popleft()
        seconds = None
        if entry.done is not None:
            entry.done.synchronize()
            seconds = entry.before.elapsed_time(entry.done) / 1e3 if entry.before is not None else None
        width = len(Told) + 2 * entry.plan.width
        told = self._read_TX[entry.turn % _TURNS_KEPT, : entry.members * width].reshape(entry.members, width).copy()
        scores = self._scores.read(entry.turn, entry.members, entry.plan.width) if self._scores.asked else None
        return LoopRound.read(told, entry.plan, seconds, scores)

    def discard(self) -> None:
        """Forget the rounds underway. What they still write lies behind what the host knows of, and later work comes after."""
        self._underway.clear()

    def _tell_shortest(self, shortest: int) -> None:
        """In the stream's order: rounds underway still read the old one."""
        if shortest != self._shortest:
            self._shortest = shortest
            with torch.inference_mode():
                self._shortest_1.fill_(shortest)

    def _write_histories(self, texts: SequenceOf[HistoryText]) -> None:
        """Rows that hold a member's history already are moved and lengthened, others written whole."""
        history_SL, held = self._history_SL, {key: (row, length) for row, (key, length) in enumerate(self._rows)}
        sources = [held.get(text.key, (row, 0)) for row, text in enumerate(texts)]
        moved = torch.tensor([row for row, _ in sources], device=history_SL.device)
        history_SL[: len(texts)] = history_SL[moved]
        tails = [np.asarray(text.tail(known), np.int32) for text, (_, known) in zip(texts, sources, strict=True)]
        starts = [row * self._room + len(text) - len(tail) for row, (text, tail) in enumerate(zip(texts, tails, strict=True))]
        places = [np.arange(start, start + len(tail)) for start, tail in zip(starts, tails, strict=True)]
        tokens, where = (torch.from_numpy(np.concatenate(parts)).to(history_SL.device) for parts in (tails, places))
        history_SL.view(-1)[where] = tokens
        self._rows = [(text.key, len(text)) for text in texts]

    def _write_corpus(self) -> None:
        corpus_C = self._corpus_C
        new, self._to_learn = self._to_learn[-len(corpus_C) :], []
        while new:
            part = new[: len(corpus_C) - self._corpus_end]
            new = new[len(part) :]
            corpus_C[self._corpus_end : self._corpus_end + len(part)] = torch.tensor(part, dtype=torch.int32)
            self._corpus_end = (self._corpus_end + len(part)) % len(corpus_C)

    @torch.inference_mode()
    def _round(self, key: RoundKey) -> None:
        """Draft, lay out, verify, accept, commit; the outcome goes into the ring."""
        chains = self._chains(key)
        match = None
        if key.lookup:
            match = Match(*suffix_match(chains.history_SL, chains.lengths_S, chains.corpus_C, LONGEST_MATCH))
        rows = chain_rows(
            chains,
            match,
            width=key.width,
            page_size=self._pool.page_size,
            spare_slot=self._pool.spare_slot,
        )
        context = DeviceContext(_tables(rows, chains.page_table_SP), self._pool, self._windows, ())
        logits_RV = self._model.logits(self._model.forward(rows.tokens_R, context))
        logs_RV = logits_RV.log_softmax(dim=-1) if key.scored else None  # before the logits are edited
        if key.biased:
            logits_RV = self._edits.add_biases(logits_RV, rows.draws_R, key.sequences)
        if key.penalised:
            logits_RV = self._edits.penalise(logits_RV, rows.tokens_R, chains.history_SL, chains.lengths_S, chains.offsets_S)
        chosen_R, tops_R, settled_R = self._draw(key, rows, logits_RV)
        if logs_RV is not None:
            self._scores.tell(logs_RV, chosen_R, self._turns_1)
        commit_chains(chains, rows, chosen_R, tops_R, settled_R)

    def _draw(self, key: RoundKey, rows: ChainRows, logits_RV: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The target's own token after each row, the row's largest logit, and whether the token is certain (None: it is)."""
        size = key.sequences
        seeds_S, temperatures_S, noisy_S = self._seeds_S[:size], self._temperatures_S[:size], self._noisy_S[:size]
        if not key.truncated:
            return *gumbel_argmax(logits_RV, seeds_S, rows.draws_R, temperatures_S, noisy_S, early=True), None

        def of_rows(values_S: Tensor) -> Tensor:
            return values_S[:size].repeat_interleave(key.width, output_size=size * key.width)

        limits = self._truncation
        own = Truncation(top_k_N=of_rows(limits.top_k_N), top_p_N=of_rows(limits.top_p_N), min_p_N=of_rows(limits.min_p_N))
        most = min(_CANDIDATES, logits_RV.shape[1])
        scores_RV, settled_R = truncate_among(logits_RV / of_rows(temperatures_S)[:, None], own, most)
        chosen_R, _ = gumbel_argmax(scores_RV.contiguous(), seeds_S, rows.draws_R, torch.ones_like(temperatures_S), noisy_S)
        return chosen_R, logits_RV.amax(dim=-1), settled_R

    def _chains(self, key: RoundKey) -> Chains:
        """The bucket's sequences, as views."""
        size = key.sequences
        return Chains(
            history_SL=self._history_SL[:size],
            lengths_S=self._lengths_S[:size],
            offsets_S=self._offsets_S[:size],
            corpus_C=self._corpus_C,
            page_table_SP=self._page_table(),
            mirrors_S=self._mirrors_S[:size],
            most_drafts_S=self._most_drafts_S[:size],
            shortest_1=self._shortest_1,
            turns_1=self._turns_1,
            told_TX=self._told_TX,
        )

    def _key(self, width: int, lookup: bool) -> RoundKey:
        size, num_pages = self._pages.shape
        edits = self._edits
        return RoundKey(size, width, num_pages, lookup, self._truncated, edits.biased, edits.penalised, self._scores.asked)

    def _page_bucket(self, size: int, count: int) -> int:
        """Room to grow in, so that few graphs serve all lengths; few sequences hardly notice splits that are not there."""
        room = octave(count + 1) if size <= _FEW_SEQUENCES else half_octave(count + 1)
        return min(room, max(self._most_pages, count))

    def _prepared_pages(self) -> list[int]:
        """The buckets that `_page_bucket` gives for one sequence, up to some length."""
        return sorted({self._page_bucket(1, count) for count in range(1, min(self._most_pages, _PREPARED_PAGES))})

    def _page_table(self) -> Tensor:
        shape = self._pages.shape
        if shape not in self._page_tables:
            self._page_tables[shape] = torch.zeros(shape, dtype=torch.int64, device=self._pool.device)
        return self._page_tables[shape]

    @torch.inference_mode()
    def _upload(self, target: Tensor, values: Tensor) -> None:
        """Without waiting for the rounds underway, which read the old values, and before the next one, which reads the new."""
        if target.device.type == "cuda":
            values = values.pin_memory()
        target.copy_(values, non_blocking=True)


def _tables(rows: ChainRows, page_table_SP: Tensor) -> Tables:
    return Tables(
        tokens_R=rows.tokens_R,
        positions_R=rows.positions_R,
        sequences_R=rows.sequences_R,
        slots_R=rows.slots_R,
        bases_S=rows.bases_S,
        starts_S=rows.bases_S,
        page_table_SP=page_table_SP,
        ancestor_slots_RD=rows.ancestor_slots_RD,
    )
