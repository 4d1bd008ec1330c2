"""What a model's publisher recommends for sampling: generation_config.json, or the keys that stand for it in a GGUF file."""

from collections.abc import Mapping
from typing import Any

from specdec.errors import ConfigError, RequestError
from specdec.models.source import Source
from specdec.request import SamplingDefaults, SamplingParams

_NUMBERS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_GGUF_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
    "suppress_tokens": "tokenizer.ggml.suppress_tokens",
}


def read_sampling_defaults(source: Source) -> SamplingDefaults:
    """The model's own sampling defaults. `do_sample` is not read: a request says itself whether it wants to be greedy.

    Raises:
        ConfigError: a value is out of its range; the message names it.
    """
    if source.is_gguf:
        fields: Mapping[str, Any] = {name: source.gguf.value(key) for name, key in _GGUF_KEYS.items()}
    else:
        fields = source.json("generation_config.json")
    values: dict[str, Any] = {name: fields[name] for name in _NUMBERS if fields.get(name) is not None}
    if fields.get("suppress_tokens"):
        values["suppress_tokens"] = fields["suppress_tokens"]
    try:
        values = {name: _checked(name, value) for name, value in values.items()}
        SamplingParams(**values)
    except RequestError as error:
        raise ConfigError(
            f"{source.path} recommends what cannot be: {error} Correct it, or start with --generation-config none."
        ) from error
    return SamplingDefaults(**values)


def _checked(name: str, value: Any) -> Any:
    """The value in the type that `SamplingParams` wants of it."""
    if name == "suppress_tokens":
        if isinstance(value, list) and all(type(token) is int for token in value):
            return tuple(value)
        raise RequestError(f"suppress_tokens must be a list of token ids, not {value!r}.")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{name} must be a number, not {value!r}.")
    return max(int(value), 0) if name == "top_k" else float(value)  # -1 keeps all, as 0 does
