"""Measure which tiles of the matrix products are the fastest on this GPU: `specdec bench tune`.

What is timed is a whole round, replayed as a CUDA graph: a product by itself says little about one that starts while its
predecessor ends. The search begins at the tile in use (`tile_search.py`), each trial timed in turns with the best so far. The
round's logits must be the same to the bit, as the kernels' contract says: a tile with others is reported as a fault.
"""

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specdec.assemble import LoadedModel
from specdec.bench.environment import conditions
from specdec.bench.tile_search import descend, neighbours
from specdec.cache.kinds import CacheRoom, Caches, cache_dtype
from specdec.draft.tree import DraftTree
from specdec.errors import ConfigError
from specdec.kernels.linear import uses_triton
from specdec.kernels.tile_tables import Product, Tile, asked, instead, use, write
from specdec.models.base import Model
from specdec.progress import Progress
from specdec.round.forward import Forward
from specdec.round.graphs import Recording
from specdec.round.plan import MOST_TREE_ROWS
from specdec.round.probe import Part, Probe
from specdec.round.rows import Entries
from specdec.user_tiles import read_table

_log = logging.getLogger(__name__)

PAGE, PAGES = 64, 256
_CONTEXT_PAGES = 17  # of a sequence, where there is room: contexts of 1,024 tokens
_TREE_ROOM = 64  # positions of a tree
_TURNS, _FEWEST_TURNS = 8, 3
_TRIAL_SECONDS = 0.2  # long rounds take fewer turns
_RECORDINGS = 5  # graphs of the same launches differ by a percent, so a gain must show in all of them
_LEAST_GAIN = 0.002  # of a round's time

Run = Callable[[], Tensor]
Times = list[tuple[float, float]]  # of each kind of round, before and after
Tiles = Mapping[Product, Tile]


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneSettings:
    """rows: numbers of rows to tune rounds of. output: the table's file, added to if it is there."""

    rows: tuple[int, ...]
    output: Path


@dataclass(frozen=True, slots=True)
class Found:
    """One product's search. gain: share of the rounds' time that the new tile saves, 0 where the old one stays."""

    product: Product
    before: Tile
    after: Tile
    gain: float
    tried: int


@dataclass(frozen=True, slots=True)
class TunedRound:
    """seconds_before, seconds: of the rounds, by what they do, with the old tiles and with those that were found."""

    rows: int
    seconds_before: dict[str, float]
    seconds: dict[str, float]
    found: tuple[Found, ...]

    @property
    def kept(self) -> dict[Product, Tile]:
        """The tiles to put into the table."""
        return {each.product: each.after for each in self.found if each.gain > 0}


