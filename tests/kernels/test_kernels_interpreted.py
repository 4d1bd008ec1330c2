"""The Triton kernels' arithmetic at odd sizes without a GPU, through Triton's interpreter."""

from typing import Any

import pytest
import torch

from specdec.kernels.gumbel.reference import gumbel_argmax_reference
from specdec.kernels.moe.reference import moe as moe_reference
from specdec.kernels.swiglu.reference import swiglu as swiglu_reference
from specdec.kernels.tile_tables import Tile
from specdec.kernels.tree_attention.reference import tree_attention_reference

if torch.cuda.is_available():
    pytest.skip("the GPU tests run the kernels themselves", allow_module_level=True)
linear = pytest.importorskip("specdec.kernels.linear.kernel")
moe = pytest.importorskip("specdec.kernels.moe.kernel")
routing = pytest.importorskip("specdec.kernels.moe.routing")
attention = pytest.importorskip("specdec.kernels.tree_attention.kernel")
gumbel = pytest.importorskip("specdec.kernels.gumbel.kernel")
swiglu = pytest.importorskip("specdec.kernels.swiglu.kernel")
pytestmark = pytest.mark.usefixtures("triton_interpreter")
HALF = torch.float16  # the interpreter has no products of bf16


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(HALF)


def _error(out: torch.Tensor, reference: torch.Tensor) -> float:
    return float((out.double() - reference.double()).norm() / reference.double().norm())


def test_linear_with_all_epilogues_at_odd_sizes() -> None:
    x, w, bias, residual = _random(5, 100, seed=1), _random(37, 100, seed=2), _random(37, seed=3), _random(5, 37, seed=4)
    out = linear.linear_triton(x, w, bias, residual=residual, tile=Tile(16, 32, 32, 1, 1))
    reference = (x.float() @ w.float().T + bias.float()).to(HALF) + residual
    assert _error(out, reference) < 2e-3


def test_rms_norm() -> None:
    x, weight = _random(3, 100), _random(100, seed=1)
    reference = torch.nn.functional.rms_norm(x.float(), (100,), eps=1e-5) * weight.float()
    assert _error(linear.rms_norm_triton(x, weight, 1e-5), reference) < 5e-3


def test_route_ties_go_to_the_lower_expert_and_nan_rows_stay_in_range() -> None:
    router = torch.zeros(12, 128, dtype=HALF)
    router[7] = router[9] = 1.0
    x = torch.ones(2, 128, dtype=HALF)
    x[1, 3] = float("nan")
    weights, experts = routing.route_triton(x, router, 3, True)
    assert experts.tolist() == [[7, 9, 0], [0, 1, 2]]
    assert weights[0].sum().item() == pytest.approx(1.0)


