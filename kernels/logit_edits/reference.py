"""Reference of the edits, in plain PyTorch; see the package for the legend. Rows that ask for nothing are not touched."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specdec.kernels.tree_rows import TreeRows

if TYPE_CHECKING:
    from specdec.kernels.logit_edits import Edits

IN_PROMPT = 1 << 24  # in the counts, beside how often a token stands in the output


def edit_logits_reference(logits_TV: Tensor, rows: TreeRows, edits: "Edits") -> None:
    """As `specdec.kernels.logit_edits.edit_logits`."""
    for row in ((edits.sizes_S > 0) | edits.penalised_S)[rows.texts_T].nonzero()[:, 0].tolist():
        text = int(rows.texts_T[row])
        size = int(edits.sizes_S[text])
        applies_B = rows.positions_T[row] + 1 < edits.untils_SB[text, :size]
        values_B = torch.where(applies_B, edits.values_SB[text, :size], 0.0)
        logits_TV[row].index_add_(0, edits.tokens_SB[text, :size], values_B)
        if edits.penalised_S[text]:
            logits_TV[row] = _penalised(logits_TV[row], _counts(rows, edits, row, text), edits, text)


def _counts(rows: TreeRows, edits: "Edits", row: int, text: int) -> Tensor:
    """int32 [V]: as `Edits.counts_SV`, the row's path counted as output; the root is in the text already."""
    path = rows.ancestors_TD[row, 1 : int(rows.depths_T[row]) + 1]
    counts_V = edits.counts_SV[text].clone()
    return counts_V.index_add_(0, rows.tokens_T[path], torch.ones_like(path, dtype=counts_V.dtype))


def _penalised(logits_V: Tensor, counts_V: Tensor, edits: "Edits", text: int) -> Tensor:
    repetition, presence, frequency = edits.repetition_S[text], edits.presence_S[text], edits.frequency_S[text]
    output_V = (counts_V % IN_PROMPT).float()
    damped_V = torch.where(logits_V > 0, logits_V / repetition, logits_V * repetition)
    logits_V = torch.where(counts_V > 0, damped_V, logits_V)
    return logits_V - (frequency * output_V + presence * (output_V > 0))
