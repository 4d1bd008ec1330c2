"""What the routes share: one model, its engine's bridge, and the name it is served under."""

from dataclasses import dataclass

from aiohttp import web

from specdec import __version__
from specdec.assemble import Assembled
from specdec.server.bridge import Bridge
from specdec.server.errors import ApiError


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """One served model.

    model_name: what clients call it.
    created: when the server was made, in seconds since 1970.
    """

    assembled: Assembled
    bridge: Bridge
    model_name: str
    created: int

    @property
    def fingerprint(self) -> str:
        """What, beside the call itself, its output depends on."""
        return f"specdec-{__version__}-{self.assembled.dtype}"

    def check_model(self, name: str) -> None:
        """Raise ApiError 404 for a model that is not served."""
        if name != self.model_name:
            message = f"The model {name!r} does not exist; this server serves {self.model_name!r}."
            raise ApiError(404, message, param="model", code="model_not_found")


SERVICE = web.AppKey("service", Service)
