"""Slots: what the device knows of each sequence in work, from its admission to its end.

Rounds move tokens, lengths and counts on; the host sets the rest when a sequence enters, and its pages as they are given.
Legend of shape suffixes: S slots (one more than sequences: the spare slot), L room of a text, P pages, V vocabulary, B entries
of a list, F fields of one type.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag, auto

import numpy as np
import torch
from torch import Tensor

from specdec.arrays import IntArray
from specdec.kernels.gumbel import Keys
from specdec.kernels.logit_edits import IN_PROMPT, Edits
from specdec.kernels.tree_rows import Texts
from specdec.kernels.tree_select import MAX_NODES
from specdec.request import SamplingParams
from specdec.round.sample.draw import Sampling
from specdec.round.sample.truncation import Truncation
from specdec.round.slot_record import SlotRecord
from specdec.round.transfer import to_device, write

_FEW_ENTRIES = 64  # of a list; the lists of all slots grow when a request brings more
_ALWAYS = 1 << 62  # a position that no token reaches


class Needs(IntFlag):
    """Steps of a round that a slot's parameters ask for."""

    TRUNCATED = auto()
    WIDE = auto()  # its nucleus was found too wide for `Nucleus.NARROW`
    EDITED = auto()
    SCORED = auto()
    RESTRICTED = auto()  # it may not use every drafter
    PROMPT_SCORED = auto()  # while it reads its prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Occupant:
    """A sequence as it enters a slot.

    tokens: prompt and output; the last one is the root of its first tree. stop_ids: forbidden before min_tokens. position:
    leading tokens whose cache is known. mark: see `CacheKind.enter`. prediction_ids: text that the caller expects.
    """

    tokens: Sequence[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    stop_ids: frozenset[int]
    pages: Sequence[int]
    position: int = 0
    mark: int | None = None
    prediction_ids: Sequence[int] = ()


class Slots:
    """The state of all slots.

    Args:
        num_slots: sequences at once.
        max_model_len: positions of one.
        page_size: tokens per page.
        spare_page: what stands in a table for a page that is not held.
        vocab_size: of the logits.
        device: where everything lies.
    """

    def __init__(
        self, num_slots: int, max_model_len: int, page_size: int, spare_page: int, vocab_size: int, device: torch.device
    ) -> None:
        self._spare_page = spare_page
        self.num_slots = num_slots
        self.spare = num_slots
        self.max_pages = -(-max_model_len // page_size)
        self.page_size = page_size
        self._vocab_size = vocab_size
        self._device = device
        size = num_slots + 1
        room = self.max_pages * page_size + MAX_NODES

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return _lazy_zeros(shape, dtype, device)

        self.texts = Texts(
            zeros(size, room, dtype=torch.int32),
            torch.ones(size, dtype=torch.int64, device=device),
            zeros(size, self.max_pages).fill_(spare_page),
        )
        # one row for each field, one column for each slot
        self._ints_FS, self._floats_FS, self._doubles_FS = (
            zeros(4, size),
            zeros(4, size, dtype=torch.float32),
            zeros(2, size, dtype=torch.float64),
        )
        self._bools_FS = zeros(4, size, dtype=torch.bool)
        seeds_S, top_k_S, sizes_S, self.allowed_S = self._ints_FS
        temperatures_S, repetition_S, presence_S, frequency_S = self._floats_FS
        top_p_S, min_p_S = self._doubles_FS
        # the spare slot draws like any other
        for values_S, neutral in ((top_k_S, vocab_size), (temperatures_S, 1), (repetition_S, 1), (top_p_S, 1)):
            values_S.fill_(neutral)
        noisy_S, truncated_S, penalised_S, scored_S = self._bools_FS
        self._edit_fields = {
            "sizes_S": sizes_S,
            "repetition_S": repetition_S,
            "presence_S": presence_S,
            "frequency_S": frequency_S,
            "penalised_S": penalised_S,
            "counts_SV": zeros(size, vocab_size, dtype=torch.int32),
        }
        self._lists = self._make_lists(_FEW_ENTRIES)
        self._record = self._make_record()
        self._sampling = {
            "keys": Keys(seeds_S, temperatures_S, noisy_S),
            "truncation": Truncation(top_k_N=top_k_S, top_p_N=top_p_S, min_p_N=min_p_S),
            "truncated_S": truncated_S,
            "scored_S": scored_S,
            "ones_S": torch.ones(size, dtype=torch.float32, device=device),
        }
        self.needs: IntArray = np.zeros(size, np.int64)  # `Needs`; the host keeps it, to choose the steps of a round

    @property
    def sampling(self) -> Sampling:
        """The sampling parameters of all slots. Made anew when lists have grown."""
        return Sampling(edits=Edits(*self._lists, **self._edit_fields), **self._sampling)

    @property
    def list_room(self) -> int:
        """Entries that each list has room for; recorded rounds know the lists of one size."""
        return self._lists[0].shape[1]

    def enter(self, slot: int, occupant: Occupant, allowed: int, restricted: bool) -> None:
        """A sequence takes a slot; what is underway still reads what was there.

        Args:
            slot: free.
            occupant: the sequence.
            allowed: bits of the drafters that it may use.
            restricted: whether some are missing.
        """
        sampling, size = occupant.sampling, self._vocab_size
        entries = _biases(occupant, size)
        truncated = not sampling.greedy and (sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0)
        write(self.texts.tokens_SL[slot, : len(occupant.tokens)], np.array(occupant.tokens, np.int32))
        if len(entries) > self.list_room:
            self._grow_lists(len(entries))
        pages = np.full(self.max_pages, self._spare_page, np.int64)
        pages[: len(occupant.pages)] = occupant.pages
        top_k = min(sampling.top_k or size, size) if truncated else size
        temperature = 1.0 if sampling.greedy else sampling.temperature
        self._record.write(
            slot,
            [
                [len(occupant.tokens)],
                pages,
                [sampling.seed, top_k, len(entries), allowed],
                [temperature, sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty],
                [sampling.top_p, sampling.min_p] if truncated else [1.0, 0.0],
                [not sampling.greedy, truncated, sampling.has_penalties, sampling.logprobs is not None],
                *(zip(*entries, strict=True) if entries else ((), (), ())),
            ],
        )
        if sampling.has_penalties:
            self._count(slot, occupant)
        self.needs[slot] = (
            Needs.TRUNCATED * truncated
            | Needs.EDITED * (bool(entries) or sampling.has_penalties)
            | Needs.SCORED * (sampling.logprobs is not None)
            | Needs.RESTRICTED * restricted
            | Needs.PROMPT_SCORED * (sampling.prompt_logprobs is not None)
        )

    def set_pages(self, slots: Sequence[int], indices: Sequence[int], pages: Sequence[int]) -> None:
        """The page of some places in some slots' tables."""
        if len(pages):
            places = np.asarray(slots, np.int64) * self.max_pages + np.asarray(indices, np.int64)
            where, what = to_device(np.concatenate((places, np.asarray(pages, np.int64))), self._device).view(2, -1)
            self.texts.pages_SP.view(-1).index_copy_(0, where, what)

    def _make_record(self) -> SlotRecord:
        """Of all that is written whenever a sequence enters, but its text, whose length differs."""
        fields = (self._ints_FS, self._floats_FS, self._doubles_FS, self._bools_FS)
        texts = (self.texts.lengths_S[:, None], self.texts.pages_SP)
        return SlotRecord(
            [*((each, 0) for each in texts), *((each, 1) for each in fields), *((each, 0) for each in self._lists)]
        )

    def _grow_lists(self, entries: int) -> None:
        grown = self._make_lists(1 << (entries - 1).bit_length())
        for old, new in zip(self._lists, grown, strict=True):
            new[:, : old.shape[1]] = old
        self._lists = grown
        self._record = self._make_record()

    def _make_lists(self, room: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, values and positions up to which they apply."""
        shape = (self.num_slots + 1, room)
        tokens, untils = (torch.zeros(shape, dtype=torch.int64, device=self._device) for _ in range(2))
        return tokens, torch.zeros(shape, device=self._device), untils

    def _count(self, slot: int, occupant: Occupant) -> None:
        tokens = np.asarray(occupant.tokens, np.int64)
        prompt, output = np.split(tokens, [occupant.num_prompt_tokens])
        counts = np.bincount(output, minlength=self._vocab_size) + IN_PROMPT * (
            np.bincount(prompt, minlength=self._vocab_size) > 0
        )
        write(self._edit_fields["counts_SV"][slot], counts.astype(np.int32))


def _biases(occupant: Occupant, vocab_size: int) -> list[tuple[int, float, int]]:
    """Entries (token, value, first position that it no longer concerns) that amount to logit_bias,
    suppress_tokens and min_tokens."""
    sampling = occupant.sampling
    found = [(token, float(bias), _ALWAYS) for token, bias in sampling.logit_bias.items()]
    found += [(token, -float("inf"), _ALWAYS) for token in sampling.suppress_tokens]
    if sampling.min_tokens:
        until = occupant.num_prompt_tokens + sampling.min_tokens
        found += [(token, -float("inf"), until) for token in sorted(occupant.stop_ids)]
    return [entry for entry in found if entry[0] < vocab_size]


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the CPU the system hands out zero pages as they are touched."""
    if device.type == "cpu":
        return torch.from_numpy(np.zeros(shape, np.dtype(str(dtype).removeprefix("torch."))))
    return torch.zeros(shape, dtype=dtype, device=device)
