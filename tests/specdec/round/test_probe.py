"""The probe: rows of given tokens, with no sequence about."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from specdec.cache.kinds import CacheRoom, Caches
from specdec.draft.tree import DraftTree
from specdec.models.loader import load_model
from specdec.models.source import resolve
from specdec.round.forward import Forward
from specdec.round.probe import Part, Probe, ProbeRound, measure_costs
from specdec.round.rows import Entries
from specdec.round.selftest import check_rows

CPU = torch.device("cpu")
PAGE, PAGES, SCRATCH = 16, 24, 4
ENTRIES = Entries(PAGE, (PAGES + SCRATCH) * PAGE, PAGES * PAGE)
NONE = np.zeros(0, np.int64)
TOKENS = np.arange(5, 85)
BUSHY = DraftTree(np.array([9, 10, 11, 12, 13]), np.array([0, 0, 0, 1, 2]))


@pytest.fixture(scope="module")
def probe(tiny_checkpoint: Callable[..., Path]) -> Probe:
    model = load_model(resolve(str(tiny_checkpoint("llama"))), dtype="float32", device="cpu")
    room = CacheRoom(
        num_pages=PAGES + SCRATCH, page_size=PAGE, num_slots=3, num_marks=0, longest_path=1, dtype=torch.float32, device=CPU
    )
    probe = Probe(Forward(model, Caches(model.cache_specs, room)), ENTRIES, PAGES)
    assert check_rows(probe, model.config.vocab_size).exact
    return probe


def test_texts_side_by_side_are_what_each_is_alone(probe: Probe) -> None:
    parts = [
        Part(0, TOKENS[:20], DraftTree.chain(7, [8, 9])),
        Part(0, TOKENS[30:31], BUSHY),
        Part(0, TOKENS[40:79], DraftTree.root(3)),
    ]
    alone = []
    for part in parts:
        probe.forget()
        alone.append(probe.logits(part.chunk, part.tree, part.first))
    together = probe.step(parts)()
    assert together.shape == (3 + 5 + 1, probe.forward.model.config.vocab_size)
    assert torch.equal(together, torch.cat(alone))


def test_a_step_can_be_run_again_whatever_ran_between(probe: Probe) -> None:
    step = probe.step([Part(0, TOKENS[:40], DraftTree.chain(7, [8, 9]))])
    first = step()
    other = probe.logits(TOKENS[20:60], DraftTree.root(4), 0)
    assert not torch.equal(other, first[:1])
    assert torch.equal(step(), first)


def test_no_row_writes_where_another_does() -> None:
    parts = [Part(30, NONE, BUSHY), Part(15, TOKENS[:20], None), Part(40, NONE, DraftTree.chain(1, [2, 3]))]
    rows, trees = ProbeRound.of(parts, ENTRIES, PAGES, CPU).lay_out()
    entries = rows.entries_R.tolist()
    assert len(entries) == len(set(entries)) == 20 + 5 + 3
    assert rows.positions_R.tolist() == [*range(15, 35), 30, 31, 31, 32, 32, 40, 41, 42]
    assert rows.attention.sequences_R.tolist() == [1] * 20 + [0] * 5 + [2] * 3
    each = PAGES // 3 * PAGE
    assert entries[:20] == [each + position for position in range(15, 35)]
    assert entries[-3:] == [2 * each + position for position in (40, 41, 42)]
    off_spine = [entry for entry, node in zip(entries[20:25], range(5), strict=True) if node in (2, 3, 4)]
    assert min(off_spine) >= ENTRIES.scratch, "what is off the spine lies behind all texts"
    assert trees.parents_T.tolist() == [0, 0, 0, 1, 2, 5, 5, 6]


def test_a_bucket_is_filled_with_rows_that_nobody_reads() -> None:
    rows, _ = ProbeRound.of([Part(0, TOKENS[:70], None)], ENTRIES, PAGES, CPU, num_chunk=128).lay_out()
    assert rows.positions_R.tolist() == [*range(70), *[69] * 58]
    assert set(rows.entries_R[70:].tolist()) == {ENTRIES.spare}


def test_costs_are_measured_for_every_size(probe: Probe) -> None:
    costs = list(measure_costs(probe, [(1, 64), (8, 64), (1, 128), (8, 128)], repeats=2))
    assert [(cost.rows, cost.context) for cost in costs] == [(1, 64), (8, 64), (1, 128), (8, 128)]
    assert all(cost.seconds > 0 for cost in costs)
