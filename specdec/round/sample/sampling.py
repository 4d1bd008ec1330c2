"""From the target's logits to its tokens, node by node: each node has its own path as history.

Order: logit_bias, the ban of stop tokens (min_tokens), penalties, temperature, top_k, top_p, min_p. Then the token is
argmax(logit / T + g(seed, position, token)) over what is left, at T = 0 plain argmax; ties go to the lower token.
Every step is row by row: the bits of a row depend on that row, its history and its request alone.

Shape suffixes: T tree rows, N any rows, V vocabulary, S sequences, D depth, K candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from specdec.kernels.gumbel import gumbel_argmax
from specdec.kernels.linear import uses_triton
from specdec.request import SamplingParams
from specdec.round.batch import TreeRows
from specdec.round.sample.candidates import Keys, Truncation, race, sort_descending, truncate
from specdec.round.sample.noise import Domain


@dataclass(frozen=True, slots=True)
class SamplingEntry:
    """What sampling needs to know of one sequence. `tokens` is its prompt and output, the root of its tree last."""

    sampling: SamplingParams
    seed: int
    tokens: Sequence[int]
    num_prompt_tokens: int
    stop_ids: frozenset[int]  # forbidden while the output is shorter than min_tokens

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens


class Kind(IntEnum):
    """How a row's token is found once its logits are edited."""

    GREEDY = 0
    FREE = 1  # from all of the vocabulary
    TRUNCATED = 2

    @staticmethod
    def of(sampling: SamplingParams) -> "Kind":
        if sampling.greedy:
            return Kind.GREEDY
        whole = sampling.top_k == 0 and sampling.top_p == 1.0 and sampling.min_p == 0.0
        return Kind.FREE if whole else Kind.TRUNCATED


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """The sequences of a round, in the order of their trees, and their parameters as tensors."""

    entries: tuple[SamplingEntry, ...]
    kinds: tuple[Kind, ...]
    seeds_S: Tensor  # int64
    temperatures_S: Tensor  # float32; 1 where greedy
    noisy_S: Tensor  # bool; False where greedy
    truncation: Truncation  # [S]

    @staticmethod
    def build(entries: Sequence[SamplingEntry], vocab_size: int, device: torch.device | str) -> "SamplingBatch":
        """Gather the parameters of a round."""
        params = [entry.sampling for entry in entries]
        return SamplingBatch(
            entries=tuple(entries),
            kinds=tuple(Kind.of(p) for p in params),
            seeds_S=torch.tensor([entry.seed for entry in entries], dtype=torch.int64, device=device),
            temperatures_S=_temperatures(params, device),
            noisy_S=torch.tensor([not p.greedy for p in params], device=device),
            truncation=_truncation(params, vocab_size, device),
        )

    def rows_of(self, kind: Kind, tree: TreeRows) -> Tensor | None:
        """The tree rows of one kind, None where there are none."""
        if kind not in self.kinds:
            return None
        is_kind_S = torch.tensor([k == kind for k in self.kinds], device=tree.sequences_T.device)
        return is_kind_S[tree.sequences_T].nonzero()[:, 0]

    def keys(self, tree: TreeRows, domain: Domain = Domain.TARGET) -> Keys:
        """The noise that belongs to the token after each tree row."""
        return Keys(seeds_N=self.seeds_S[tree.sequences_T], positions_N=tree.positions_T + 1, domain=domain)


def _temperatures(params: Sequence[SamplingParams], device: torch.device | str) -> Tensor:
    return torch.tensor([1.0 if p.greedy else p.temperature for p in params], device=device)


def _truncation(params: Sequence[SamplingParams], vocab_size: int, device: torch.device | str) -> Truncation:
    return Truncation(
        top_k_N=torch.tensor([min(p.top_k or vocab_size, vocab_size) for p in params], device=device),
        top_p_N=torch.tensor([p.top_p for p in params], dtype=torch.float64, device=device),
        min_p_N=torch.tensor([p.min_p for p in params], dtype=torch.float64, device=device),
    )


def choose(tree: TreeRows, logits_TV: Tensor, batch: SamplingBatch) -> Tensor:
    """The target's own token after each tree row, int64 [T]: a function of the row, its history, its request and its position.

    Args:
        tree: the rows.
        logits_TV: float32, raw.
        batch: the sequences' parameters.
    """
    logits_TV = edit_logits(tree, logits_TV, batch)
    if uses_triton(logits_TV.device):
        return _choose_on_device(tree, logits_TV, batch)
    if all(kind == Kind.GREEDY for kind in batch.kinds):
        return logits_TV.argmax(dim=-1)
    chosen_T = torch.empty_like(tree.tokens_T)
    keys = batch.keys(tree)
    for kind in Kind:
        rows = batch.rows_of(kind, tree)
        if rows is None:
            continue
        chosen = logits_TV if len(rows) == len(logits_TV) else logits_TV[rows]
        if kind == Kind.GREEDY:
            chosen_T[rows] = chosen.argmax(dim=-1)
            continue
        sequences = tree.sequences_T[rows]
        scores = chosen / batch.temperatures_S[sequences, None]
        if kind == Kind.TRUNCATED:
            scores = truncate(scores, batch.truncation.of(sequences))
        chosen_T[rows] = race(scores, keys.of(rows))[1][:, 0]
    return chosen_T


