"""The GPU's forward pass: its tables, and every family through the Triton kernels in Triton's interpreter."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from specdec.cache.attention import KVPool
from specdec.draft.tree import DraftTree
from specdec.models.base import Model
from specdec.models.loader import load_model
from specdec.models.source import Source
from specdec.round.batch import RowSpec, build_rows
from specdec.round.graphs import Bucket, DeviceContext, Part, Tables
from specdec.round.runner import Runner

CPU = torch.device("cpu")
PAGE = 64


def spec(num_cached: int, chunk: list[int], parents: list[int] | None, pages: list[int], scratch: int) -> RowSpec:
    n = len(parents or [])
    tree = DraftTree(11 + np.arange(n), np.array(parents), np.zeros(n), np.zeros(n, int), np.zeros(n, int)) if parents else None
    return RowSpec(
        chunk=np.array(chunk, np.int64),
        tree=tree,
        num_cached=num_cached,
        pages=np.array(pages),
        scratch=np.arange(scratch, scratch + n),
    )


def test_buckets_hold_their_rounds() -> None:
    rows = build_rows([spec(0, [1, 2, 3, 4], [0, 0, 1, 0], [2, 3], 300), spec(70, [], [0], [0, 1], 310)], PAGE, CPU)
    assert Bucket.of(rows) == Bucket(rows=12, sequences=2, depths=4, pages=4)
    long = build_rows([spec(64 * 20, [], [0], list(range(21)), 0)], PAGE, CPU)
    assert Bucket.of(long) == Bucket(rows=1, sequences=1, depths=1, pages=24)
    prompt = build_rows([spec(0, [5] * 300, None, list(range(5)), 0)], PAGE, CPU)
    assert Bucket.of(prompt).rows == 320
    longer = build_rows([spec(0, [5] * 1030, None, list(range(17)), 0)], PAGE, CPU)
    assert Bucket.of(longer).rows == 1088
    assert [Bucket.of(each).recorded for each in (rows, long, prompt, longer)] == [True, True, True, False]
    several = build_rows([spec(0, [5] * 300, None, list(range(5)), 0), spec(70, [], [0], [8, 9], 310)], PAGE, CPU)
    assert not Bucket.of(several).recorded


def test_padding_repeats_the_last_row_and_writes_elsewhere() -> None:
    rows = build_rows([spec(3, [7], [0, 0, 0], [5], 300)], PAGE, CPU)
    bucket = Bucket.of(rows)
    tables = Tables.of(torch.full((sum(bucket.sizes),), -9), bucket)
    tables.fill(rows, spare_slot=999)
    assert bucket.rows == rows.num_rows == 4
    wider = Bucket(rows=6, sequences=1, depths=4, pages=4)
    tables = Tables.of(torch.full((sum(wider.sizes),), -9), wider)
    tables.fill(rows, spare_slot=999)
    assert tables.tokens_R.tolist() == [7, 11, 12, 13, 13, 13]
    assert tables.positions_R.tolist() == [3, 4, 5, 5, 5, 5]
    assert tables.slots_R.tolist() == [323, 324, 325, 300, 999, 999]
    assert tables.ancestor_slots_RD[3:].tolist() == [[324, 300, 300, 300]] * 3
    assert tables.bases_S.tolist() == [4]
    assert tables.starts_S.tolist() == [3]
    assert tables.page_table_SP[0, 0] == 5


def test_prompts_and_decoding_rows_are_parts_of_their_own() -> None:
    decoding = [spec(7 + i, [], [0], [i], 300 + i) for i in range(3)]
    prompts = [spec(0, [5] * 20, None, [4], 0), spec(0, [5] * 30, [0, 0], [5], 320)]
    rows = build_rows([*decoding, *prompts, spec(9, [], [0], [6], 340)], PAGE, CPU)
    assert Part.of(rows.segments) == (Part(slice(0, 3), 3), Part(slice(3, 55), 2), Part(slice(55, None), 1))
    mixed = build_rows([decoding[0], prompts[0], decoding[1], prompts[1], decoding[2]], PAGE, CPU)
    assert Part.of(mixed.segments) == (), "too many launches"


def test_parts_change_no_bit(triton_interpreter: None) -> None:
    pytest.importorskip("specdec.kernels.tree_attention.kernel")
    decoding = [spec(70, [], [0, 0, 1], [0, 1], 512), spec(3, [], [0], [2], 520)]
    rows = build_rows([*decoding, spec(5, [7] * 18, None, [3], 0)], PAGE, CPU)
    bucket = Bucket(rows=rows.num_rows + 3, sequences=4, depths=4, pages=4)
    tables = Tables.of(torch.zeros(sum(bucket.sizes), dtype=torch.int64), bucket)
    tables.fill(rows, spare_slot=600)
    drawn = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=drawn).half() for shape in ((bucket.rows, 4, 16), *((10, 2, PAGE, 16),) * 2))
    whole = tables.attend(q, k, v)
    assert torch.equal(tables.attend(q, k, v, parts=Part.of(rows.segments)), whole)
    assert len(Part.of(rows.segments)) == 2


@pytest.fixture
def triton_layers(triton_interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers run as Triton kernels on CPU tensors."""
    for module in ("kernels.linear", "kernels.swiglu", "models.loader"):
        monkeypatch.setattr(f"specdec.{module}.uses_triton", lambda _device: True)


