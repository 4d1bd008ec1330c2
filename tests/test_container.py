"""The Dockerfile, step by step, without a container runtime: what is copied, what each step calls, what is served then."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
STUBS = ("apt-get", "useradd", "install", "pip", "python3")  # what the steps call and this machine need not have or do
STUB = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
echo "$(pwd)" >> "$CALLS.folders"
"""


class Step(NamedTuple):
    """An instruction and its words."""

    name: str
    text: str


def read_steps() -> list[Step]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [Step(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


STEPS = read_steps()


def texts(name: str) -> list[str]:
    return [step.text for step in STEPS if step.name == name]


def environment() -> dict[str, str]:
    """What ENV sets."""
    return dict(word.split("=", 1) for text in texts("ENV") for word in shlex.split(text))


def health_command() -> list[str]:
    (text,) = texts("HEALTHCHECK")
    command: list[str] = json.loads(text.partition("CMD ")[2])
    return command


def test_it_names_what_it_is_built_from_and_the_least_driver() -> None:
    (base,) = texts("FROM")
    assert re.fullmatch(r"nvidia/cuda:13\.0\.\d+-runtime-ubuntu24\.04", base), "a version, not `latest`"
    (labels,) = texts("LABEL")
    assert 'com.nvidia.driver.least="580.65.06"' in labels
    assert "580.65.06" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_nothing_is_copied_that_is_not_needed() -> None:
    (copied,) = texts("COPY")
    assert copied == "--chown=specdec . /home/specdec/src"
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", ".venv", "**/__pycache__"} <= set(ignored)
    needed = ("pyproject.toml", "README.md", "LICENSE", "specdec", "server", "kernels", "drafters")
    assert not [name for name in needed for pattern in ignored if fnmatch.fnmatch(name, pattern)]


def test_the_steps_run_one_after_another(tmp_path: Path) -> None:
    """In a folder that stands for the root of the image; programs that change a machine only write down their calls."""
    root, stubs, calls = tmp_path / "root", tmp_path / "stubs", tmp_path / "calls"
    stubs.mkdir()
    (root / "var/lib/apt/lists/index").mkdir(parents=True)
    for name in STUBS:
        (stubs / name).write_text(STUB)
        (stubs / name).chmod(0o755)
    surroundings = {"PATH": f"{stubs}:/usr/bin:/bin", "CALLS": str(calls)}
    folder, user = root, "root"
    for step in STEPS:
        text = re.sub(r"(?<![\w.])/(home/specdec|cache|var/lib)", rf"{root}/\1", step.text)
        if step.name == "COPY":
            source, target = text.split()[1:]
            shutil.copytree(ROOT / source / "specdec", Path(target) / "specdec", ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(ROOT / "pyproject.toml", target)
        elif step.name == "WORKDIR":
            folder = Path(text)
            folder.mkdir(parents=True, exist_ok=True)
        elif step.name == "USER":
            user = text
        elif step.name == "RUN":
            absolute = re.findall(r"(?<![\w.])/\w[\w/.-]*", text)
            assert all(path.startswith(f"{root}/") for path in absolute), "a step touches nothing of this machine"
            subprocess.run(["/bin/sh", "-euc", text], cwd=folder, env=surroundings, check=True)
    called = calls.read_text().replace(str(root), "").splitlines()
    folders = Path(f"{calls}.folders").read_text().replace(str(root), "").splitlines()
    assert called == [
        "apt-get update",
        "apt-get install -y --no-install-recommends python3 python3-venv python3-dev gcc",
        "useradd --create-home specdec",
        "install -d -o specdec -g specdec /cache",
        "python3 -m venv /home/specdec/venv",
        "pip install --no-cache-dir .",
    ]
    assert folders[-1] == "/home/specdec/src", "where pyproject.toml is"
    assert list((root / "var/lib/apt/lists").iterdir()) == []
    assert list((root / "home/specdec/src").iterdir()) == [], "the sources are installed, not kept"
    assert (user, folder) == ("specdec", root / "home/specdec")


def test_what_is_kept_lies_in_the_volume() -> None:
    (volume,) = texts("VOLUME")
    found = environment()
    assert volume == "/cache"
    assert all(found[name].startswith("/cache/") for name in ("HF_HOME", "SPECDEC_CACHE", "TRITON_CACHE_DIR"))
    order = [step.name for step in STEPS]
    made = next(place for place, step in enumerate(STEPS) if "/cache" in step.text and step.name == "RUN")
    assert made < order.index("USER") < order.index("VOLUME"), "it belongs to the user when it becomes a volume"


@pytest.mark.timeout(180)
def test_the_entrypoint_serves_and_the_health_check_sees_it(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """As `docker run IMAGE --model X` does, on another port."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = str(found.getsockname()[1])
    given = {name: value.replace("/cache", str(tmp_path)) for name, value in environment().items() if name != "PATH"}
    surroundings = os.environ | given | {"SPECDEC_PORT": port, "http_proxy": "http://192.0.2.1:9", "PYTHONPATH": str(ROOT)}
    (entrypoint,) = texts("ENTRYPOINT")
    program, *words = json.loads(entrypoint)
    assert program == "specdec"
    options = ["--model", str(tiny_checkpoint("llama")), "--threads", "1", "--cache-gb", "0.05"]
    python, *script = health_command()
    assert python == "python"

    def check() -> int:
        done = subprocess.run([sys.executable, *script], env=surroundings, capture_output=True, check=False)
        return done.returncode

    assert check() != 0
    server = subprocess.Popen([sys.executable, "-m", "specdec", *words, *options], env=surroundings, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while check() and server.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert check() == 0
        listening = subprocess.run(["cat", "/proc/net/tcp"], capture_output=True, text=True, check=False).stdout
        assert not listening or f"00000000:{int(port):04X}" in listening, "on all addresses"
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.communicate()
    assert check() != 0