def _choose_on_device(tree: TreeRows, logits_TV: Tensor, batch: SamplingBatch) -> Tensor:
    """`choose` as few kernels that the host need not wait for, where no request truncates."""
    temperatures_T = batch.temperatures_S[tree.sequences_T]
    truncated = batch.rows_of(Kind.TRUNCATED, tree)
    if truncated is not None:
        logits_TV = logits_TV / temperatures_T[:, None]
        logits_TV[truncated] = truncate(logits_TV[truncated], batch.truncation.of(tree.sequences_T[truncated]))
        temperatures_T = torch.ones_like(temperatures_T)
    keys = batch.keys(tree)
    return gumbel_argmax(logits_TV, keys.seeds_N, keys.positions_N, temperatures_T, batch.noisy_S[tree.sequences_T])[0]


def probabilities(tree: TreeRows, logits_TV: Tensor, batch: SamplingBatch) -> Tensor:
    """The distribution that `choose` draws from at each tree row, float64 [T, V]; one-hot where greedy."""
    logits_TV = edit_logits(tree, logits_TV, batch)
    scores_TV = logits_TV / batch.temperatures_S[tree.sequences_T, None]
    greedy = batch.rows_of(Kind.GREEDY, tree)
    if greedy is not None:
        best_N1 = logits_TV[greedy].argmax(dim=-1, keepdim=True)
        scores_TV[greedy] = torch.full_like(logits_TV[greedy], -torch.inf).scatter(1, best_N1, 0.0)
    truncated = batch.rows_of(Kind.TRUNCATED, tree)
    if truncated is not None:
        scores_TV[truncated] = truncate(scores_TV[truncated], batch.truncation.of(tree.sequences_T[truncated]))
    return scores_TV.double().softmax(dim=-1)


def edit_logits(tree: TreeRows, logits_TV: Tensor, batch: SamplingBatch) -> Tensor:
    """logit_bias, min_tokens and penalties; the place for anything else that forbids tokens per node, such as a grammar's mask.

    Gives `logits_TV` itself where no request asks for any.
    """
    edited_TV = logits_TV
    for index, entry in enumerate(batch.entries):
        p = entry.sampling
        banned = entry.num_output_tokens < p.min_tokens and bool(entry.stop_ids)
        if not (p.logit_bias or banned or p.has_penalties):
            continue
        if edited_TV is logits_TV:
            edited_TV = logits_TV.clone()
        rows = (tree.sequences_T == index).nonzero()[:, 0]
        rows_NV = edited_TV[rows]
        depths_N = tree.depths_T[rows]
        if p.logit_bias:
            _add_bias(rows_NV, p)
        if banned:
            _ban_stops(rows_NV, entry, depths_N)
        if p.has_penalties:
            ancestors_ND = tree.ancestors_TD[rows]
            rows_NV = _penalise(rows_NV, entry, tree.tokens_T[ancestors_ND], depths_N)
        edited_TV[rows] = rows_NV
    return edited_TV


def _add_bias(logits_NV: Tensor, sampling: SamplingParams) -> None:
    known = {token: bias for token, bias in sampling.logit_bias.items() if token < logits_NV.shape[1]}
    tokens = torch.tensor(list(known), dtype=torch.int64, device=logits_NV.device)
    logits_NV[:, tokens] += torch.tensor(list(known.values()), dtype=torch.float32, device=logits_NV.device)


def _ban_stops(logits_NV: Tensor, entry: SamplingEntry, depths_N: Tensor) -> None:
    """Forbid stop tokens at nodes whose path leaves the output shorter than min_tokens."""
    stops = [token for token in sorted(entry.stop_ids) if token < logits_NV.shape[1]]
    tokens = torch.tensor(stops, dtype=torch.int64, device=logits_NV.device)
    short_N1 = (entry.num_output_tokens + depths_N < entry.sampling.min_tokens)[:, None]
    logits_NV[:, tokens] = logits_NV[:, tokens].masked_fill(short_N1, -torch.inf)


