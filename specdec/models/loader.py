"""From files to a model: reads tensor by tensor, converts and packs each at once, so that memory never holds two copies."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from specdec.errors import ConfigError
from specdec.kernels.linear import PackedWeight, pack
from specdec.models.base import Model, ModelConfig
from specdec.models.checkpoint import Checkpoint, SafetensorsCheckpoint
from specdec.models.config import as_ids
from specdec.models.registry import family, read_config
from specdec.models.source import Source
from specdec.progress import NoProgress, Progress

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# buffers that old exports carry along and nobody reads
_HARMLESS = ("rotary_emb.inv_freq", "self_attn.bias", "self_attn.masked_bias")


def load_model(source: Source, *, dtype: str, device: str, progress: Progress | None = None) -> Model:
    """Load a model.

    Args:
        dtype: auto, float32, bfloat16 or float16; see `choose_dtype`.
        device: auto, cpu, cuda or cuda:<index>; see `choose_device`.

    Raises:
        ConfigError: the family or a field of the config is not supported; a tensor is missing, has another shape or
            would be left unread. The message names it.
    """
    config = read_source_config(source)
    on = choose_device(device)
    with _open(source) as checkpoint, (progress or NoProgress()).task("Loading weights", len(checkpoint.names())) as advance:
        weights = CheckpointWeights(checkpoint, choose_dtype(dtype, on), on, advance)
        model = family(config.family).build(config, weights)
        weights.check_all_read(config)
    return model


def read_source_config(source: Source) -> ModelConfig:
    """The configuration of a model; stop tokens from generation_config.json where that names some."""
    if source.is_gguf:
        return source.gguf.config
    config = read_config(source.json("config.json"))
    eos = as_ids(source.json("generation_config.json").get("eos_token_id"))
    return replace(config, eos_token_ids=eos) if eos else config


def choose_device(name: str) -> torch.device:
    """auto is the first CUDA device, else the CPU. ConfigError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device must be auto, cpu or cuda, not {name!r}.") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda, not {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name}: this machine shows {torch.cuda.device_count()} CUDA devices.")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto is bfloat16 where the device computes it natively, else float32, whatever the checkpoint's own dtype."""
    if name == "auto":
        native = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if native else torch.float32
    if name not in _DTYPES:
        raise ConfigError(f"dtype must be auto, {', '.join(_DTYPES)}, not {name!r}.")
    return _DTYPES[name]


class CheckpointWeights:
    """The tensors of a checkpoint, converted and packed as they are read. See `specdec.models.base.Weights`."""

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, advance: Callable[[int], None]
    ) -> None:
        self._checkpoint = checkpoint
        self._names = checkpoint.names()
        self._unread = set(self._names)
        self._dtype = dtype
        self._device = device
        self._advance = advance

    def has(self, name: str) -> bool:
        return name in self._names

    def plain(self, name: str, *shape: int) -> Tensor:
        return self._read(name, shape, self._dtype)

    def packed(self, *parts: tuple[str, int, int]) -> PackedWeight:
        tensors = [self._read(name, shape, self._dtype) for name, *shape in parts]
        return pack(torch.cat(tensors) if len(tensors) > 1 else tensors[0])

    def packed_float32(self, name: str, *shape: int) -> PackedWeight:
        return pack(self._read(name, shape, torch.float32))

    def packed_experts(self, name: str, num_experts: int, *shape: int) -> Sequence[PackedWeight]:
        stack = self._read(name, (num_experts, *shape), self._dtype)
        return [pack(expert) for expert in stack]

    def shared(self, plain: Tensor) -> PackedWeight:
        return pack(plain, keep_plain=True)

    def check_all_read(self, config: ModelConfig) -> None:
        """ConfigError where a tensor was not read: the model would not be the one in the checkpoint."""
        ignored = ("lm_head.weight", *_HARMLESS) if config.tie_word_embeddings else _HARMLESS
        left = sorted(name for name in self._unread if not name.endswith(ignored))
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise ConfigError(
                f"The checkpoint's tensor {left[0]}{more} has no place in a {config.family} model of this config."
            )

    def _read(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        if name not in self._names:
            raise ConfigError(f"The checkpoint has no tensor {name}.")
        tensor = self._checkpoint.read(name, dtype)
        if tensor.shape != tuple(shape):
            raise ConfigError(f"Tensor {name} has shape {list(tensor.shape)}, but the config asks for {list(shape)}.")
        self._unread.discard(name)
        self._advance(1)
        return tensor.to(self._device)


def _open(source: Source) -> Checkpoint:
    return source.gguf if source.is_gguf else SafetensorsCheckpoint(source.path)
