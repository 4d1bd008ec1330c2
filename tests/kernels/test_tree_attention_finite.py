"""The CPU's attention where pages hold values that are not finite: only rows that see one are spoilt."""

import pytest
import torch
from torch import Tensor

from specdec.kernels.tree_attention import AttentionTables, tree_attention

PAGE, HEADS, KV_HEADS, DIM = 16, 4, 2, 8
PAGES = torch.tensor([3, 1])
BASE = 21
# a spine of three nodes, and two leaves below the root and the second, which lie at scratch entries
POSITIONS = torch.tensor([21, 22, 23, 22, 23])
PARENTS = (0, 0, 1, 0, 1)
SCRATCH = 4 * PAGE


def entries() -> Tensor:
    """Where each row writes."""
    spine = [int(PAGES[p // PAGE]) * PAGE + p % PAGE for p in (21, 22, 23)]
    return torch.tensor([*spine, SCRATCH + 3, SCRATCH + 4])


def tables() -> AttentionTables:
    own, ancestors = entries(), []
    for row in range(5):
        path = [row]
        while path[0]:
            path.insert(0, PARENTS[path[0]])
        ancestors.append([int(own[node]) for node in path] + [int(own[row])] * (3 - len(path)))
    return AttentionTables(
        page_table_MP=PAGES[None],
        sequences_R=torch.zeros(5, dtype=torch.int64),
        positions_R=POSITIONS,
        bases_M=torch.tensor([BASE]),
        starts_M=torch.tensor([BASE]),
        ancestor_entries_TD=torch.tensor(ancestors),
        num_chunk=0,
        chunk_sequences=0,
        tree_sequences=1,
        page_size=PAGE,
    )


def attend(keys: Tensor, values: Tensor) -> Tensor:
    q = torch.randn(5, HEADS, DIM, generator=torch.Generator().manual_seed(1))
    return tree_attention(q, keys, values, tables(), scale=DIM**-0.5)


def store(seed: int) -> Tensor:
    return torch.randn(6, KV_HEADS, PAGE, DIM, generator=torch.Generator().manual_seed(seed))


def spoil(pages: Tensor, entry: int, value: float) -> Tensor:
    spoilt = pages.clone()
    spoilt[entry // PAGE, :, entry % PAGE] = value
    return spoilt


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_no_row_sees_changes_no_bit(value: float) -> None:
    """The first entry of all, an entry behind the last position, and one of a page that is another's."""
    keys, values = store(2), store(3)
    whole = attend(keys, values)
    for entry in (0, int(PAGES[1]) * PAGE + 9, 2 * PAGE + 5, SCRATCH + 9):
        assert torch.equal(attend(spoil(keys, entry, value), spoil(values, entry, value)), whole)


@pytest.mark.parametrize("row", range(5))
@pytest.mark.parametrize("which", ["keys and values", "values"])
def test_a_row_spoils_itself_and_what_stands_below_it(row: int, which: str) -> None:
    keys, values = store(2), store(3)
    whole, entry = attend(keys, values), int(entries()[row])
    found = attend(spoil(keys, entry, torch.nan) if which != "values" else keys, spoil(values, entry, torch.nan))
    for other in range(5):
        path = [other]
        while path[-1]:
            path.append(PARENTS[path[-1]])
        if row in path:
            assert found[other].isnan().all()
        else:
            assert torch.equal(found[other], whole[other])