def _penalise(logits_NV: Tensor, entry: SamplingEntry, paths_ND: Tensor, depths_N: Tensor) -> Tensor:
    """Repetition over prompt and output as in transformers, then presence and frequency over the output as OpenAI has them.

    Args:
        logits_NV: the rows of one sequence.
        entry: the sequence.
        paths_ND: the tokens of each row's path, the root's first; what lies beyond the row's own depth is void.
        depths_N: the rows' depths.
    """
    p, vocab_size = entry.sampling, logits_NV.shape[1]
    tokens = np.asarray(entry.tokens, np.int64)
    prompt, output = (
        torch.from_numpy(np.bincount(part, minlength=vocab_size)) for part in np.split(tokens, [entry.num_prompt_tokens])
    )
    on_path_ND = torch.arange(paths_ND.shape[1], device=paths_ND.device)
    on_path_ND = ((on_path_ND > 0) & (on_path_ND <= depths_N[:, None])).float()
    counts_NV = output.to(logits_NV).repeat(len(logits_NV), 1).scatter_add_(1, paths_ND, on_path_ND)
    return penalised(
        logits_NV,
        prompt.to(logits_NV.device) > 0,
        counts_NV,
        repetition_N1=logits_NV.new_full((len(logits_NV), 1), p.repetition_penalty),
        presence_N1=logits_NV.new_full((len(logits_NV), 1), p.presence_penalty),
        frequency_N1=logits_NV.new_full((len(logits_NV), 1), p.frequency_penalty),
    )


def penalised(
    logits_NV: Tensor,
    in_prompt_NV: Tensor,
    counts_NV: Tensor,
    *,
    repetition_N1: Tensor,
    presence_N1: Tensor,
    frequency_N1: Tensor,
) -> Tensor:
    """Logits with the penalties of each row, float32. counts_NV: how often a token stands in the row's output, float32.

    The penalties are tensors, not numbers: by a number PyTorch divides on a GPU as a product with its inverse.
    """
    seen_NV = (counts_NV > 0) | in_prompt_NV
    damped_NV = torch.where(logits_NV > 0, logits_NV / repetition_N1, logits_NV * repetition_N1)
    logits_NV = torch.where(seen_NV, damped_NV, logits_NV)
    return logits_NV - (frequency_N1 * counts_NV + presence_N1 * (counts_NV > 0))


def shared_noise_topk(
    logits_NV: Tensor, sampling: Sequence[SamplingParams], seeds: Sequence[int], positions_N: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """A drafter's best guesses of what the target will draw: its own top k of log q + g, with the target's own noise.

    Greedy rows rank by log q alone. Filters apply, the edits of `edit_logits` do not. Only for acceptance rules or trees that
    do not claim to have sampled the children: ranked like this they are a fixed choice.

    Args:
        logits_NV: float32, the drafter's.
        sampling: per row.
        seeds: per row.
        positions_N: int64, absolute position of the token that is guessed.
        k: guesses per row, at most the vocabulary.

    Returns:
        tokens int64 [N, k], best first, and their log q (temperature applied, before filters) float32 [N, k]; -inf in places
        that the filters leave no token for.
    """
    device = logits_NV.device
    scores_NV = logits_NV / _temperatures(sampling, device)[:, None]
    truncation = _truncation(sampling, logits_NV.shape[1], device)
    keys = Keys(seeds_N=torch.tensor(list(seeds), dtype=torch.int64, device=device), positions_N=positions_N)
    kinds = [Kind.of(p) for p in sampling]
    sums_Nk = scores_NV.new_empty(len(scores_NV), k)
    tokens_Nk = torch.empty_like(sums_Nk, dtype=torch.int64)
    for kind in set(kinds):
        rows = torch.tensor([i for i, other in enumerate(kinds) if other == kind], device=device)
        chosen = truncate(scores_NV[rows], truncation.of(rows)) if kind == Kind.TRUNCATED else scores_NV[rows]
        ranked = sort_descending(chosen, k) if kind == Kind.GREEDY else race(chosen, keys.of(rows), k)
        sums_Nk[rows], tokens_Nk[rows] = ranked
    log_q_Nk = scores_NV.log_softmax(dim=-1).gather(1, tokens_Nk)
    return tokens_Nk, log_q_Nk.masked_fill(sums_Nk == -torch.inf, -torch.inf)


def logprobs(logits_NV: Tensor, tokens_N: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """log p of some tokens and of the most likely ones, under the model's raw distribution: before any sampling parameter,
    temperature included.

    Returns:
        float32 [N]; int64 [N, top] and float32 [N, top], most likely first.
    """
    return read_logs(logits_NV.log_softmax(dim=-1), tokens_N, top)


def read_logs(logs_NV: Tensor, tokens_N: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same from the log p of all tokens."""
    top_logs_NK, top_tokens_NK = sort_descending(logs_NV, top) if top else (logs_NV[:, :0], tokens_N.new_empty(len(logs_NV), 0))
    return logs_NV.gather(1, tokens_N[:, None])[:, 0], top_tokens_NK, top_logs_NK


def finite_rows(logits_NV: Tensor) -> Tensor:
    """bool [N]: rows that a token can be drawn from. A NaN, an infinity or nothing but -inf spoils its row only."""
    return torch.isfinite(logits_NV.amax(dim=-1))
