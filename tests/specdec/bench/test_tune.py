"""The tuner without a GPU: its search, what it refuses, where a user's table lies and what it prints."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from specdec import user_tiles
from specdec.bench import tune
from specdec.bench.shapes import load_shape
from specdec.bench.tile_search import descend, neighbours
from specdec.bench.tune import Found, TunedRound, TuneSettings
from specdec.errors import ConfigError
from specdec.kernels.tile_tables import Product, Tile, table_of, write
from specdec.models.loader import load_model
from specdec.models.source import resolve
from specdec.progress import NoProgress
from specdec.round.probe import ProbeRound
from specdec.round.rows import Entries

FEW, MANY = Product("linear", 4, 4096, 2048), Product("linear", 128, 4096, 2048)
EXPERTS = Product("gate_up", 8, 768, 2048, 128, 8)
START = Tile(4, 16, 128, 4, 4)


def around(tile: Tile) -> Iterator[Tile]:
    return neighbours(tile, FEW, tied=False)


def test_neighbours_are_one_step_away() -> None:
    found = list(around(START))
    assert len(found) == len(set(found)) > 6
    for tile in found:
        changed = {name for name, value in asdict(tile).items() if value != asdict(START)[name]}
        assert len(changed) == 1 or (tile.stages == 1 and tile.k == 512), "or a whole chain at once"
        assert tile.m == START.m, "few rows are one tile"


def test_many_rows_may_be_cut() -> None:
    assert {tile.m for tile in neighbours(Tile(64, 128, 64, 4, 4, True), MANY, tied=False)} == {32, 64, 128}


def test_products_that_share_a_kernel_keep_what_they_share() -> None:
    start = Tile(8, 8, 128, 4, 3)
    found = list(neighbours(start, EXPERTS, tied=True))
    assert found
    assert {(tile.m, tile.warps, tile.in_turn) for tile in found} == {(8, 4, False)}


@pytest.mark.parametrize("product", [FEW, MANY, EXPERTS, Product("linear", 1, 8, 30)])
def test_every_tile_on_the_way_may_be_held_in_registers(product: Product) -> None:
    seen: set[Tile] = set()
    left = [Tile(max(product.rows, 1) if product.rows < 32 else 32, 16, 32, 4, 3)]
    while left and len(seen) < 500:
        tile = left.pop()
        seen.add(tile)
        for found in neighbours(tile, product, tied=False):
            chains = 1 if found.in_turn else 4
            outputs = found.n * (2 if product.kind == "gate_up" else 1)
            assert found.m * outputs * chains <= 128 * 32 * found.warps
            if found not in seen:
                left.append(found)


def test_the_search_walks_to_the_best_tile() -> None:
    best = Tile(4, 64, 64, 2, 6)

    def cost(tile: Tile) -> float:
        away = [abs(a.bit_length() - b.bit_length()) for a, b in ((tile.n, best.n), (tile.k, best.k), (tile.warps, best.warps))]
        return 1.0 + 0.1 * sum(away) + 0.1 * abs(tile.stages - best.stages) + tile.in_turn

    tried: list[Tile] = []

    def compare(tile: Tile, other: Tile) -> float:
        tried.append(tile)
        return cost(tile) / cost(other)

    assert descend(START, around, compare, 0.002) == (best, len(tried))
    assert len(tried) == len(set(tried)), "no tile is tried twice"


def test_what_does_not_run_or_hardly_gains_is_left() -> None:
    assert descend(START, around, lambda _tile, _best: float("inf"), 0.002)[0] == START
    assert descend(START, around, lambda _tile, _best: 0.999, 0.002)[0] == START


def test_a_round_keeps_what_gained() -> None:
    other = Tile(4, 8, 128, 4, 4)
    round_ = TunedRound(
        4, {"decoding": 2e-3}, {"decoding": 1.9e-3}, (Found(FEW, START, other, 0.05, 9), Found(MANY, START, START, 0.0, 3))
    )
    assert round_.kept == {FEW: other}
    header, lines = tune.rows({"results": {"rounds": [asdict(round_)]}})
    assert all(len(line) == len(header) for line in lines)
    assert lines[0] == ["4 rows, decoding", "", "", "2000 us", "1900 us"]
    assert lines[1] == [
        "linear 4096 x 2048", "4x16x128, 4 warps, 4 stages", "4x8x128, 4 warps, 4 stages", "9 tried", "-5.0%",
    ]  # fmt: skip
    assert lines[2][2] == "as before"


@pytest.mark.parametrize(
    ("rows", "names"),
    [(1, ["decoding"]), (2, ["decoding", "one tree"]), (64, ["decoding", "one tree"]), (256, ["decoding"]), (8192, ["prompt"])],
)
def test_rounds_have_as_many_rows_and_fit_the_pages(rows: int, names: list[str]) -> None:
    found = tune.rounds_of(rows, 100)
    assert [*found] == names
    entries = Entries(tune.PAGE, spare=-1, scratch=tune.PAGES * tune.PAGE)
    for parts in found.values():
        round_ = ProbeRound.of(parts, entries, tune.PAGES, torch.device("cpu"))
        laid_out, _ = round_.lay_out()
        assert laid_out.num_rows == rows
        assert int(laid_out.entries_R.max()) < tune.PAGES * tune.PAGE
        assert len(set(laid_out.entries_R.tolist())) == rows, "no row writes where another does"


def test_rounds_run_and_come_again(tiny_checkpoint: Callable[..., Path]) -> None:
    model = load_model(resolve(str(tiny_checkpoint("llama", max_position_embeddings=2048))), dtype="float32", device="cpu")
    probe = tune.make_probe(model)
    for parts in tune.rounds_of(4, model.config.vocab_size).values():
        run = probe.step(parts)
        first = run()
        assert first.shape == (4, model.config.vocab_size)
        assert torch.equal(run(), first), "else a tile could not be told to keep the bits"


def test_what_cannot_be_tuned_is_said(tmp_path: Path) -> None:
    loaded = load_shape("smollm2-135m", dtype="float32", device="cpu")
    with pytest.raises(ConfigError, match="powers of two; rows cannot be 3"):
        tune.run(TuneSettings(rows=(1, 3), output=tmp_path / "t.json"), loaded, NoProgress())
    with pytest.raises(ConfigError, match="there is none here"):
        tune.run(TuneSettings(rows=(1,), output=tmp_path / "t.json"), loaded, NoProgress())


def test_a_users_own_table_goes_before_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Users GPU")
    path = user_tiles.table_path(device)
    assert path == tmp_path / "tiles" / "Users-GPU.json"
    user_tiles.use_own(torch.device("cpu"))
    user_tiles.use_own(device)
    assert table_of("Users GPU") == {}
    write(path, {FEW: START})
    user_tiles.use_own(device)
    assert table_of("Users GPU") == {FEW: START}
    path.write_text("[{}]")
    with pytest.raises(ConfigError, match="is not a table of tiles: delete it"):
        user_tiles.use_own(device)
