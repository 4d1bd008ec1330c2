"""The two ends of a model, embedding and output head, which may be one tensor, under either name.

A flag in the config says whether they are one, but checkpoints contradict it: what the file holds decides, as in transformers.
"""

from collections.abc import Collection
from dataclasses import replace
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from specdec.errors import ConfigError
from specdec.models.checkpoint import Checkpoint
from specdec.models.config import ModelConfig
from specdec.models.names import EMBEDDING, HEAD


def settle_ends(config: ModelConfig, checkpoint: Checkpoint) -> tuple[ModelConfig, Checkpoint]:
    """Whether head and embedding are one, by which of them the checkpoint holds; nothing is read. Where it holds both, they are
    taken for two.

    Raises:
        ConfigError: one of them is missing, and the config says that they are not one.
    """
    names = checkpoint.names()
    if EMBEDDING in names and HEAD in names:
        return replace(config, tie_word_embeddings=False), checkpoint
    if EMBEDDING not in names and HEAD not in names:
        return config, checkpoint
    if config.tie_word_embeddings is False:
        missing = HEAD if EMBEDDING in names else EMBEDDING
        raise ConfigError(
            f"The checkpoint has no tensor {missing}. Fetch a whole one, or, if the head is the embedding, set "
            "tie_word_embeddings to true in config.json."
        )
    tied = replace(config, tie_word_embeddings=True)
    return tied, checkpoint if EMBEDDING in names else _HeadAlone(checkpoint)


def ends_are_one(checkpoint: Checkpoint, dtype: torch.dtype) -> bool:
    """Whether the two tensors are the same in the model's dtype, so that one need not be kept."""
    return torch.equal(checkpoint.read(EMBEDDING, dtype), checkpoint.read(HEAD, dtype))


class _HeadAlone:
    """A checkpoint whose one tensor for both ends is called the head. See `Checkpoint`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def names(self) -> Collection[str]:
        return {EMBEDDING if name == HEAD else name for name in self._checkpoint.names()}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._checkpoint.shape(HEAD if name == EMBEDDING else name)

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        return self._checkpoint.read(HEAD if name == EMBEDDING else name, dtype)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._checkpoint.__exit__(kind, value, trace)
