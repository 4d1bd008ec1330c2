"""What requests ask to be changed in their logits: biases and bans of single tokens, then penalties for tokens that stood
before.

Each row has its own path as history: the text up to the root, and the tokens of the tree on the way to the row.

Legend of shape suffixes: T tree rows, V vocabulary, S texts in memory, B entries of a list.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.kernels.linear import uses_triton
from specdec.kernels.logit_edits.reference import IN_PROMPT, edit_logits_reference
from specdec.kernels.tree_rows import TreeRows

__all__ = ["IN_PROMPT", "Edits", "edit_logits"]


@dataclass(frozen=True, slots=True)
class Edits:
    """Of each text.

    tokens_SB, values_SB, untils_SB: int64, float32, int64: a value that is added to a token's logit while the token to be drawn
    lies before a position. A token may stand in a list several times. sizes_S: int64, entries in use.
    repetition_S, presence_S, frequency_S: float32; repetition over prompt and output as in transformers, then presence and
    frequency over the output as OpenAI has them. penalised_S: bool, False where none of them changes anything.
    counts_SV: int32, how often each token stands in the output, plus IN_PROMPT where it stands in the prompt.
    """

    tokens_SB: Tensor
    values_SB: Tensor
    untils_SB: Tensor
    sizes_S: Tensor
    repetition_S: Tensor
    presence_S: Tensor
    frequency_S: Tensor
    penalised_S: Tensor
    counts_SV: Tensor


def edit_logits(logits_TV: Tensor, rows: TreeRows, edits: Edits) -> None:
    """Change the logits in place.

    Args:
        logits_TV: float32, contiguous.
        rows: the rows that they belong to.
        edits: of `rows.texts_T`.
    """
    assert logits_TV.dtype == torch.float32, logits_TV.dtype
    if uses_triton(logits_TV.device):
        from specdec.kernels.logit_edits.kernel import edit_logits_triton

        edit_logits_triton(logits_TV, rows, edits)
    else:
        edit_logits_reference(logits_TV, rows, edits)
