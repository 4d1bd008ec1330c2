"""Masked means absent, for states: what no sequence has may hold NaN or infinity, and no bit changes."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from specdec.cache.attention import AttentionCache
from specdec.cache.recurrent import RecurrentCache
from specdec.llm import LLM
from tests.end_to_end.test_masked import unseen
from tests.extension.conftest import Pool, Stage

Stages = Callable[[str], tuple[Stage, Pool]]


def poison_states(llm: LLM, kind: RecurrentCache, value: float) -> None:
    """States of slots that nobody has, rows of rings that are no longer or not yet known, states kept for no prefix."""
    scheduler, marks = llm.engine._scheduler, llm.engine._scheduler._marks
    lengths = llm.engine._round.slots.texts.lengths_S.tolist()
    kept = set(marks._marks.values()) | marks._lent if marks is not None else set()
    for group in kind._groups:
        free = torch.ones(group.states_LS.shape[1], dtype=torch.bool)
        stale_SB = torch.ones(group.recent_LSBW.shape[1:3], dtype=torch.bool)
        for sequence in scheduler.running:
            if (sequence, None) in scheduler.admitted:
                continue
            reads = sequence.num_enqueued < sequence.prompt_end
            known = sequence.num_enqueued if reads else lengths[sequence.slot] - 1
            free[sequence.slot] = False
            first = max(int(kind._folded_S[sequence.slot]) - group.spec.taps + 1, 0)
            stale_SB[sequence.slot, torch.arange(first, max(known, first)) % stale_SB.shape[1]] = False
        unkept = torch.tensor([mark not in kept for mark in range(group.kept_LK.shape[1])])
        group.states_LS[:, free] = value
        stale_SB = stale_SB.to(group.recent_LSBW.device)
        group.recent_LSBW.masked_fill_(stale_SB[None, :, :, None], value)
        group.kept_LK[:, unkept] = value
        group.kept_rows_LKJW[:, unkept] = value


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("drafters", [(), ("tiny-head", "adversarial")], ids=["plain", "trees"])
def test_what_nobody_has_changes_no_bit(
    stages: Stages, drafters: tuple[str, ...], depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, pool = stages("hybrid")
    fields: dict[str, Any] = {"max_batch": 3, "chunk_tokens": 20, "max_tree_nodes": 12, "drafters": drafters}
    llm = stage.llm(pool.oracle, depth=depth, **fields)
    step, count = llm.engine.step, iter(range(10_000))

    def poisoned_step() -> bool:
        value = (math.nan, math.inf)[next(count) % 2]
        hidden = unseen(llm)
        with torch.inference_mode():
            for kind in llm.engine._round.caches._kinds:
                if isinstance(kind, RecurrentCache):
                    poison_states(llm, kind, value)
                elif isinstance(kind, AttentionCache):
                    for store in kind._stores:
                        store.masked_fill_(hidden[None, :, None, :, None].to(store.device), value)
        return step()

    monkeypatch.setattr(llm.engine, "step", poisoned_step)
    for found in llm.generate(pool.requests):
        pool.hold(found)
