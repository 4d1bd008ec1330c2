"""The prefill bench without a GPU: FLOPs, tables, shares; and a layer of a tiny shape under Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

from specdec.bench.kernels import PAGE, SHAPES, Layer, Shape, attend
from specdec.bench.prefill import (
    ATTENTION,
    DENSE,
    EXPERTS,
    LAYER,
    OUTPUT,
    QKV,
    Chunk,
    Inputs,
    Part,
    chunk_rows,
    flops,
    show,
    split,
    summary,
    together,
    works,
)

TINY = Shape(layers=2, hidden=32, heads=4, kv_heads=2, head_dim=16, experts=4, experts_per_row=2, inner=16, vocabulary=64)
FP16 = torch.float16  # the interpreter knows no bfloat16


def drawn(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, dtype=torch.float32).mul_(scale).to(FP16)


def tiny_layer(num_pages: int) -> Layer:
    s, width = TINY, (TINY.heads + 2 * TINY.kv_heads) * TINY.head_dim
    return Layer(
        norm=torch.ones(s.hidden, dtype=FP16),
        qkv=drawn(width, s.hidden, scale=0.2),
        q_norm=torch.ones(s.head_dim, dtype=FP16),
        k_norm=torch.ones(s.head_dim, dtype=FP16),
        out=drawn(s.hidden, s.heads * s.head_dim, scale=0.1),
        moe_norm=torch.ones(s.hidden, dtype=FP16),
        router=drawn(s.experts, s.hidden, scale=0.2),
        gate_up=drawn(s.experts, 2 * s.inner, s.hidden, scale=0.2),
        down=drawn(s.experts, s.hidden, s.inner, scale=0.2),
        k_pages=drawn(num_pages, s.kv_heads, PAGE, s.head_dim),
        v_pages=drawn(num_pages, s.kv_heads, PAGE, s.head_dim),
    )


def test_flops_of_a_whole_prompt() -> None:
    s = SHAPES["qwen3-30b-a3b"]
    found = flops(s, Chunk(0, 8192))
    assert found[QKV] == 2 * 8192 * 5120 * 2048
    assert found[OUTPUT] == 2 * 8192 * 4096 * 2048
    assert found[ATTENTION] == 4 * 32 * 128 * 8192**2 // 2
    assert found[EXPERTS] == 2 * 8192 * 8 * (1536 * 2048 + 2048 * 768)


def test_chunks_cover_the_prompt_and_cost_the_same_flops() -> None:
    s = SHAPES["qwen3-30b-a3b"]
    chunks = list(split(8192, 3000))
    assert chunks == [Chunk(0, 3000), Chunk(3000, 3000), Chunk(6000, 2192)]
    whole = flops(s, Chunk(0, 8192))
    assert {name: sum(flops(s, chunk)[name] for chunk in chunks) for name in whole} == whole


def test_rows_of_a_chunk_are_those_of_a_prompt_in_the_engine() -> None:
    rows, pages = chunk_rows(Chunk(64, 320), "cpu")
    positions, tables = torch.arange(64, 384), rows.attention
    assert torch.equal(rows.positions_R, positions)
    assert torch.equal(rows.entries_R, positions), "pages lie in order"
    assert not tables.sequences_R.any()
    assert (tables.starts_M.tolist(), tables.bases_M.tolist()) == ([64], [384])
    assert tables.page_table_MP[0, :6].tolist() == list(range(6))
    assert (tables.num_chunk, tables.chunk_sequences, tables.tree_sequences) == (320, 1, 0)
    assert pages > 6


def test_padding_rows_write_to_the_spare_page() -> None:
    rows, pages = chunk_rows(Chunk(0, 70), "cpu")
    assert rows.num_rows == 128, "as many as a recorded round computes"
    assert set(rows.entries_R[70:].tolist()) == {(pages - 1) * PAGE}
    assert set(rows.positions_R[70:].tolist()) == {69}


def causal_attention(q: Tensor, layer: Layer, context: int, rows: int) -> Tensor:
    """float32 [rows, heads, head_dim], pages in order."""
    keys, values = (
        pages.transpose(0, 1).reshape(TINY.kv_heads, -1, TINY.head_dim)[:, : context + rows].float().repeat_interleave(2, 0)
        for pages in (layer.k_pages, layer.v_pages)
    )
    seen = torch.arange(context + rows)[None, :] <= torch.arange(context, context + rows)[:, None]
    return F.scaled_dot_product_attention(q[:rows].float().transpose(0, 1), keys, values, attn_mask=seen).transpose(0, 1)


@pytest.mark.usefixtures("triton_interpreter")
@pytest.mark.parametrize("chunk", [Chunk(0, 70), Chunk(70, 12)])
def test_attention_of_a_chunk_is_causal_attention(chunk: Chunk) -> None:
    torch.manual_seed(1)
    rows, pages = chunk_rows(chunk, "cpu")
    layer = tiny_layer(pages)
    q = drawn(rows.num_rows, TINY.heads, TINY.head_dim)
    found = attend(rows, q, layer.k_pages, layer.v_pages)[: chunk.rows].float()
    torch.testing.assert_close(found, causal_attention(q, layer, chunk.context, chunk.rows), atol=0.02, rtol=0.02)


@pytest.mark.usefixtures("triton_interpreter")
def test_every_part_of_a_layer_runs() -> None:
    torch.manual_seed(2)
    laid_out, pages = chunk_rows(Chunk(0, 17), "cpu")
    rows, k, angle = laid_out.num_rows, TINY.experts_per_row, torch.rand(17, TINY.head_dim // 2)
    inputs = Inputs(
        rows=laid_out,
        x=drawn(rows, TINY.hidden),
        normed=drawn(rows, TINY.hidden),
        qkv=drawn(rows, (TINY.heads + 2 * TINY.kv_heads) * TINY.head_dim),
        q=drawn(rows, TINY.heads, TINY.head_dim),
        routes=torch.rand(rows, TINY.experts).topk(k).indices.int(),
        weights=torch.rand(rows, k),
        parts=drawn(rows * k, TINY.hidden),
        cos=angle.cos(),
        sin=angle.sin(),
    )
    layer = tiny_layer(pages)
    found = {name: work(layer) for name, work in works(TINY, inputs).items()}
    assert set(flops(TINY, Chunk(0, 17))) | {LAYER} < set(found)
    outputs = found[LAYER]
    assert isinstance(outputs, tuple), "the stream, and that behind the norm"
    for output in outputs:
        assert output.shape == (rows, TINY.hidden)
        assert output.isfinite().all()


def test_shares_are_of_summed_flops_over_summed_time(capsys: pytest.CaptureFixture[str]) -> None:
    parts = [
        Part(QKV, 10.0, 4_000_000),
        Part(ATTENTION, 20.0, 2_000_000),
        Part(OUTPUT, 30.0, 4_000_000),
        Part("norm", 5.0, 0),
        Part(EXPERTS, 40.0, 10_000_000),
        Part(LAYER, 100.0, 20_000_000),
    ]
    assert together("dense", parts, DENSE) == Part("dense", 40.0, 8_000_000)
    found = summary(parts, peak=1e12, tokens=50, layers=10)
    assert found == pytest.approx(
        {
            "dense_share": 0.2,
            "experts_share": 0.25,
            "attention_share": 0.1,
            "layer_share": 0.2,
            "parts_ms": 0.105,
            "layer_ms": 0.1,
            "tokens_per_second": 50_000,
        }
    )
    show(parts, found, 1e12, 10)
    printed = capsys.readouterr().out
    assert "dense part (qkv and output projection): 20.0% of the peak" in printed
    assert "10 layers: 50000 tokens/s" in printed
