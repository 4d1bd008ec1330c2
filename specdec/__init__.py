"""specdec: lossless tree speculative decoding for large language models.

`from specdec import LLM, SamplingParams` loads a model into a program; see `specdec.llm`.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specdec.config import EngineConfig
    from specdec.llm import LLM, Completion
    from specdec.request import Request, RequestOutput, SamplingParams

__all__ = ["LLM", "Completion", "EngineConfig", "Request", "RequestOutput", "SamplingParams", "__version__"]
__version__ = "0.1.0"

# In a source checkout the sub-packages sit beside this folder, not inside it.
_ROOT = Path(__file__).parent.parent
if __name__ == "specdec" and (_ROOT / "pyproject.toml").is_file():
    __path__.append(str(_ROOT))

# brought when asked for: LLM needs torch, which the command line does not wait for
_HOMES = {
    "LLM": "specdec.llm",
    "Completion": "specdec.llm",
    "EngineConfig": "specdec.config",
    "Request": "specdec.request",
    "RequestOutput": "specdec.request",
    "SamplingParams": "specdec.request",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
