"""Biases, bans and penalties, held to a plain reading of what the API asks for; and the kernel to the reference."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.draft.tree import DraftTree
from specdec.kernels.logit_edits import IN_PROMPT, Edits, edit_logits
from specdec.kernels.logit_edits.reference import edit_logits_reference
from tests.kernels.conftest import Forest, forest, moved, same

kernel = pytest.importorskip("specdec.kernels.logit_edits.kernel")

VOCAB, ROOM = 60, 6
ALWAYS = 1 << 62
# repeats the prompt and itself along its paths
TREE = DraftTree(torch.tensor([11, 7, 3, 7, 3, 8, 11]).numpy(), torch.tensor([0, 0, 0, 1, 1, 4, 3]).numpy())
LENGTHS = [9, 12, 7, 7, 9]
PROMPT = 4  # tokens of each text; the rest is output
ASKED: list[dict[str, Any]] = [
    {"bias": [(3, 5.0, ALWAYS), (7, -100.0, ALWAYS)]},
    {"repetition": 1.3, "presence": 0.5, "frequency": -0.7},
    {},
    {"bias": [(8, 4.0, ALWAYS), (3, -torch.inf, 9), (11, -torch.inf, 8), (8, 0.25, ALWAYS)], "frequency": 1.5},
    {"presence": -2.0, "repetition": 0.8},
]


def edits_of(f: Forest) -> Edits:
    """What members ask for, in the order of `ASKED`."""
    size = len(f.texts.lengths_S)
    lists = torch.zeros(size, ROOM, dtype=torch.int64), torch.zeros(size, ROOM), torch.zeros(size, ROOM, dtype=torch.int64)
    sizes, penalised = torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.bool)
    repetition, presence, frequency = torch.ones(size), torch.zeros(size), torch.zeros(size)
    counts = torch.zeros(size, VOCAB, dtype=torch.int32)
    for member, asked in enumerate(ASKED):
        text = int(f.layout.texts_M[member])
        entries = asked.get("bias", [])
        sizes[text] = len(entries)
        for place, entry in enumerate(entries):
            for values, value in zip(lists, entry, strict=True):
                values[text, place] = value
        repetition[text] = asked.get("repetition", 1.0)
        presence[text], frequency[text] = asked.get("presence", 0.0), asked.get("frequency", 0.0)
        penalised[text] = bool({"repetition", "presence", "frequency"} & set(asked))
        tokens = f.texts.tokens_SL[text, : int(f.texts.lengths_S[text])].long()
        counts[text] = torch.bincount(tokens[PROMPT:], minlength=VOCAB).int()
        counts[text, list(set(tokens[:PROMPT].tolist()))] += IN_PROMPT
    return Edits(*lists, sizes, repetition, presence, frequency, penalised, counts)


def round_of_all(surplus: int = 0) -> tuple[Forest, Edits, Tensor]:
    f = forest([TREE] * len(ASKED), LENGTHS, surplus=surplus)
    logits = 3 * torch.randn(len(f.rows().tokens_T), VOCAB, generator=torch.Generator().manual_seed(1))
    logits[3, 5], logits[9] = torch.nan, torch.nan
    return f, edits_of(f), logits


def by_hand(logits_V: Tensor, asked: dict[str, Any], prompt: list[int], output: list[int]) -> Tensor:
    """One row, token by token: `output` ends with the row's own token."""
    scores = logits_V.clone()
    for token, bias, until in asked.get("bias", []):
        if len(prompt) + len(output) < until:
            scores[token] += bias
    for token in {*prompt, *output}:
        # as transformers: towards -inf whatever the sign
        repetition = torch.tensor(asked.get("repetition", 1.0))
        scores[token] = scores[token] / repetition if scores[token] > 0 else scores[token] * repetition
    for token in set(output):
        # as OpenAI: mu[j] - c[j] * frequency - (c[j] > 0) * presence
        penalty = torch.tensor(asked.get("frequency", 0.0)) * output.count(token) + asked.get("presence", 0.0)
        scores[token] = scores[token] - penalty
    return scores


@pytest.mark.parametrize("member", range(len(ASKED)))
def test_logits_are_edited_as_the_api_says_each_row_by_its_own_path(member: int) -> None:
    f, edits, logits = round_of_all()
    text, first = int(f.layout.texts_M[member]), int(f.layout.firsts_M[member])
    words = f.texts.tokens_SL[text, : LENGTHS[member]].tolist()
    edited = logits.clone()
    edit_logits(edited, f.rows(), edits)
    for node in range(len(TREE)):
        drafts = [int(TREE.tokens[step]) for step in TREE.path(node)[1:]]
        expected = by_hand(logits[first + node], ASKED[member], words[:PROMPT], words[PROMPT:] + drafts)
        assert same(edited[first + node], expected), f"node {node}"


def test_who_asks_for_nothing_keeps_every_bit() -> None:
    f, edits, logits = round_of_all()
    edited = logits.clone()
    edit_logits(edited, f.rows(), edits)
    own = f.rows().trees_T == 2
    assert torch.equal(edited[own], logits[own])


def test_a_row_is_edited_alike_alone() -> None:
    f, edits, logits = round_of_all(surplus=1)
    together = logits.clone()
    edit_logits(together, f.rows(), edits)
    for member in range(len(ASKED)):
        first = int(f.layout.firsts_M[member])
        own = slice(first, first + len(TREE))
        alone = logits[own].clone()
        edit_logits(alone, f.alone(member).rows(), edits)
        assert same(alone, together[own])


@pytest.mark.parametrize("vocab", [VOCAB, 1024, 1500])
def test_the_kernel_edits_as_the_reference_does(vocab: int, kernel_device: torch.device) -> None:
    f, edits, _ = round_of_all(surplus=2)
    counts = torch.zeros(len(edits.counts_SV), vocab, dtype=torch.int32)
    counts[:, :VOCAB] = edits.counts_SV
    edits = replace(edits, counts_SV=counts)
    rows = f.rows()
    logits = 3 * torch.randn(len(rows.tokens_T), vocab, generator=torch.Generator().manual_seed(vocab))
    logits[1, 3], logits[2, 4], logits[4] = torch.nan, torch.inf, -torch.inf
    found = logits.clone().to(kernel_device)
    kernel.edit_logits_triton(found, *moved((rows, edits), kernel_device))
    edit_logits_reference(logits, rows, edits)
    assert same(found, logits)
