"""What a user installs: the wheel holds every package and nothing else, and works away from the checkout."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]
# every module but the kernels', which need Triton, and what runs them
IMPORT_ALL = """
import importlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
for path in sorted((root / "specdec").rglob("*.py")):
    if "triton" not in path.read_text(encoding="utf-8"):
        names = path.relative_to(root).with_suffix("").parts
        module = importlib.import_module(".".join(name for name in names if name != "__init__"))
        assert pathlib.Path(module.__file__) == path, module.__file__
"""


def folder_of(package: str) -> Path:
    """Where a package's files lie in the checkout."""
    mapped = max((name for name in FOLDERS if f"{package}.".startswith(f"{name}.")), key=len)
    return ROOT / FOLDERS[mapped] / package.removeprefix(mapped).removeprefix(".").replace(".", "/")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools leaves files in the folder that it builds in."""
    copy, out = tmp_path_factory.mktemp("source") / "specdec", tmp_path_factory.mktemp("wheel")
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for folder in set(FOLDERS.values()):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(copy)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(unpacked: Path, elsewhere: Path, *arguments: str) -> str:
    """Run Python with the unpacked wheel first on its path, away from the checkout."""
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    command = [sys.executable, "-P", *arguments]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    expected = {"specdec/py.typed"}
    for package in SETUPTOOLS["packages"]:
        expected |= {f"{package.replace('.', '/')}/{path.name}" for path in folder_of(package).glob("*.py")}
    suite = {f"specdec/bench/suite/{path.name}" for path in (ROOT / "specdec" / "bench" / "suite").glob("*.jsonl")}
    assert len(suite) == 10
    tables = {f"specdec/kernels/tables/{path.name}" for path in (ROOT / "kernels" / "tables").glob("*.json")}
    assert tables
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == expected | suite | tables


def test_every_module_imports_away_from_the_checkout(unpacked: Path, tmp_path: Path) -> None:
    run(unpacked, tmp_path, "-c", IMPORT_ALL, str(unpacked))


def test_the_console_script_shows_its_help(unpacked: Path, tmp_path: Path) -> None:
    script = next(unpacked.glob("*.dist-info/entry_points.txt")).read_text(encoding="utf-8")
    assert script.split() == ["[console_scripts]", "specdec", "=", "specdec.cli.app:main"]
    shown = run(unpacked, tmp_path, "-c", "from specdec.cli.app import main; main()", "--help")
    assert all(command in shown for command in ("serve", "generate", "info", "bench"))
