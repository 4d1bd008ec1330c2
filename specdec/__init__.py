"""specdec: lossless tree speculative decoding for large language models."""

from pathlib import Path

__version__ = "0.1.0"

# In a source checkout the sub-packages sit beside this folder, not inside it.
_ROOT = Path(__file__).parent.parent
if __name__ == "specdec" and (_ROOT / "pyproject.toml").is_file():
    __path__.append(str(_ROOT))
