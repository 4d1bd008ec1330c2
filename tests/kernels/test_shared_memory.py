"""Tiles and plans fit the shared memory of GPUs that have less of it than Hopper."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from specdec.kernels.tile_tables import Tile

linear = pytest.importorskip("specdec.kernels.linear.kernel")
moe = pytest.importorskip("specdec.kernels.moe.kernel")

# bytes of a program, and the buffers that a pipeline saves: compute capability 8.9, 8.0 and 9.0
ADA, AMPERE, HOPPER = (101_376, 1), (166_912, 1), (232_448, 0)
ROWS = (1, 2, 4, 8, 16, 24, 33, 64, 100, 128, 200, 256, 300, 2048)
LAYERS = [(576, 960), (1536, 576), (2048, 5120), (4096, 2048), (4096, 28672), (14336, 4096), (2048, 151_936)]


def test_tiles_are_left_alone_where_they_fit() -> None:
    for rows in ROWS:
        for depth, width in LAYERS:
            tile = linear.choose_tile(rows, width, depth)
            assert tile.fitted(*HOPPER) == tile.fitted(*AMPERE) == tile
        for gated in (True, False):
            tile = moe.choose_tile(rows, 8, 128, gated)
            assert tile.fitted(*HOPPER, 2 if gated else 1) == tile


def test_a_tile_gives_up_loads_in_flight_first_and_then_their_size() -> None:
    assert Tile(16, 16, 128, 4, 5).fitted(*ADA) == Tile(16, 16, 128, 4, 4)
    large = Tile(128, 128, 128, 8, 3, True)
    assert large.fitted(*ADA) == Tile(128, 128, 64, 8, 3, True)
    assert large.fitted(0) == Tile(128, 128, 16, 8, 1, True)


def test_kernels_compiled_for_a_small_gpu_fit_it() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("shared_memory.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}
