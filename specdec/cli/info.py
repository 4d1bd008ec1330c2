"""`specdec info`: what a model is and needs; and what `specdec serve` says about itself when it starts."""

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from specdec.cli.options import takes_engine
from specdec.cli.progress import RichProgress, on_stderr
from specdec.config import EngineConfig

if TYPE_CHECKING:
    from specdec.assemble import Assembled
    from specdec.models.info import ModelInfo
    from specdec.models.source import Source

_DRAFTERS = (
    ("ngram", "fits: copies from prompt and answer"),
    ("suffix", "fits: copies from earlier answers of the same server"),
    ("prediction", "fits: copies from the text that a request predicts"),
    ("lookahead", "fits: copies from what the model made by itself beside its answer"),
)


@takes_engine({"model", "revision", "draft_model"})
def info(config: EngineConfig) -> None:
    """Show what a model is, the memory it needs and the drafters that fit it."""
    from specdec.models.info import model_info  # bring torch, which --help should not wait for
    from specdec.models.source import resolve

    console = Console()
    progress = on_stderr()
    source = resolve(config.model, progress, weights=False, revision=config.revision)
    described = model_info(source)
    table = Table(title=config.model, show_header=False, title_justify="left")
    for name, value in [*_rows(described), *_cache_rows(described, config.page_size)]:
        table.add_row(name, value)
    for name, verdict in _DRAFTERS:
        table.add_row(f"drafter {name}", verdict)
    table.add_row("drafter draft-model", _draft_verdict(source, described, config.draft_model, progress))
    console.print(table)


def banner(assembled: "Assembled") -> str:
    """What is loaded, in a few lines."""
    described, config, test = assembled.model_info, assembled.config, assembled.self_test
    pages = assembled.engine.status().pages_total
    caches = f"{_size(pages * assembled.page_bytes)} for {pages * config.page_size:,} tokens"
    if assembled.state_bytes:
        caches += f" and {_size(assembled.state_bytes)} for states"
    padded = f" with rows padded to multiples of {test.row_multiple}" if test.row_multiple > 1 else ""
    checked = f"checked on this machine, {time.strftime('%Y-%m-%d %H:%M', time.localtime(assembled.measured_at))}"
    lossless = f"yes, to the bit; {checked}{padded}" if test.exact else f"NO: {test.failure}"
    return (
        f"Model     {assembled.model_name} ({described.config.family}, {_millions(described.num_parameters)} parameters), "
        f"{assembled.dtype} on {assembled.device}\n"
        f"Memory    weights {_size(_weight_bytes(described, assembled.dtype))}, "
        f"caches {caches}, longest request {config.max_model_len:,}\n"
        f"Drafters  {', '.join(assembled.drafters) or 'none'}; acceptance {config.acceptance}\n"
        f"Lossless  {lossless}"
    )


def _rows(described: "ModelInfo") -> list[tuple[str, str]]:
    config = described.config
    rows = [
        ("family", config.family),
        ("parameters", f"{described.num_parameters:,}"),
        (
            "layers, heads",
            f"{config.num_layers} layers, {config.num_heads} heads, {config.num_kv_heads} of them for keys and values",
        ),
        ("vocabulary", f"{config.vocab_size:,}"),
        ("longest context", f"{config.max_position_embeddings:,} tokens"),
        ("weights in float32", _size(_weight_bytes(described, "float32"))),
        ("weights in bfloat16, float16", _size(_weight_bytes(described, "bfloat16"))),
    ]
    if described.num_active_parameters != described.num_parameters:
        rows.insert(2, ("parameters of one token", f"{described.num_active_parameters:,}"))
    return rows


def _draft_verdict(source: "Source", target: "ModelInfo", draft_model: str | None, progress: RichProgress) -> str:
    if draft_model is None:
        return f"any smaller model with the same tokenizer ({target.config.vocab_size:,} tokens); try --draft-model NAME"
    from specdec.errors import ConfigError
    from specdec.models.info import model_info
    from specdec.models.source import resolve
    from specdec.text.pair import draftable
    from specdec.text.tokenizer import Tokenizer

    candidate = resolve(draft_model, progress, weights=False)
    described = model_info(candidate)
    try:
        draftable(Tokenizer.load(source), Tokenizer.load(candidate))
    except ConfigError as error:
        return f"{draft_model} does not fit: {error}"
    share = described.num_parameters / target.num_parameters
    return f"{draft_model} fits; it has {share:.0%} of the parameters"


def _weight_bytes(described: "ModelInfo", dtype: str) -> int:
    import torch

    return described.weight_bytes(getattr(torch, dtype))


def _cache_rows(described: "ModelInfo", page_size: int) -> list[tuple[str, str]]:
    """What a sequence needs of the caches: pages as it grows, and what is kept beside them."""
    import torch

    from specdec.cache.kinds import page_bytes, slot_bytes

    specs = described.cache_specs
    on_cpu, on_gpu = (page_bytes(specs, page_size, dtype) for dtype in (torch.float32, torch.bfloat16))
    rows = [
        ("cache of a token", f"{on_cpu // page_size:,} bytes on a CPU, {on_gpu // page_size:,} on a GPU"),
        (f"cache of a page, {page_size} tokens", f"{on_cpu:,} bytes on a CPU, {on_gpu:,} on a GPU"),
    ]
    if kept := slot_bytes(specs, 0, torch.float32):
        rows.append(("state of a sequence", f"{kept:,} bytes, whatever its length, and more for drafts"))
    return rows


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def _millions(count: int) -> str:
    if count >= 1e9:
        return f"{count / 1e9:.1f} billion"
    return f"{count / 1e6:.0f} million" if count >= 1e6 else f"{count:,}"
