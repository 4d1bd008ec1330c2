"""What the settings come to on a machine: how many sequences, how long, and the memory that the caches take."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from specdec.cache.kinds import cache_dtype, has_state, page_bytes, slot_bytes
from specdec.config import EngineConfig
from specdec.errors import ConfigError
from specdec.models.base import CacheSpec, Model
from specdec.round.plan import MOST_TREE_ROWS

_GPU_TILE = 64  # keys that the attention kernels read at once, from one page
_CPU_CACHE_GB = 2.0
_ROOM_FOR_ROWS = 2e9  # bytes, of which 8,192 rows of a 30B mixture of experts take about a third
_GPU_SHARE = 0.85  # of the memory that the weights leave free; the rest is for slots, activations and graphs
_MOST_POSITIONS = 1 << 20  # of all pages, whatever memory is given
FEWEST_PAGES = 2
_MARKS_PER_SLOT = 1  # states kept for prefixes, beside those of sequences


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the settings come to on this machine; max_model_len is in positions. num_marks: None where prefixes need none."""

    num_pages: int
    max_model_len: int
    max_batch: int
    chunk_tokens: int
    num_marks: int | None
    longest_path: int


def most_sequences(config: EngineConfig, model: Model) -> int:
    """Of one round."""
    return min(config.max_batch or (256 if model.device.type == "cuda" else 32), MOST_TREE_ROWS)


def sizes_of(config: EngineConfig, model: Model, specs: Sequence[CacheSpec]) -> Sizes:
    """What fits into the memory that the settings give. ConfigError where that is too little for what they ask."""
    on_gpu = model.device.type == "cuda"
    max_batch = most_sequences(config, model)
    cache_gb = config.cache_gb
    if cache_gb is None:
        cache_gb = _gpu_cache_gb(config, model.device) if on_gpu else _CPU_CACHE_GB
    stored = cache_dtype(model.dtype, model.device)
    states = state_bytes_of(config, model, specs)
    each = max(page_bytes(specs, config.page_size, stored), 1)  # states alone need no page
    positions = min(max(int(cache_gb * 1e9 - states), 0) // each * config.page_size, _MOST_POSITIONS)
    fewer = f"; {max_batch} sequences keep {states / 1e9:.2g} GB of states, fewer with a lower --max-batch" if states else ""
    most = model.config.max_position_embeddings
    wanted = config.max_model_len
    if wanted is not None and wanted > most:
        raise too_long(wanted, most)
    if wanted is not None and wanted > positions:
        raise ConfigError(
            f"cache_gb {cache_gb:g} holds {positions} tokens of this model, less than max_model_len {wanted}; "
            f"raise --cache-gb or lower --max-model-len{fewer}."
        )
    if on_gpu and config.page_size % _GPU_TILE:
        raise ConfigError(f"page_size is {config.page_size}, but on a GPU it must be a multiple of {_GPU_TILE}.")
    if positions < FEWEST_PAGES * config.page_size:
        raise ConfigError(f"cache_gb {cache_gb:g} holds only {positions} tokens of this model; raise --cache-gb{fewer}.")
    return Sizes(
        num_pages=positions // config.page_size,
        max_model_len=wanted or min(most, positions),
        max_batch=max_batch,
        chunk_tokens=config.chunk_tokens or _chunk_tokens(model.device, cache_gb * 1e9),
        num_marks=_num_marks(config, max_batch) if has_state(specs) else None,
        longest_path=_longest_path(config),
    )


def _gpu_cache_gb(config: EngineConfig, device: torch.device) -> float:
    """What is left for caches once the weights are loaded."""
    free, total = torch.cuda.mem_get_info(device)
    if config.gpu_memory_utilization is None:
        return _GPU_SHARE * free / 1e9
    left = free - (1 - config.gpu_memory_utilization) * total
    if left <= 0:
        raise ConfigError(
            f"gpu_memory_utilization {config.gpu_memory_utilization:g} of {total / 1e9:.1f} GB leaves nothing for caches: "
            f"{(total - free) / 1e9:.1f} GB are taken; raise --gpu-memory-utilization."
        )
    return left / 1e9


def too_long(wanted: int, most: int) -> ConfigError:
    """The error for a context that the model cannot have."""
    return ConfigError(f"max_model_len is {wanted}, but the model knows {most} positions; lower --max-model-len.")


def _num_marks(config: EngineConfig, max_batch: int) -> int:
    return max_batch * _MARKS_PER_SLOT if config.prefix_cache else 0


def _longest_path(config: EngineConfig) -> int:
    """Rows of a tree that a round keeps at most."""
    return min(config.max_tree_nodes, config.max_tree_depth + 1) if config.drafters else 1


def state_bytes_of(config: EngineConfig, model: Model, specs: Sequence[CacheSpec]) -> int:
    """What the caches keep beside pages: of all slots and for prefixes, a spare one each."""
    max_batch, stored = most_sequences(config, model), cache_dtype(model.dtype, model.device)
    slots = (max_batch + 1) * slot_bytes(specs, _longest_path(config), stored)
    return slots + (_num_marks(config, max_batch) + 1) * slot_bytes(specs, 0, stored)


def _chunk_tokens(device: torch.device, cache_bytes: float) -> int:
    """Large products want many rows, where there is room for what these leave behind."""
    if device.type != "cuda":
        return 256
    return 8192 if torch.cuda.mem_get_info(device)[0] - cache_bytes >= _ROOM_FOR_ROWS else 2048
