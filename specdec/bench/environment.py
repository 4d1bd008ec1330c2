"""Under which conditions numbers were taken: versions, hardware, threads."""

import importlib.metadata
import os
import platform
from typing import Any

import psutil
import torch

from specdec import __version__
from specdec.machine import cpu_name

_PACKAGES = ("torch", "transformers", "numpy")


def conditions(device: str) -> dict[str, Any]:
    """Versions and hardware as JSON data. `device`: cpu or cuda:<index>, where the model runs."""
    return {
        "versions": {
            "specdec": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "hardware": {
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "ram_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        },
        "load_average_at_start": round(os.getloadavg()[0], 2),
    }


def describe(found: dict[str, Any]) -> str:
    """The conditions in one line for people."""
    hardware, versions = found["hardware"], found["versions"]
    machine = hardware["gpu"] or f"{hardware['cpu']}, {hardware['threads']} of {hardware['cores']} cores"
    return f"{machine}, {hardware['ram_gb']} GB RAM; specdec {versions['specdec']}, torch {versions['torch']}"
