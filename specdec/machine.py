"""What this machine and this program are, as far as results and times depend on it."""

import hashlib
import os
import platform
from pathlib import Path

import torch

from specdec import __version__
from specdec.user_tiles import table_path

# libraries that compute read these, and may choose other kernels for them
_PREFIXES = (
    "ATEN_",
    "CUBLAS_",
    "CUDA_",
    "DNNL_",
    "KMP_",
    "MKL_",
    "NVIDIA_",
    "OMP_",
    "ONEDNN_",
    "OPENBLAS_",
    "PYTORCH_",
    "TORCH_",
)
_ROOT = Path(__file__).parent


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    return _cpu_field("model name") or platform.processor() or platform.machine()


def fingerprint(device: torch.device) -> list[str]:
    """All that may change the bits or the times of a forward pass, beside the model: processor or GPU, threads, versions,
    the environment that libraries read, and this program's own files."""
    facts = [
        f"specdec {__version__} {_own_files()}",
        f"python {platform.python_version()}",
        f"torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}",
        f"threads {torch.get_num_threads()} {torch.get_num_interop_threads()}",
        f"cpu {cpu_name()} {_cpu_field('flags')} {_cpu_field('microcode')} {os.cpu_count()}",
        *(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(_PREFIXES)),
    ]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        tiles = table_path(device)
        facts.append(f"gpu {device} {properties} cuda {torch.version.cuda}")
        facts.append(f"tiles {hashlib.sha256(tiles.read_bytes()).hexdigest() if tiles.is_file() else None}")
    return facts


def _own_files() -> str:
    """An editable checkout changes without its version. Sub-packages lie in this folder, or beside it."""
    beside = [_ROOT.parent / name for name in ("kernels", "drafters")] if (_ROOT.parent / "pyproject.toml").is_file() else []
    files = sorted(path for folder in (_ROOT, *beside) for kind in ("*.py", "*.json") for path in folder.rglob(kind))
    found = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _cpu_field(name: str) -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.partition(":")[0].strip() == name:
                return line.partition(":")[2].strip()
    return ""
