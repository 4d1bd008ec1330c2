"""The tiles that a user measured on their own GPU: where their table lies, and how it is taken into use."""

from pathlib import Path

import torch

from specdec.errors import ConfigError
from specdec.kernels.tile_tables import Product, Tile, file_name, read, use
from specdec.models.source import cache_folder


def table_path(device: torch.device) -> Path:
    """Of the table for this GPU, which `specdec bench tune` writes."""
    return cache_folder() / "tiles" / file_name(torch.cuda.get_device_name(device))


def read_table(path: Path) -> dict[Product, Tile]:
    """A table; empty where there is no file.

    Raises:
        ConfigError: the file is no table.
    """
    try:
        return read(path) if path.is_file() else {}
    except ValueError as error:
        raise ConfigError(f"{path} is not a table of tiles: delete it, or make it again with `specdec bench tune`.") from error


def use_own(device: torch.device) -> None:
    """Prefer the user's tiles to those that come with the package. Does nothing without a GPU.

    Raises:
        ConfigError: the user's table is none.
    """
    if device.type == "cuda":
        use(torch.cuda.get_device_name(device), read_table(table_path(device)))