class Tuner:
    """Times rounds of one model.

    Args:
        model: on a GPU that the kernels support.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._gpu = torch.cuda.get_device_name(model.device)
        self._probe = make_probe(model)

    def tune(self, rows: int) -> TunedRound:
        """Search a tile for every product of rounds of `rows` rows, each with those that were found before it."""
        runs = {name: self._probe.step(parts) for name, parts in rounds_of(rows, self._model.config.vocab_size).items()}
        with asked() as products:
            for run in runs.values():  # each at least once: rounds read what others wrote
                run()
        chosen: dict[Product, Tile] = {}
        found = []
        for product in dict.fromkeys(products):
            if product.rows == rows:
                found.append(self._search([*runs.values()], product, chosen))
                chosen[product] = found[-1].after
        before, after = _medians(self._pairs([*runs.values()], {}, chosen))
        if not any(each.gain > 0 for each in found):
            after = before
        return TunedRound(rows, dict(zip(runs, before, strict=True)), dict(zip(runs, after, strict=True)), tuple(found))

    def _search(self, runs: Sequence[Run], product: Product, chosen: Tiles) -> Found:
        start = self._in_use(product)
        tied = product.kind != "linear" and _share_a_kernel(product.rows)
        current: list[tuple[Tile, list[Recording[Tensor]]]] = []  # the best so far

        def recorded(tile: Tile) -> list[Recording[Tensor]] | None:
            tiles = {**chosen, product: tile}
            with instead(self._gpu, tiles):
                # a tile that the GPU's memory makes another is no new one
                return self._try(runs, tiles) if self._in_use(product) == tile else None

        def compare(tile: Tile, best: Tile) -> float:
            if not current or current[0][0] != best:
                found = recorded(best)
                assert found is not None, "it ran before"
                current[:] = [(best, found)]
            other, mine = current[0][1], recorded(tile)
            if mine is None:
                return float("inf")
            if not all(torch.equal(a.output, b.output) for a, b in zip(mine, other, strict=True)):
                _log.warning("%s changes bits of %s; please report this GPU (%s).", tile, product, self._gpu)
                return float("inf")
            return _mean_ratio(_in_turns(other, mine))

        best, tried = descend(start, lambda tile: neighbours(tile, product, tied), compare, _LEAST_GAIN)
        if best != start:
            pairs = self._pairs(runs, {**chosen, product: start}, {**chosen, product: best})
            gains = [1 - _mean_ratio(times) for times in pairs]
            slower = any(after > before for before, after in zip(*_medians(pairs), strict=True))
            if min(gains) > 0 and not slower and (gain := statistics.median(gains)) >= _LEAST_GAIN:
                return Found(product, start, best, gain, tried)
        return Found(product, start, start, 0.0, tried)

    def _pairs(self, runs: Sequence[Run], before: Tiles, after: Tiles) -> list[Times]:
        """With these tiles and with those, several times, each with recordings of its own."""
        return [_in_turns(self._record(runs, before), self._record(runs, after)) for _ in range(_RECORDINGS)]

    def _try(self, runs: Sequence[Run], tiles: Tiles) -> list[Recording[Tensor]] | None:
        """None where the tiles ask for more than the GPU has, or the compiler cannot make them."""
        from triton.compiler.errors import CompilationError
        from triton.runtime.errors import OutOfResources, PTXASError

        try:
            return self._record(runs, tiles)
        except (OutOfResources, PTXASError, CompilationError, RuntimeError):
            return None

    def _record(self, runs: Sequence[Run], tiles: Tiles) -> list[Recording[Tensor]]:
        with instead(self._gpu, tiles):
            return [Recording(run) for run in runs]

    def _in_use(self, product: Product) -> Tile:
        from specdec.kernels.linear.kernel import device_tile as of_linear
        from specdec.kernels.moe.kernel import device_tile as of_experts

        device = self._model.device
        if product.kind == "linear":
            return of_linear(product.rows, product.outputs, product.inputs, device)
        sizes = product.rows, product.chosen, product.experts, product.outputs, product.inputs
        return of_experts(*sizes, product.kind == "gate_up", device)


def make_probe(model: Model) -> Probe:
    """A probe with room for every round that is tuned."""
    scratch = MOST_TREE_ROWS // PAGE
    room = CacheRoom(
        num_pages=PAGES + scratch,
        page_size=PAGE,
        num_slots=MOST_TREE_ROWS,
        num_marks=0,
        longest_path=1,
        dtype=cache_dtype(model.dtype, model.device),
        device=model.device,
    )
    return Probe(Forward(model, Caches(model.cache_specs, room)), Entries(PAGE, room.spare_entry, PAGES * PAGE), PAGES)


def rounds_of(rows: int, vocab_size: int) -> dict[str, list[Part]]:
    """What rounds of so many rows do, in random tokens: decode that many sequences, verify one's tree, or read one's prompt.

    A tile that helps where each row goes its own way may harm where rows share what they read.
    """
    tokens = np.random.default_rng(0).integers(0, vocab_size, rows)
    none = np.zeros(0, np.int64)
    if rows > MOST_TREE_ROWS:
        return {"prompt": [Part(0, tokens[:-1], DraftTree.root(int(tokens[-1])))]}
    first = min(_CONTEXT_PAGES, PAGES // rows) * PAGE - _TREE_ROOM
    found = {"decoding": [Part(first, none, DraftTree.root(int(token))) for token in tokens]}
    if 1 < rows <= _TREE_ROOM:
        tree = DraftTree.chain(int(tokens[0]), tokens[1:])
        found["one tree"] = [Part(_CONTEXT_PAGES * PAGE - _TREE_ROOM, none, tree)]
    return found


def _in_turns(before: Sequence[Recording[Tensor]], after: Sequence[Recording[Tensor]]) -> Times:
    """Median seconds of each round."""
    found = []
    for old, new in zip(before, after, strict=True):
        turns = max(_FEWEST_TURNS, min(_TURNS, int(_TRIAL_SECONDS / (old.seconds(1) + new.seconds(1)))))
        times = [(old.seconds(1), new.seconds(1)) for _ in range(turns)]
        found.append((statistics.median(a for a, _ in times), statistics.median(b for _, b in times)))
    return found


def _mean_ratio(times: Times) -> float:
    """Seconds after over seconds before, all kinds of rounds weighing the same."""
    return statistics.geometric_mean(after / before for before, after in times)


def _medians(pairs: Sequence[Times]) -> tuple[list[float], list[float]]:
    """Of each kind of round, before and after."""
    kinds = [*zip(*pairs, strict=True)]
    return [statistics.median(a for a, _ in kind) for kind in kinds], [statistics.median(b for _, b in kind) for kind in kinds]


def _share_a_kernel(rows: int) -> bool:
    from specdec.kernels.moe.kernel import DIRECT_ROWS

    return rows <= DIRECT_ROWS


@torch.inference_mode()
def run(settings: TuneSettings, loaded: LoadedModel, progress: Progress) -> dict[str, Any]:
    """Tune round by round, write the table after each, and return the JSON data of the bench.

    Raises:
        ConfigError: there is no GPU that the kernels run on, a number of rows is no power of two, or the file is no table.
    """
    if odd := [rows for rows in settings.rows if rows & (rows - 1)]:
        raise ConfigError(f"Tiles are chosen by powers of two; rows cannot be {odd[0]}.")
    device = loaded.model.device
    if device.type != "cuda" or not uses_triton(device):
        raise ConfigError("Tiles are measured on a GPU that the Triton kernels support; there is none here.")
    gpu = torch.cuda.get_device_name(device)
    table = read_table(settings.output)
    use(gpu, table)
    tuner = Tuner(loaded.model)
    rounds = []
    with progress.task("Measuring tiles", len(settings.rows)) as advance:
        for rows in settings.rows:
            rounds.append(tuner.tune(rows))
            table |= rounds[-1].kept
            write(settings.output, table)
            advance(1)
    return {
        "bench": "tune",
        **conditions(str(device)),
        "settings": {
            "model": loaded.name,
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
            "device": str(device),
            "rounds": "one token each of many sequences, and a tree of one; above 256 rows the prompt of one",
            "kept": f"saves {_LEAST_GAIN:.1%} of the rounds or more, in each of {_RECORDINGS} pairs of graphs, and slows none",
            "file": str(settings.output),
        },
        "results": {"rounds": [asdict(each) for each in rounds], "tiles_kept": sum(len(each.kept) for each in rounds)},
    }


def rows(data: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table."""
    lines: list[list[str]] = []
    for round_ in data["results"]["rounds"]:
        for name, before in round_["seconds_before"].items():
            after = round_["seconds"][name]
            lines.append([f"{round_['rows']} rows, {name}", "", "", f"{before * 1e6:.0f} us", f"{after * 1e6:.0f} us"])
        for found in round_["found"]:
            product = found["product"]
            name = f"{product['kind']} {product['outputs']} x {product['inputs']}"
            after_text = _sides(found["after"]) if found["gain"] > 0 else "as before"
            lines.append([name, _sides(found["before"]), after_text, f"{found['tried']} tried", f"-{found['gain']:.1%}"])
    return ["what", "tile", "faster tile", "before", "after, or saved of the rounds"], lines


def _sides(tile: Mapping[str, Any]) -> str:
    return f"{tile['m']}x{tile['n']}x{tile['k']}, {tile['warps']} warps, {tile['stages']} stages" + (
        ", in turn" if tile["in_turn"] else ""
    )
