"""Tables of measured tiles: their files, who is asked, and that a tile out of one changes no bit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from specdec.kernels import tile_tables
from specdec.kernels.tile_tables import (
    Product,
    Tile,
    asked,
    file_name,
    instead,
    measured,
    read,
    row_bucket,
    table_of,
    use,
    write,
)

linear = pytest.importorskip("specdec.kernels.linear.kernel")
moe = pytest.importorskip("specdec.kernels.moe.kernel")

GPU, DEVICE = "Some GPU 24GB", torch.device("cuda")
HOPPER = (232_448, 0)
QKV = Product("linear", 4, 96, 64)
TILE = Tile(4, 8, 16, 2, 3)
TABLES = sorted((Path(tile_tables.__file__).parent / "tables").glob("*.json"))


@pytest.fixture(autouse=True)
def some_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU that nobody measured, in place of the machine's own or none."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: GPU)
    monkeypatch.setattr(linear, "shared_memory", lambda _device: HOPPER)
    monkeypatch.setattr(moe, "shared_memory", lambda _device: HOPPER)
    yield
    tile_tables._tables.pop(GPU, None)
    use(GPU, {})
    tile_tables._tables.pop(GPU, None)


def test_a_table_is_written_and_read(tmp_path: Path) -> None:
    table = {QKV: TILE, Product("down", 64, 32, 16, 8, 2): Tile(16, 64, 64, 4, 4, True)}
    path = tmp_path / "deep" / file_name("NVIDIA H100 80GB HBM3")
    write(path, table)
    assert path.name == "NVIDIA-H100-80GB-HBM3.json"
    assert read(path) == table
    assert path.read_text().count("\n") == 4, "a line for each product, so that changes can be read"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        '{"product": 1}',
        '[{"product": {"kind": "linear"}, "tile": {}}]',
        json.dumps([{"product": {"kind": "linear", "rows": 1, "outputs": 8, "inputs": 8}, "tile": {"m": 1, "n": 8, "k": 16}}]),
        json.dumps(
            [
                {
                    "product": {"kind": "linear", "rows": 1, "outputs": 8, "inputs": 8},
                    "tile": {"m": "1", "n": 8, "k": 16, "warps": 4, "stages": 1},
                }
            ]
        ),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"table|JSON|Expecting"):
        read(path)


@pytest.mark.parametrize(
    "sides", [{"m": 3}, {"n": 0}, {"k": 8}, {"k": 48}, {"warps": 32}, {"stages": 0}, {"m": -4}], ids=lambda sides: str(sides)
)
def test_what_is_no_tile_is_refused(sides: dict[str, int]) -> None:
    good: dict[str, Any] = {"m": 4, "n": 8, "k": 16, "warps": 4, "stages": 2}
    Tile(**good)
    with pytest.raises(ValueError, match="is no tile"):
        Tile(**good | sides)


def test_rows_are_told_apart_by_powers_of_two() -> None:
    assert [row_bucket(rows) for rows in (1, 2, 3, 4, 5, 200, 256, 257, 8192, 100_000)] == [
        1, 2, 4, 4, 8, 256, 256, 512, 8192, 8192,
    ]  # fmt: skip


def test_a_measured_tile_goes_before_the_rule() -> None:
    rule = linear.device_tile(3, 96, 64, DEVICE)
    assert rule == linear.choose_tile(3, 96, 64)
    with instead(GPU, {QKV: TILE}):
        assert linear.device_tile(3, 96, 64, DEVICE) == linear.device_tile(4, 96, 64, DEVICE) == TILE
        assert linear.device_tile(5, 96, 64, DEVICE) == linear.choose_tile(5, 96, 64), "other rows"
        assert linear.device_tile(3, 64, 96, DEVICE) == linear.choose_tile(3, 64, 96), "another weight"
    assert linear.device_tile(3, 96, 64, DEVICE) == rule
    use(GPU, {QKV: TILE})
    assert linear.device_tile(3, 96, 64, DEVICE) == TILE
    assert measured(QKV, torch.device("cpu")) is None


def test_a_measured_tile_is_fitted_to_the_gpu_too() -> None:
    large = Tile(64, 128, 256, 4, 8, True)
    use(GPU, {Product("linear", 64, 4096, 4096): large})
    assert linear.device_tile(64, 4096, 4096, DEVICE) == large.fitted(*HOPPER) != large


def test_the_two_products_of_few_rows_stay_one_kernel() -> None:
    rule = moe.choose_tile(2, 4, 16, True)
    use(GPU, {Product("gate_up", 2, 32, 64, 16, 4): Tile(64, 16, 64, 8, 2, True)})
    tile = moe.device_tile(2, 4, 16, 32, 64, True, DEVICE)
    assert (tile.n, tile.k, tile.stages) == (16, 64, 2)
    assert (tile.m, tile.warps, tile.in_turn) == (rule.m, rule.warps, rule.in_turn)


def test_who_asks_is_heard() -> None:
    linear.device_tile(3, 96, 64, DEVICE)
    with asked() as products:
        linear.device_tile(3, 96, 64, DEVICE)
        linear.device_tile(3, 96, 64, DEVICE)
        moe.device_tile(3, 2, 8, 16, 64, False, DEVICE)
    linear.device_tile(7, 96, 64, DEVICE)
    assert products == [QKV, Product("down", 4, 16, 64, 8, 2)]


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_tables_of_the_package_can_be_used(path: Path) -> None:
    table = read(path)
    assert table
    assert path.name == file_name(path.stem), "the name is one that a GPU's becomes"
    for product, tile in table.items():
        assert product.rows == row_bucket(product.rows)
        assert tile.fitted(*HOPPER, 2 if product.kind == "gate_up" else 1) == tile, product
        if product.kind == "linear":
            rule = linear.choose_tile(product.rows, product.outputs, product.inputs)
        else:
            rule = moe.choose_tile(product.rows, product.chosen, product.experts, product.kind == "gate_up")
            if product.rows <= moe.DIRECT_ROWS:
                assert (tile.m, tile.warps) == (rule.m, rule.warps), product
        assert tile != rule, f"{product}: the rule says so already"


def test_a_gpu_that_nobody_measured_has_an_empty_table() -> None:
    assert table_of("Nobody's GPU") == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU tests run the kernels themselves")
@pytest.mark.usefixtures("triton_interpreter")
def test_no_tile_changes_a_bit() -> None:
    draws = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=draws).half() for shape in ((5, 96), (40, 96)))
    wanted = linear.linear_triton(x, weight)
    for tile in (Tile(8, 8, 16, 1, 2), Tile(4, 32, 32, 2, 1), Tile(16, 16, 16, 4, 3, True)):
        assert torch.equal(linear.linear_triton(x, weight, tile=tile), wanted), tile
