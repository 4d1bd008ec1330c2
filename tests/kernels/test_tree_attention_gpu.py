"""Triton tree attention on the GPU: right, and each row bitwise what it would be decoding alone."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from specdec.kernels.tree_attention import AttentionTables
from specdec.kernels.tree_attention.heads import heads_triton
from specdec.kernels.tree_attention.kernel import tree_attention_triton
from specdec.kernels.tree_attention.plans import Plan
from specdec.kernels.tree_attention.reference import tree_attention_reference

pytestmark = pytest.mark.gpu

PAGE = 64
PLANS = [
    Plan(1, 8, 1, False),
    Plan(1, 2, 1, False),
    Plan(2, 4, 1, True),
    Plan(2, 4, 2, False),
    Plan(8, 4, 2, True),
    Plan(1, 4, 1, True),
    Plan(1, 8, 1, False, pairs=True),
    Plan(1, 4, 1, False, shared=4),
]


@dataclass
class Round:
    """A round's rows over one cache, and each row's whole history of entries."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    tables: AttentionTables
    histories: list[list[int]]


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator("cuda").manual_seed(seed), device="cuda").bfloat16()


def _on_device(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cuda")


def _trails(num_nodes: int, scratch: list[int], host: torch.Generator) -> list[list[int]]:
    """The entries on the way to each node of a random tree: chains more often than not, so that paths cross tiles."""
    trails: list[list[int]] = []
    for node in range(num_nodes):
        follows = torch.rand(1, generator=host) < 0.7
        parent = node - 1 if follows or node == 0 else int(torch.randint(node, (1,), generator=host))
        trails.append([*(trails[parent] if node else []), scratch[node]])
    return trails


def _round(bases: list[int], num_nodes: int, num_chunk: int, heads: int, kv_heads: int, head_dim: int, seed: int) -> Round:
    """Of each sequence the last `num_chunk` positions below its base; then of each a random tree whose nodes all lie in scratch
    entries."""
    host = torch.Generator().manual_seed(seed)
    num_pages = sum(b // PAGE + 2 for b in bases) + len(bases) * (num_nodes // PAGE + 1) + 1
    free = (torch.randperm(num_pages - 1, generator=host) + 1).tolist()
    chunk: list[tuple[int, int, list[int]]] = []  # sequence, position, history
    trees: list[tuple[int, int, list[int]]] = []
    page_rows, paths = [], []
    for s, base in enumerate(bases):
        pages = [free.pop() for _ in range(base // PAGE + 2)]
        scratch_pages = [free.pop() for _ in range(num_nodes // PAGE + 1)]
        scratch = [page * PAGE + i for page in scratch_pages for i in range(PAGE)][:num_nodes]
        cached = [pages[p // PAGE] * PAGE + p % PAGE for p in range(base)]
        page_rows.append(pages)
        chunk += [(s, p, cached[: p + 1]) for p in range(max(0, base - num_chunk), base)]
        for trail in _trails(num_nodes, scratch, host):
            paths.append(trail)
            trees.append((s, base + len(trail) - 1, cached + trail))
    depth, width = max(map(len, paths)), max(map(len, page_rows))
    sequences, positions, histories = zip(*chunk, *trees, strict=True)
    tables = AttentionTables(
        page_table_MP=_on_device([r + [0] * (width - len(r)) for r in page_rows]),
        sequences_R=_on_device(sequences),
        positions_R=_on_device(positions),
        bases_M=_on_device(bases),
        starts_M=_on_device([max(0, base - num_chunk) for base in bases]),
        ancestor_entries_TD=_on_device([p + [p[-1]] * (depth - len(p)) for p in paths]),
        num_chunk=len(chunk),
        chunk_sequences=len({s for s, _, _ in chunk}),
        tree_sequences=len(bases),
        page_size=PAGE,
    )
    pool = (num_pages, kv_heads, PAGE, head_dim)
    q = _random(len(positions), heads, head_dim, seed=seed + 1)
    return Round(q, _random(*pool, seed=seed + 2), _random(*pool, seed=seed + 3), tables, list(histories))


def _alone(r: Round, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor, AttentionTables]:
    """The same rows as plain decoding: each a sequence of its own, history in the pages of a fresh cache, batch of `rows`; with
    room to grow."""
    histories = [_on_device(r.histories[i]) for i in rows]
    width = max(len(h) for h in histories) // PAGE + 1
    pools = []
    for pages in (r.k, r.v):
        entries = pages.transpose(1, 2).reshape(-1, pages.shape[1], pages.shape[3])
        pool = torch.full((len(rows) * width + 1, PAGE, *entries.shape[1:]), float("nan"), device="cuda", dtype=pages.dtype)
        for i, h in enumerate(histories):
            pool[1 + i * width : 1 + (i + 1) * width].view(-1, *entries.shape[1:])[: len(h)] = entries[h]
        pools.append(pool.transpose(1, 2).contiguous())
    position = _on_device([len(h) - 1 for h in histories])
    first_page = 1 + torch.arange(len(rows), device="cuda") * width
    page_table = torch.zeros((len(rows), width + 16), dtype=torch.int64, device="cuda")
    page_table[:, :width] = first_page[:, None] + torch.arange(width, device="cuda")
    tables = AttentionTables(
        page_table_MP=page_table,
        sequences_R=torch.arange(len(rows), device="cuda"),
        positions_R=position,
        bases_M=position,
        starts_M=position,
        ancestor_entries_TD=((first_page + position // PAGE) * PAGE + position % PAGE)[:, None],
        num_chunk=0,
        chunk_sequences=0,
        tree_sequences=len(rows),
        page_size=PAGE,
    )
    return pools[0], pools[1], tables


SHAPES = [(32, 4, 128), (9, 3, 64), (8, 8, 80), (6, 1, 96), (4, 2, 256)]
BATCHES = [  # bases, tree nodes, chunk rows
    ([0, 1, 63], 5, 0),
    ([60, 64, 127, 250], 12, 3),
    ([255, 256, 257, 509], 9, 1),
    ([1019], 16, 70),
    ([700] * 5, 1, 0),
]
OPTIONS = [(None, None), (100, None), (None, 20.0), (300, 30.0)]


CASES = [(SHAPES[0], options) for options in OPTIONS] + [(s, o) for s in SHAPES[1:] for o in (OPTIONS[0], OPTIONS[3])]


@pytest.mark.parametrize(("shape", "limits"), CASES)
def test_rows_are_bitwise_what_they_are_alone(shape: tuple[int, int, int], limits: tuple[int | None, float | None]) -> None:
    (heads, kv_heads, head_dim), (window, softcap) = shape, limits
    options: dict[str, Any] = {"scale": head_dim**-0.5, "window": window, "softcap": softcap}
    for seed, (bases, nodes, chunk) in enumerate(BATCHES):
        r = _round(bases, nodes, chunk, heads, kv_heads, head_dim, seed)
        reference = tree_attention_reference(r.q, r.k, r.v, r.tables, **options)
        outs = [tree_attention_triton(r.q, r.k, r.v, r.tables, **options, plan=plan) for plan in [None, *PLANS]]
        assert (outs[0] - reference).norm() / reference.norm() < 5e-3
        for out, plan in zip(outs[1:], PLANS, strict=True):
            assert torch.equal(out, outs[0]), (bases, plan)
        everyone = list(range(len(r.q)))
        for rows in [everyone, everyone[-1:], everyone[len(everyone) // 2 :][:1]]:
            k, v, tables = _alone(r, rows)
            alone = tree_attention_triton(r.q[rows], k, v, tables, **options)
            assert torch.equal(alone, outs[0][rows]), (bases, rows)


def test_long_contexts_walk_over_more_splits_than_programs() -> None:
    r = _round([20_000], 4, 0, 8, 1, 128, 7)
    out = tree_attention_triton(r.q, r.k, r.v, r.tables, scale=0.1)
    fused = tree_attention_triton(r.q, r.k, r.v, r.tables, scale=0.1, plan=PLANS[4])
    assert torch.equal(out, fused)
    assert not out.isnan().any()


def test_heads_are_normed_rotated_and_written() -> None:
    rows, heads, kv_heads, dim = 5, 6, 2, 96
    qkv, q_norm, k_norm = _random(rows, (heads + 2 * kv_heads) * dim), _random(dim, seed=1), _random(dim, seed=2)
    angle = torch.arange(50, device="cuda")[:, None] * 0.1 ** torch.linspace(0, 3, dim // 2, device="cuda")
    k_pages, v_pages = (torch.zeros(3, kv_heads, PAGE, dim, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    positions, entries = torch.tensor([3, 4, 5, 5, 49], device="cuda"), torch.tensor([64, 65, 130, 131, 5], device="cuda")
    tables: dict[str, Any] = {"positions_R": positions, "entries_R": entries, "k_pages": k_pages, "v_pages": v_pages}
    q = heads_triton(qkv, q_norm, k_norm, angle.cos(), angle.sin(), **tables)

    def turn(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.rms_norm(x.double(), (dim,), eps=1e-6) * weight.double()
        low, high = x.chunk(2, -1)
        cos, sin = angle.double().cos()[positions][:, None], angle.double().sin()[positions][:, None]
        return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)

    split = torch.split(qkv.view(rows, -1, dim), [heads, kv_heads, kv_heads], 1)
    stored_k, stored_v = (p.transpose(1, 2).reshape(-1, kv_heads, dim)[entries] for p in (k_pages, v_pages))
    for out, expected in ((q, turn(split[0], q_norm)), (stored_k, turn(split[1], k_norm))):
        assert (out.double() - expected).norm() / expected.norm() < 6e-3
    assert torch.equal(stored_v, split[2])
