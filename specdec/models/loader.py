"""From files to a model: reads tensor by tensor, converts and packs each at once, so that memory never holds two copies."""

import importlib.util
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from specdec.errors import ConfigError
from specdec.kernels.linear import PackedWeight, pack, uses_triton
from specdec.kernels.moe import Experts
from specdec.models.base import Model, ModelConfig
from specdec.models.checkpoint import Checkpoint, SafetensorsCheckpoint
from specdec.models.config import as_ids
from specdec.models.ends import ends_are_one, settle_ends
from specdec.models.outline import OutlineWeights
from specdec.models.registry import family, read_config
from specdec.models.source import Source
from specdec.progress import NoProgress, Progress

_log = logging.getLogger(__name__)

_LEAST_CAPABILITY = (8, 0)  # bfloat16 on the matrix units
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(source: Source, *, dtype: str, device: str, progress: Progress | None = None, num_positions: int = 0) -> Model:
    """Load a model.

    Args:
        dtype: auto, float32, bfloat16 or float16; see `choose_dtype`.
        device: auto, cpu, cuda or cuda:<index>; see `choose_device`.
        num_positions: that it has to take at least, however few it was trained on: a draft model may be as poor as it likes.

    Raises:
        ConfigError: the family or a field of the config is not supported; a tensor is missing, has another shape or
            would be left unread. The message names it.
    """
    config = read_source_config(source)
    config = replace(config, max_position_embeddings=max(config.max_position_embeddings, num_positions))
    on = choose_device(device)
    chosen = choose_dtype(dtype, on)
    with _open(source) as files:
        settled, checkpoint = settle_ends(config, files)
        check_checkpoint(settled, checkpoint)
        if config.tie_word_embeddings and not settled.tie_word_embeddings:
            settled = replace(settled, tie_word_embeddings=ends_are_one(checkpoint, chosen))
        count = len(checkpoint.names())
        with (progress or NoProgress()).task("Loading weights", count) as advance:
            return family(config.family).build(settled, CheckpointWeights(checkpoint, chosen, on, advance))


def check_checkpoint(config: ModelConfig, checkpoint: Checkpoint) -> None:
    """Hold the tensors' names and shapes to the config, before any is read.

    Raises:
        ConfigError: a tensor is missing, has another shape or would be left unread; the message names it.
    """
    outline = OutlineWeights(checkpoint)
    family(config.family).build(config, outline)
    outline.check_all_read(config)


def read_source_config(source: Source) -> ModelConfig:
    """The configuration of a model; stop tokens from generation_config.json where that names some."""
    if source.is_gguf:
        return source.gguf.config
    config = read_config(source.json("config.json"))
    eos = as_ids(source.json("generation_config.json").get("eos_token_id"))
    return replace(config, eos_token_ids=eos) if eos else config


def choose_device(name: str) -> torch.device:
    """auto is the first CUDA device, else the CPU. A GPU that the kernels do not run on gives the CPU, with a warning.

    Raises:
        ConfigError: a device that is not there.
    """
    if name == "auto":
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    else:
        device = _named_device(name)
    if device.type == "cuda" and (reason := _unusable(device)):
        _log.warning("%s: the model runs on the CPU.", reason)
        return torch.device("cpu")
    return device


def _named_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device must be auto, cpu or cuda, not {name!r}.") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda, not {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name}: this machine shows {torch.cuda.device_count()} CUDA devices.")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _unusable(device: torch.device) -> str | None:
    """Why the kernels do not run on a GPU; None where they do."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed, and without it the GPU is not used"
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        name, least = torch.cuda.get_device_name(device), ".".join(map(str, _LEAST_CAPABILITY))
        return f"{name} has compute capability {capability[0]}.{capability[1]}, the kernels need {least} or more"
    return None


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto is bfloat16 where the device computes it natively, else float32, whatever the checkpoint's own dtype.

    Raises:
        ConfigError: an unknown name, or float32 on a GPU.
    """
    if name == "auto":
        native = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if native else torch.float32
    if name not in _DTYPES:
        raise ConfigError(f"dtype must be auto, {', '.join(_DTYPES)}, not {name!r}.")
    if device.type == "cuda" and name == "float32":
        raise ConfigError("dtype float32 runs on the CPU only; on a GPU choose bfloat16 or float16, or add --device cpu.")
    return _DTYPES[name]


class CheckpointWeights:
    """The tensors of a checked checkpoint, converted and packed as they are read. See `specdec.models.base.Weights`."""

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, advance: Callable[[int], None]
    ) -> None:
        self._checkpoint = checkpoint
        self._names = checkpoint.names()
        self._dtype = dtype
        self._device = device
        self._advance = advance

    def has(self, name: str) -> bool:
        return name in self._names

    def plain(self, name: str, *shape: int) -> Tensor:
        return self._read(name, self._dtype).view(shape)

    def packed(self, *parts: tuple[str, int, int]) -> PackedWeight:
        tensors = [self._read(name, self._dtype) for name, _, _ in parts]
        return pack(torch.cat(tensors) if len(tensors) > 1 else tensors[0])

    def router(self, name: str, *shape: int) -> PackedWeight:
        dtype = self._dtype if uses_triton(self._device) else torch.float32
        return pack(self._read(name, dtype).view(shape))

    def experts(self, num_experts: int, *parts: tuple[str, int, int]) -> Experts:
        if "{}" not in parts[0][0]:
            ((name, _, _),) = parts
            stack = self._read(name, self._dtype)
            return stack if uses_triton(self._device) else [pack(expert) for expert in stack]
        each = ([(name.format(i), rows, columns) for name, rows, columns in parts] for i in range(num_experts))
        if not uses_triton(self._device):
            return [self.packed(*expert) for expert in each]
        return self._stacked(num_experts, each)

    def _stacked(self, num_experts: int, each: Iterable[Sequence[tuple[str, int, int]]]) -> Tensor:
        """[experts, outputs, inputs], filled in place so that there is never a second copy of a layer."""
        stack: Tensor | None = None
        for index, expert in enumerate(each):
            if stack is None:
                outputs = sum(rows for _, rows, _ in expert)
                stack = torch.empty((num_experts, outputs, expert[0][2]), dtype=self._dtype, device=self._device)
            tensors = [self._read(name, self._dtype) for name, _, _ in expert]
            torch.cat(tensors, out=stack[index])
        assert stack is not None, "a sparse layer has experts"
        return stack

    def shared(self, plain: Tensor) -> PackedWeight:
        return pack(plain, keep_plain=True)

    def _read(self, name: str, dtype: torch.dtype) -> Tensor:
        tensor = self._checkpoint.read(name, dtype)
        self._advance(1)
        return tensor.to(self._device)


def _open(source: Source) -> Checkpoint:
    return source.gguf if source.is_gguf else SafetensorsCheckpoint(source.path)