def device_logits(model: Model, specs: list[list[RowSpec]]) -> torch.Tensor:
    """Logits of the last round's tree rows after all rounds ran without graphs."""
    pool = KVPool(model.cache_specs, 8, PAGE, model.dtype, CPU)
    for round_specs in specs:
        rows = build_rows(round_specs, PAGE, CPU)
        bucket = Bucket.of(rows)
        tables = Tables.of(torch.zeros(sum(bucket.sizes), dtype=torch.int64), bucket)
        tables.fill(rows, pool.spare_slot)
        context = DeviceContext(tables, pool, [cache.window for cache in model.cache_specs], ())
        hidden = model.forward(tables.tokens_R, context)
    assert rows.tree is not None
    return model.logits(hidden[rows.tree.rows_T])


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe", "mixtral", "olmoe"])
def test_every_family_through_the_kernels(
    family: str, tiny_checkpoint: Callable[..., Path], triton_layers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_checkpoint(family, num_hidden_layers=1, intermediate_size=64, vocab_size=300)
    source = Source(name=family, path=folder)
    specs = [[spec(0, [3, 9, 27, 81], None, [4], 0)], [spec(4, [], [0, 0, 0], [4], 300)]]
    with torch.inference_mode():
        found = device_logits(load_model(source, dtype="float16", device="cpu"), specs)
    monkeypatch.undo()
    model = load_model(source, dtype="float32", device="cpu")
    runner = Runner(model, KVPool(model.cache_specs, 8, PAGE, torch.float32, CPU))
    for round_specs in specs:
        expected = runner.forward(build_rows(round_specs, PAGE, CPU)).logits_TV
    assert expected is not None
    assert float((found - expected).norm() / expected.norm()) < 5e-3


def read_prompt(runner: Runner, tokens: list[int], *ends: int) -> torch.Tensor:
    """The logits after a prompt that is read in parts that end there."""
    starts, pages = (0, *ends), list(range(2, 2 + len(tokens) // PAGE + 1))
    for start, end in zip(starts, (*ends, len(tokens)), strict=True):
        last = end == len(tokens)
        rows = build_rows([spec(start, tokens[start:end], [0] if last else None, pages, 1200)], PAGE, runner.device)
        logits = runner.forward(rows).logits_TV
    assert logits is not None
    return logits.clone()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("length", [200, 256, 300, 640, 1000, 1023])
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_recorded_prompts_keep_the_bits_of_launched_ones(
    family: str, length: int, tiny_checkpoint: Callable[..., Path]
) -> None:
    folder = tiny_checkpoint(family, num_hidden_layers=2, vocab_size=300, max_position_embeddings=2048)
    model = load_model(Source(name=family, path=folder), dtype="bfloat16", device="cuda")
    runner = Runner(model, KVPool(model.cache_specs, 20, PAGE, torch.bfloat16, model.device))
    tokens = np.random.default_rng(length).integers(0, 300, length).tolist()
    launched = read_prompt(runner, tokens)
    for how in ("recorded", "replayed"):
        assert torch.equal(read_prompt(runner, tokens), launched), how
    for how in ("launched", "recorded", "replayed"):
        assert torch.equal(read_prompt(runner, tokens, 70), launched), f"two parts, {how}"
