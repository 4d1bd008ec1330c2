"""Triton edits: a block of the vocabulary of one row per program, most of which have nothing to do; see the package."""

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from specdec.kernels.logit_edits.reference import IN_PROMPT
from specdec.kernels.tree_rows import TreeRows

if TYPE_CHECKING:
    from specdec.kernels.logit_edits import Edits

_BLOCK = 1024


@triton.jit(do_not_specialize=["B", "D"])
def _edit_kernel(
    p_logits,
    p_rows_texts,
    p_rows_positions,
    p_rows_depths,
    p_rows_tokens,
    p_ancestors,
    p_tokens,
    p_values,
    p_untils,
    p_sizes,
    p_repetition,
    p_presence,
    p_frequency,
    p_penalised,
    p_counts,
    V,
    B,
    D,
    BLOCK: tl.constexpr,
    IN_PROMPT: tl.constexpr,
):
    """Grid (rows, blocks of the vocabulary)."""
    row = tl.program_id(0).to(tl.int64)
    text = tl.load(p_rows_texts + row)
    size = tl.load(p_sizes + text)
    penalised = tl.load(p_penalised + text) != 0
    if (size == 0) & (penalised == 0):
        return
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_v = v < V
    logit = tl.load(p_logits + row * V + v, m_v, other=0.0)
    drawn = tl.load(p_rows_positions + row) + 1
    for entry in range(size):
        at = text * B + entry
        value = tl.where(drawn < tl.load(p_untils + at), tl.load(p_values + at), 0.0)
        logit = tl.where(v == tl.load(p_tokens + at), logit + value, logit)
    if penalised:
        counts = tl.load(p_counts + text * V + v, m_v, other=0)
        depth = tl.load(p_rows_depths + row)
        for d in range(1, depth + 1):
            token = tl.load(p_rows_tokens + tl.load(p_ancestors + row * D + d))
            counts += (v == token).to(tl.int32)
        output = (counts % IN_PROMPT).to(tl.float32)
        repetition = tl.load(p_repetition + text)
        divided = tl.div_rn(logit, tl.zeros_like(logit) + repetition)
        damped = tl.where(logit > 0.0, divided, logit * repetition)
        logit = tl.where(counts > 0, damped, logit)
        presence = tl.where(output > 0.0, tl.load(p_presence + text), 0.0)
        logit = logit - (tl.load(p_frequency + text) * output + presence)
    tl.store(p_logits + row * V + v, logit, m_v)


def edit_logits_triton(logits_TV: Tensor, rows: TreeRows, edits: "Edits") -> None:
    """As `specdec.kernels.logit_edits.edit_logits`."""
    num_rows, vocab_size = logits_TV.shape
    _edit_kernel[(num_rows, triton.cdiv(vocab_size, _BLOCK))](
        logits_TV,
        rows.texts_T,
        rows.positions_T,
        rows.depths_T,
        rows.tokens_T,
        rows.ancestors_TD,
        edits.tokens_SB,
        edits.values_SB,
        edits.untils_SB,
        edits.sizes_S,
        edits.repetition_S,
        edits.presence_S,
        edits.frequency_S,
        edits.penalised_S,
        edits.counts_SV,
        vocab_size,
        edits.tokens_SB.shape[1],
        rows.ancestors_TD.shape[1],
        _BLOCK,
        IN_PROMPT,
        enable_fp_fusion=False,
    )
