"""The acceptance rules by the names of `EngineConfig.acceptance`."""

from collections.abc import Callable

from specdec.acceptance.base import AcceptanceRule
from specdec.acceptance.rejection import Rejection
from specdec.acceptance.shared_noise import SharedNoise

RULES: dict[str, Callable[[], AcceptanceRule]] = {"shared-noise": SharedNoise, "rejection": Rejection}
