"""What requests ask to be changed in their logits, where rounds run without the host: the edits of `sampling.edit_logits`.

Biases and bans are lists of (token, value, until which position); penalties count the tokens of the device's own histories.
Both are plain PyTorch, which a CUDA graph records, and give the bits that the host's rounds give.

Legend of shape suffixes: S sequences, R rows, W rows of a sequence, B entries of a list, L room of a history, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.loop_members import Member
from specdec.request import SamplingParams
from specdec.round.sample.sampling import penalised

MOST_BIASES = 64  # of a request; more are the host's affair
_ALWAYS = 1 << 62


class LoopEdits:
    """The lists and penalties of the sequences in the loop.

    Args:
        size: of them at most.
        vocab_size: entries for tokens beyond it are left out.
        device: where the logits are.
    """

    def __init__(self, size: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._tokens_SB = torch.zeros(size, MOST_BIASES, dtype=torch.int64, device=device)
        self._values_SB = torch.zeros(size, MOST_BIASES, device=device)
        self._until_SB = torch.zeros(size, MOST_BIASES, dtype=torch.int64, device=device)
        self._num_prompt_S = torch.zeros(size, dtype=torch.int64, device=device)
        self._repetition_S1, self._presence_S1, self._frequency_S1 = (torch.zeros(size, 1, device=device) for _ in range(3))
        self.biased = False  # whether any sequence has a list
        self.penalised = False

    def set(self, members: Sequence[Member]) -> None:
        """The sequences, padding included."""
        params = [member.sampling for member in members]
        lists = [biases(member.sampling, member.stop_ids, member.num_prompt_tokens, self._vocab_size) for member in members]
        self.biased, self.penalised = any(lists), any(p.has_penalties for p in params)
        if self.biased:
            # what fills a list up adds nothing to the first token
            padded = [[*entries, *[(0, 0.0, 0)] * (MOST_BIASES - len(entries))] for entries in lists]
            columns = [[list(column) for column in zip(*entries, strict=True)] for entries in padded]
            for target, which in ((self._tokens_SB, 0), (self._values_SB, 1), (self._until_SB, 2)):
                target[: len(members)] = torch.tensor([column[which] for column in columns], dtype=target.dtype)
        if self.penalised:
            self._num_prompt_S[: len(members)] = torch.tensor([member.num_prompt_tokens for member in members])
            for penalties_S1, name in (
                (self._repetition_S1, "repetition_penalty"),
                (self._presence_S1, "presence_penalty"),
                (self._frequency_S1, "frequency_penalty"),
            ):
                penalties_S1[: len(members), 0] = torch.tensor([float(getattr(p, name)) for p in params])

    def add_biases(self, logits_RV: Tensor, draws_R: Tensor, size: int) -> Tensor:
        """The logits of `size` sequences with their lists added, in place. draws_R: positions of the tokens to be drawn."""
        width = len(logits_RV) // size

        def of_rows(values_SB: Tensor) -> Tensor:
            return values_SB[:size].repeat_interleave(width, dim=0, output_size=len(logits_RV))

        values_RB = torch.where(draws_R[:, None] < of_rows(self._until_SB), of_rows(self._values_SB), 0.0)
        return logits_RV.scatter_add_(1, of_rows(self._tokens_SB), values_RB)

    def penalise(self, logits_RV: Tensor, tokens_R: Tensor, history_SL: Tensor, lengths_S: Tensor, offsets_S: Tensor) -> Tensor:
        """See `sampling.penalised`. A row's history ends with its own token, which lies behind that of the row before.

        history_SL, lengths_S, offsets_S: as in `Chains`; the last token of a history is that of its sequence's first row.
        """
        size, vocab_size = len(lengths_S), logits_RV.shape[1]
        width = len(logits_RV) // size
        place_L = torch.arange(history_SL.shape[1], device=history_SL.device)
        in_text_SL = (place_L >= offsets_S[:, None]) & (place_L < lengths_S[:, None])
        in_output_SL = in_text_SL & (place_L >= (offsets_S + self._num_prompt_S[:size])[:, None])
        # places outside the text count for nothing, whatever they hold
        ids_SL = torch.where(in_text_SL, history_SL, 0).long()
        zeros_SV = logits_RV.new_zeros(size, vocab_size)
        prompt_SV = zeros_SV.scatter_add(1, ids_SL, (in_text_SL & ~in_output_SL).to(zeros_SV.dtype))
        output_SV = zeros_SV.scatter_add(1, ids_SL, in_output_SL.to(zeros_SV.dtype))
        lower_WW = torch.ones(width, width, device=logits_RV.device).tril()
        lower_WW[:, 0] = 0.0
        paths_RW = tokens_R.view(size, 1, width).expand(-1, width, -1).reshape(-1, width)
        drafts_RW = lower_WW.repeat(size, 1)

        def of_rows(values: Tensor) -> Tensor:
            return values[:size].repeat_interleave(width, dim=0, output_size=len(logits_RV))

        counts_RV = of_rows(output_SV).scatter_add_(1, paths_RW, drafts_RW)
        return penalised(
            logits_RV,
            of_rows(prompt_SV) > 0,
            counts_RV,
            repetition_N1=of_rows(self._repetition_S1),
            presence_N1=of_rows(self._presence_S1),
            frequency_N1=of_rows(self._frequency_S1),
        )


def biases(
    sampling: SamplingParams, stop_ids: frozenset[int], num_prompt_tokens: int, vocab_size: int
) -> list[tuple[int, float, int]]:
    """Entries (token, value, first position that it no longer concerns) that amount to logit_bias and min_tokens."""
    found = [(token, float(bias), _ALWAYS) for token, bias in sampling.logit_bias.items()]
    if sampling.min_tokens:
        found += [(token, -torch.inf, num_prompt_tokens + sampling.min_tokens) for token in sorted(stop_ids)]
    return [entry for entry in found if entry[0] < vocab_size]


def fits(sampling: SamplingParams, stop_ids: frozenset[int]) -> bool:
    """Whether the lists have room for what a request asks; a token may stand in them once."""
    banned = stop_ids if sampling.min_tokens else frozenset()
    return len(sampling.logit_bias) + len(banned) <= MOST_BIASES and banned.isdisjoint(sampling.logit_bias)
