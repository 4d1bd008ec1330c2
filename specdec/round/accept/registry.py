"""The acceptance rules by the names of `EngineConfig.acceptance`."""

from collections.abc import Callable

from specdec.round.accept.base import AcceptanceRule
from specdec.round.accept.rejection import Rejection
from specdec.round.accept.shared_noise import SharedNoise

RULES: dict[str, Callable[[], AcceptanceRule]] = {"shared-noise": SharedNoise, "rejection": Rejection}
