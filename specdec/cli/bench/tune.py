"""`specdec bench tune`: the fastest tiles of this GPU."""

from pathlib import Path
from typing import Annotated

import typer

from specdec.cli.bench.options import Shape, numbers
from specdec.cli.bench.output import show
from specdec.cli.options import takes_engine
from specdec.cli.progress import on_stderr
from specdec.config import EngineConfig
from specdec.errors import ConfigError

_TUNED_ROWS = "1,2,4,8,16,32,64,128,256,8192"


@takes_engine({"model", "dtype"})
def tune(
    config: EngineConfig,
    shape: Shape = None,
    rows: Annotated[
        str, typer.Option(help="Rows of the rounds to tune: powers of two, with commas; above 256 a prompt's.")
    ] = _TUNED_ROWS,
    output: Annotated[
        Path | None, typer.Option(help="Table to add to; if not given, the one that specdec reads for this GPU.")
    ] = None,
) -> None:
    """Find the fastest tiles of this GPU's matrix products for a model. Takes minutes; changes speed only."""
    import torch  # which --help should not wait for

    from specdec import assemble, user_tiles
    from specdec.bench import tune
    from specdec.bench.shapes import load_shape

    if not torch.cuda.is_available():
        raise ConfigError("Tiles are measured on an NVIDIA GPU, and PyTorch finds none here.")
    progress = on_stderr()
    loaded = load_shape(shape, dtype=config.dtype, device="cuda") if shape is not None else assemble.load(config, progress)
    settings = tune.TuneSettings(rows=numbers(rows, "rows"), output=output or user_tiles.table_path(loaded.model.device))
    data = tune.run(settings, loaded, progress)
    show(f"Tiles of {loaded.name}, written to {settings.output}", tune.rows(data), data)