def test_group_sorts_pairs_by_expert() -> None:
    experts = torch.randint(0, 6, (40, 3), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    groups = moe.group_triton(experts, 6)
    assert torch.equal(groups.order_P.long(), experts.flatten().argsort(stable=True))
    assert groups.starts_X.tolist() == [0, *torch.bincount(experts.flatten(), minlength=6).cumsum(0).tolist()]


def test_a_layer_that_fails_halfway_leaves_no_counts_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(moe, "combine_triton", fail)
    moe._arrivals.cache_clear()
    with torch.inference_mode():
        moe._arrivals(torch.device("cpu"), moe.DIRECT_ROWS * 3)
    x, router, norm = _random(2, 128), _random(6, 128, seed=1), _random(128, seed=2)
    with pytest.raises(MemoryError):
        moe.moe_triton(x, router, _random(6, 40, 128, seed=3), _random(6, 128, 20, seed=4), 3, True, norm_E=norm)
    assert not any(moe._arrivals(x.device, moe.DIRECT_ROWS * 3))


def test_embeddings_and_their_norm() -> None:
    table, weight = _random(30, 100), _random(100, seed=1)
    tokens = torch.tensor([3, 0, 29])
    stream, normed = linear.embed_and_norm_triton(tokens, table, weight, 1e-6)
    assert torch.equal(stream, table[tokens])
    assert torch.equal(normed, linear.rms_norm_triton(table[tokens], weight, 1e-6))


@pytest.mark.parametrize("rows", [1, 3, 19])
@pytest.mark.parametrize("hidden", [128, 256])  # the router's products are whole, or in parts that fit one launch with the norm
def test_moe(rows: int, hidden: int) -> None:
    x, router = _random(rows, hidden), _random(6, hidden, seed=1) / 8
    norm, next_norm = _random(hidden, seed=4), _random(hidden, seed=5)
    gate_up, down = _random(6, 40, hidden, seed=2) / 8, _random(6, hidden, 20, seed=3) / 4
    out, normed = moe.moe_triton(x, router, gate_up, down, 3, True, norm_E=norm, next_norm_E=next_norm)
    before = torch.nn.functional.rms_norm(x, (hidden,), norm, 1e-6)
    expected = x + moe_reference(before, router, gate_up, down, 3, True)
    assert _error(out, expected) < 2e-2
    assert _error(normed, torch.nn.functional.rms_norm(expected, (hidden,), next_norm, 1e-6)) < 2e-2
    assert not any(moe._arrivals(x.device, moe.DIRECT_ROWS * 3)), "zeros between two layers"


@pytest.mark.parametrize(
    "plan",
    [(1, 1, 1, False), (1, 1, 1, True), (1, 1, 1, False, True), (4, 1, 1, False), (4, 1, 1, True)],
    ids=["row", "fused row", "row, tiles in pairs", "rows", "fused rows"],
)
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (70, 5.0)])
def test_tree_attention_of_a_chunk_and_a_tree(plan: tuple[Any, ...], window: int | None, softcap: float | None) -> None:
    pages_of, base, head_dim = [[3, 1, 4, 6, 7], [5, 2]], [258, 64], 20
    parents = [0, 0, 0, 1, 3]  # of the tree rows of the first sequence
    depth = [0, 1, 1, 2, 3]
    scratch = 8 * 64
    own_slots = [pages_of[0][258 // 64] * 64 + 258 % 64, *range(scratch, scratch + 4)]
    paths = []
    for node in range(5):
        path = [node]
        while path[0]:
            path.insert(0, parents[path[0]])
        paths.append([own_slots[n] for n in path] + [own_slots[node]] * (4 - len(path)))
    chunk = [[0] * 4] * 2
    second = [[pages_of[1][1] * 64] * 4]
    tables: dict[str, Any] = {
        "page_table_SP": torch.tensor([pages_of[0], [*pages_of[1], 0, 0, 0]]),
        "sequences_R": torch.tensor([0] * 7 + [1]),
        "positions_R": torch.tensor([256, 257] + [258 + d for d in depth] + [64]),
        "bases_S": torch.tensor(base),
        "starts_S": torch.tensor([256, 64]),
        "ancestor_slots_RD": torch.tensor(chunk + paths + second),
    }
    q, k, v = _random(8, 6, head_dim), _random(9, 2, 64, head_dim, seed=1), _random(9, 2, 64, head_dim, seed=2)
    for pages in (k, v):  # behind the last key of each sequence lies what somebody left there
        pages[pages_of[0][258 // 64], :, 258 % 64 + 1 :] = torch.nan
        pages[pages_of[1][1], :, 1:] = torch.nan
    options: dict[str, Any] = {"scale": head_dim**-0.5, "window": window, "softcap": softcap}
    out = attention.tree_attention_triton(q, k, v, **tables, **options, max_positions=320, plan=attention.Plan(*plan))
    assert _error(out, tree_attention_reference(q, k.nan_to_num(), v.nan_to_num(), **tables, **options)) < 1e-2


@pytest.mark.parametrize("start", [0, 100])
def test_a_chunk_never_reads_behind_its_last_key(start: int) -> None:
    rows, head_dim = 40, 20
    positions = torch.arange(start, start + rows)
    tables: dict[str, Any] = {
        "page_table_SP": torch.tensor([[2, 0, 1]]),
        "sequences_R": torch.zeros(rows, dtype=torch.int64),
        "positions_R": positions,
        "bases_S": torch.tensor([start + rows]),
        "starts_S": torch.tensor([start]),
        "ancestor_slots_RD": torch.zeros(rows, 1, dtype=torch.int64),
    }
    q, k, v = _random(rows, 4, head_dim), _random(3, 2, 64, head_dim, seed=1), _random(3, 2, 64, head_dim, seed=2)
    last_page, used = tables["page_table_SP"][0, (start + rows - 1) // 64], (start + rows - 1) % 64 + 1
    for pages in (k, v):
        pages[last_page, :, used:] = torch.nan
    out = attention.tree_attention_triton(q, k, v, **tables, scale=0.2, max_positions=192, plan=attention.Plan(8, 1, 1, True))
    expected = tree_attention_reference(q, k.nan_to_num(), v.nan_to_num(), **tables, scale=0.2)
    assert _error(out, expected) < 1e-2


@pytest.mark.parametrize("rows", [5, 10])  # few draw all noise, many look into few blocks
@pytest.mark.parametrize("vocab", [63, 1024, 2500, 4200])
def test_the_draw_is_that_of_the_reference(vocab: int, rows: int) -> None:
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab)) * 2
    logits[1, 40:] = -torch.inf
    logits[2] = torch.inf * -1
    logits[3, 7] = logits[3, 50] = 30.0
    logits[4, 3] = torch.nan
    of_rows = torch.arange(rows) % 5
    seeds = torch.tensor([1, 2**62 + 5, 3, 4, 5])[of_rows]
    positions = torch.tensor([0, 7, 2**33 + 1, 9, 10])[of_rows]
    temperatures = torch.tensor([1.0, 0.7, 1.0, 1.0, 1.3])[of_rows]
    noisy = torch.tensor([True, True, True, False, True])[of_rows]
    drawn, tops = gumbel.gumbel_argmax_triton(logits, seeds, positions, temperatures, noisy)
    expected, expected_tops = gumbel_argmax_reference(logits, seeds, positions, temperatures, noisy)
    assert drawn.tolist() == expected.tolist()
    assert torch.equal(tops.nan_to_num(7.5), expected_tops.nan_to_num(7.5))
    assert drawn[3] == 7  # the lower of two equal ones
    pairs = logits[:4], seeds[:2], positions[:4], temperatures[1:3], noisy[2:4]  # two rows of each key
    assert torch.equal(gumbel.gumbel_argmax_triton(*pairs, early=True)[0], gumbel_argmax_reference(*pairs)[0])


@pytest.mark.parametrize("inner", [40, 513])
def test_swiglu(inner: int) -> None:
    x = _random(3, 2 * inner)
    assert _error(swiglu.swiglu_triton(x), swiglu_reference(x)) < 1e-3
