"""The exceptions a caller may see. Each names the field that is wrong and says what would be right."""


class SpecdecError(Exception):
    """Base of every error that specdec raises on purpose."""


class ConfigError(SpecdecError, ValueError):
    """A setting, model or checkpoint that specdec cannot use; the message says what to change."""


class ModelNotFoundError(ConfigError):
    """A model name or path that leads to no checkpoint."""


class RequestError(SpecdecError, ValueError):
    """A request that can never be served as it is.

    Args:
        message: what is wrong and what would be right.
        param: the request field that is wrong, as the API names it.
        code: a short machine-readable word, as the API's `error.code`.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class RoundError(SpecdecError, RuntimeError):
    """A request failed in its round; it is lost, the engine is not."""


class DeviceError(SpecdecError, RuntimeError):
    """The device that rounds run on answers no more, and its engine serves nobody again; a new process may."""
