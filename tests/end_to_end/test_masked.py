"""Masked means absent: whatever a row must not see may hold NaN or infinity, and no bit changes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.cache.attention import AttentionCache
from specdec.llm import LLM
from tests.end_to_end.conftest import ALL_DRAFTERS, Pool, Stage, hold, traffic


def unseen(llm: LLM) -> Tensor:
    """bool [pages, page size]: entries that hold nothing of a text: stale and free pages, what lies behind the last computed
    position of a sequence, rejected drafts, scratch entries, the spare page."""
    engine = llm.engine
    scheduler, room = engine._scheduler, engine._round.caches.room
    hidden = torch.ones(room.num_pages + 1, room.page_size, dtype=torch.bool)
    hidden[list(scheduler.pages._idle)] = False
    lengths = engine._round.slots.texts.lengths_S.tolist()
    for sequence in scheduler.running:
        reads = sequence.num_enqueued < sequence.prompt_end
        known = sequence.num_enqueued if reads else lengths[sequence.slot] - 1
        positions = torch.arange(known)
        hidden[torch.tensor(sequence.pages)[positions // room.page_size], positions % room.page_size] = False
    return hidden


def poison(llm: LLM, value: float) -> int:
    """Fill all that no row may see; how many entries that are."""
    hidden = unseen(llm).to(llm.engine._round.slots.texts.lengths_S.device)
    with torch.inference_mode():
        for kind in llm.engine._round.caches._kinds:
            assert isinstance(kind, AttentionCache)
            for store in kind._stores:
                store.masked_fill_(hidden[None, :, None, :, None], value)
    return int(hidden.sum())


@pytest.mark.parametrize(
    "fields",
    [
        {"chunk_tokens": 20, "depth": 1},
        {"drafters": ALL_DRAFTERS, "adaptive": False, "depth": 0},
        {"drafters": ("lookahead", "adversarial"), "adaptive": False, "pages": 20, "chunk_tokens": 20, "depth": 1},
        {"drafters": ("draft-model",), "adaptive": False, "pages": 40, "depth": 0},
    ],
    ids=["plain", "trees", "few pages", "draft model"],
)
def test_what_is_not_seen_changes_no_bit(
    stage: Stage,
    pool: Pool,
    fields: dict[str, Any],
    tiny_checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Everything is poisoned anew before each step."""
    if fields.get("drafters") == ("draft-model",):
        fields = fields | {"draft_model": str(tiny_checkpoint("llama", seed=1, num_hidden_layers=2))}
    llm = stage.llm(pool.oracle, **fields)
    step, filled = llm.engine.step, list[int]()

    def poisoned_step() -> bool:
        filled.append(poison(llm, (math.nan, math.inf, -math.inf)[len(filled) % 3]))
        return step()

    monkeypatch.setattr(llm.engine, "step", poisoned_step)
    wanted = pool.requests[1::5]
    for name, completion in traffic(llm, {0: wanted[:4], 5: wanted[4:]}).items():
        hold(completion, pool.expected[name])
    assert min(filled) > 0
