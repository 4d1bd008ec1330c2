"""What the routes share: one model, the way to its engine, and the name it is served under."""

from dataclasses import dataclass, field

from aiohttp import web

from specdec import __version__
from specdec.server.client import EngineClient
from specdec.server.errors import ApiError
from specdec.server.messages import EngineInfo
from specdec.server.tolerance import Told


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """One served model.

    model_name: what clients call it.
    created: when the server was made, in seconds since 1970.
    vllm_metrics: whether metrics are told under vLLM's names too.
    told: what its clients sent in vain.
    """

    info: EngineInfo
    engine: EngineClient
    model_name: str
    created: int
    vllm_metrics: bool = False
    told: Told = field(default_factory=Told)

    @property
    def fingerprint(self) -> str:
        """What, beside the call itself, its output depends on."""
        return f"specdec-{__version__}-{self.info.dtype}"

    def check_model(self, name: str | None) -> None:
        """Raise ApiError 404 for a model that is not served; a request that names none means the one that is."""
        if name is not None and name != self.model_name:
            message = f"The model {name!r} does not exist; this server serves {self.model_name!r}."
            raise ApiError(404, message, param="model", code="model_not_found")


SERVICE = web.AppKey("service", Service)
