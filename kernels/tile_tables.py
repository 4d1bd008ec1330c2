"""Tiles of matrix products: their shape, and which were measured to be the fastest on a GPU. Speed only, never bits.

A table belongs to a GPU's name: those in `tables/` come with the package, a user's own is added by `use`. What no table knows
is left to the rule beside the kernel.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import torch

MOST_ROWS = 8192  # more are computed as these are

Kind = Literal["linear", "gate_up", "down"]
_Chooser = TypeVar("_Chooser", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Tile:
    """Shape of one program's work.

    m, n, k: rows, outputs and inputs at once. warps: of a program. stages: loads in flight, in tiles of k inputs.
    in_turn: accumulator chains run one after the other, for large tiles.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    in_turn: bool = False

    def __post_init__(self) -> None:
        sides = (self.m, self.n, self.k, self.warps)
        if any(side < 1 or side & (side - 1) for side in sides) or self.k < 16 or self.warps > 16 or self.stages < 1:
            raise ValueError(f"{self} is no tile: m, n, k and warps are powers of two, k at least 16, stages at least 1")

    @property
    def options(self) -> dict[str, int | bool]:
        """As the kernels take them."""
        return {
            "BLOCK_M": self.m,
            "BLOCK_N": self.n,
            "BLOCK_K": self.k,
            "IN_TURN": self.in_turn,
            "STAGES": self.stages,
            "num_warps": self.warps,
            "enable_fp_fusion": False,
        }

    def fitted(self, most_bytes: int, saved_buffers: int = 0, wide: int = 1) -> "Tile":
        """With fewer or smaller loads in flight, where a program has no more shared memory; see `shared_memory`.

        wide: rows of weights for each output.
        """
        chains = 1 if self.in_turn else 4
        stages, k = self.stages, self.k
        while chains * (self.m + wide * self.n) * k * 2 * max(1, stages - saved_buffers) > most_bytes and (
            k > 16 or stages > 1
        ):
            if stages > 3 or k == 16:
                stages -= 1
            else:
                k //= 2
        return replace(self, stages=stages, k=k)


@dataclass(frozen=True, slots=True)
class Product:
    """What a tile is chosen for.

    rows: a bucket, see `row_bucket`. outputs, inputs: of the weight, or of each expert's. experts, chosen: how many there are
    and how many a row goes to; 1 for a linear layer.
    """

    kind: Kind
    rows: int
    outputs: int
    inputs: int
    experts: int = 1
    chosen: int = 1


_tables: dict[str, dict[Product, Tile]] = {}  # by GPU
_choosers: list[Callable[[], None]] = []
_asked: list[Product] | None = None


def row_bucket(num_rows: int) -> int:
    """The next power of two."""
    return min(1 << (num_rows - 1).bit_length(), MOST_ROWS)


def remembered(choose: _Chooser) -> _Chooser:
    """Let a function that chooses tiles be asked once for the same arguments, until a table changes.

    Rounds that are launched kernel by kernel wait for the host, hence this.
    """
    cached = functools.lru_cache(maxsize=4096)(choose)
    _choosers.append(cached.cache_clear)
    return cached  # type: ignore[return-value]


def measured(product: Product, device: torch.device) -> Tile | None:
    """The tile that a table names for this GPU."""
    if _asked is not None:
        _asked.append(product)
    if device.type != "cuda":
        return None
    return table_of(torch.cuda.get_device_name(device)).get(product)


def table_of(gpu: str) -> Mapping[Product, Tile]:
    """All that is known about a GPU, by its name."""
    if gpu not in _tables:
        path = Path(__file__).parent / "tables" / file_name(gpu)
        _tables[gpu] = read(path) if path.is_file() else {}
    return _tables[gpu]


def use(gpu: str, table: Mapping[Product, Tile]) -> None:
    """Add tiles to what is known about a GPU, in place of others for the same products."""
    _tables[gpu] = {**table_of(gpu), **table}
    for forget in _choosers:
        forget()


@contextmanager
def instead(gpu: str, table: Mapping[Product, Tile]) -> Iterator[None]:
    """As `use`, for a while."""
    before = dict(table_of(gpu))
    use(gpu, table)
    try:
        yield
    finally:
        _tables[gpu] = before
        use(gpu, {})


@contextmanager
def asked() -> Iterator[list[Product]]:
    """Collect the products that tiles are asked for."""
    global _asked
    for forget in _choosers:
        forget()
    _asked = []
    try:
        yield _asked
    finally:
        _asked = None


def file_name(gpu: str) -> str:
    """Of the table of a GPU."""
    return re.sub(r"\W+", "-", gpu).strip("-") + ".json"


def read(path: Path) -> dict[Product, Tile]:
    """A table's file.

    Raises:
        ValueError: it is not what `write` makes.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {Product(**entry["product"]): Tile(**entry["tile"]) for entry in entries}
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a table of tiles") from error


def write(path: Path, table: Mapping[Product, Tile]) -> None:
    """One product a line, in order."""
    in_order = sorted(table, key=lambda p: (p.kind, p.experts, p.chosen, p.inputs, p.outputs, p.rows))
    lines = [json.dumps({"product": asdict(product), "tile": asdict(table[product])}) for product in in_order]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
