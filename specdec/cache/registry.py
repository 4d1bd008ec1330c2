"""The kinds of caches, by the specs that ask for them. To add one: a module here beside, and a line below."""

import importlib
from typing import TYPE_CHECKING, cast

from specdec.models.base import AttentionSpec, CacheSpec, RecurrentSpec

if TYPE_CHECKING:
    from specdec.cache.kinds import CacheKind

_KINDS: dict[type[CacheSpec], tuple[str, str]] = {
    AttentionSpec: ("specdec.cache.attention", "AttentionCache"),
    RecurrentSpec: ("specdec.cache.recurrent", "RecurrentCache"),
}


def kind_of(spec: CacheSpec) -> "type[CacheKind]":
    """The class that keeps what such a layer needs."""
    module, name = _KINDS[type(spec)]
    return cast("type[CacheKind]", getattr(importlib.import_module(module), name))
