"""The project's own rules, read from pyproject.toml and the sources: packages, layers, registries, documents. No torch here."""

import ast
import fnmatch
import re
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {"specdec": "specdec", "drafters": "specdec.drafters", "kernels": "specdec.kernels", "server": "specdec.server"}

# A part imports from its own line and from lines above it. A part is a module of specdec/ or a folder.
LAYERS = (
    ("specdec",),  # the version
    ("kernels",),
    ("errors", "progress", "arrays", "logs"),
    ("request", "config", "foreign"),
    ("models",),
    ("user_tiles", "text", "machine"),
    ("cache",),
    ("draft",),
    ("round",),
    ("measurements",),
    ("drafters",),
    ("engine",),
    ("sizes",),
    ("assemble",),
    ("llm",),
    ("bench", "server"),
    ("cli",),
    ("__main__",),
)
APART = {"bench": "server", "server": "bench"}  # one line, but neither imports the other
FIELDS_SPEAK = {"specdec.server.schema.StreamOptions"}  # OpenAI's own object; its fields say what it is
MOST_LINES, MOST_KERNEL_LINES = 400, 650


def modules() -> dict[str, Path]:
    """Every module that ships, by its name when installed."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(part for part in inside if part != "__init__")))] = path
    return found


MODULES = modules()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Modules of ours that a file imports, anywhere in it but where only types are checked."""
    tree = tree_of(path)
    for_types = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in inner]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "specdec")


def part(module: str) -> str:
    names = module.split(".")
    return names[1] if len(names) > 1 else names[0]


def ignored(name: str) -> bool:
    patterns = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    return any(fnmatch.fnmatch(name, pattern.rstrip("/")) for pattern in patterns)


def own_files() -> Iterator[Path]:
    """Everything that is kept in the repository."""
    for entry in sorted(ROOT.iterdir()):
        if entry.name in (".git", ".hypothesis") or ignored(entry.name):
            continue
        inside = [entry] if entry.is_file() else entry.rglob("*")
        yield from (p for p in inside if p.is_file() and not any(ignored(name) for name in p.relative_to(ROOT).parts))


def literal(path: str, name: str) -> ast.expr:
    """The value that a module gives to a name at its top level."""
    for node in tree_of(ROOT / path).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        value = getattr(node, "value", None)
        if value is not None and any(isinstance(target, ast.Name) and target.id == name for target in targets):
            assert isinstance(value, ast.expr)
            return value
    raise AssertionError(f"{path} does not define {name}")


def registry(path: str, name: str) -> dict[str, ast.expr]:
    value = literal(path, name)
    assert isinstance(value, ast.Dict), f"{name} in {path} is not a literal dict"
    return {ast.literal_eval(key): item for key, item in zip(value.keys, value.values, strict=True) if key is not None}


def test_the_packages_list_is_what_lies_in_the_folders() -> None:
    folders = {module if path.name == "__init__.py" else module.rpartition(".")[0] for module, path in MODULES.items()}
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == folders


def test_kernels_is_no_package_of_its_own() -> None:
    """With an __init__.py, `import kernels` from the root would find it instead of the package that transformers looks for."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_every_part_has_its_place_in_the_layers() -> None:
    placed = [name for layer in LAYERS for name in layer]
    assert len(placed) == len(set(placed))
    assert set(placed) == {part(module) for module in MODULES}


def test_imports_point_downwards() -> None:
    height = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    wrong = []
    for module, path in MODULES.items():
        here = part(module)
        for found in imports(path):
            there = part(found)
            above = found not in MODULES or height[there] > height[here] or APART.get(here) == there
            if above or (here == "kernels" and there != "kernels"):
                wrong.append(f"{module} imports {found}")
    assert not wrong


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {module: set(imports(path)) - {module} for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()


def test_every_kernel_has_its_meaning_its_derivation_and_its_tests() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "kernels").glob("test_*.py"))
    for folder in sorted(path.parent for path in (ROOT / "kernels").glob("*/__init__.py")):
        assert (folder / "reference.py").is_file(), folder
        assert (folder / "README.md").is_file(), folder
        assert "triton" not in (folder / "reference.py").read_text(encoding="utf-8").lower(), folder
        for module in ("reference", "kernel"):  # some are imported with importorskip
            wanted = f"specdec.kernels.{folder.name}.{module}"
            assert wanted in tests or not (folder / f"{module}.py").is_file(), f"no test in tests/kernels uses {wanted}"


def test_the_model_registry_is_literal_and_whole() -> None:
    families = {name: ast.literal_eval(value) for name, value in registry("specdec/models/registry.py", "_FAMILIES").items()}
    offered = {
        module
        for module, path in MODULES.items()
        if part(module) == "models"
        and {"read_config", "build"} <= {node.name for node in tree_of(path).body if isinstance(node, ast.FunctionDef)}
    }
    shared = {f"specdec.models.families.{name}" for name in ("qwen2", "mistral")}  # their `build` is llama's
    assert set(families.values()) == offered | shared
    assert all(module in MODULES for module in families.values())


def test_the_drafter_registry_is_literal_and_whole() -> None:
    known = registry("drafters/registry.py", "_FACTORIES")
    folders = {f"specdec.drafters.{path.parent.name}" for path in (ROOT / "drafters").glob("*/__init__.py")}
    assert folders <= {
        module.rpartition(".")[0] if module not in folders else module for module in imports(ROOT / "drafters/registry.py")
    }
    served = ast.literal_eval(literal("specdec/config.py", "DRAFTERS"))
    assert set(served) == set(known) - {"adversarial"}
    assert set(ast.literal_eval(literal("specdec/config.py", "DEFAULT_DRAFTERS"))) <= set(served)


def test_the_acceptance_rules_are_those_that_the_settings_know() -> None:
    known = registry("specdec/round/accept/registry.py", "RULES")
    assert tuple(known) == ast.literal_eval(literal("specdec/config.py", "ACCEPTANCE_RULES"))


def test_every_route_is_added() -> None:
    names = {path.stem for path in (ROOT / "server" / "routes").glob("*.py")} - {"__init__"}
    loops = [node for node in ast.walk(tree_of(ROOT / "server" / "app.py")) if isinstance(node, ast.For)]
    added = [
        {item.id for item in loop.iter.elts if isinstance(item, ast.Name)} for loop in loops if isinstance(loop.iter, ast.Tuple)
    ]
    assert names in added


def test_the_dependencies_are_explained() -> None:
    project = PYPROJECT["project"]
    needed = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    explained = re.findall(r"^\| `([\w.-]+)` \|", (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(explained) == len(set(explained))
    assert set(explained) == {re.split(r"[<>=!~;\[ ]", line)[0] for line in needed}


def test_the_readme_maps_every_folder() -> None:
    mapped = set(re.findall(r"^\| `([\w]+)/` \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert mapped == {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and not ignored(path.name)}


def test_documents_link_to_what_exists_and_name_files_that_exist() -> None:
    tops = "|".join(["specdec", "drafters", "kernels", "server", "tests", "examples", "docs", "typings"])
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "kernels").rglob("*.md")]:
        text = document.read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (document.parent / link).exists(), f"{document} links to {link}"
        for name in re.findall(rf"`((?:{tops})/[\w./-]+)`", text):
            assert (ROOT / name).exists(), f"{document} names {name}"


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    private = [f"/{name}/" for name in ("work", "root")]
    for path in own_files():
        text = path.read_text(encoding="utf-8", errors="replace")
        assert not [name for name in private if name in text], path


def test_what_is_public_says_what_it_is() -> None:
    silent = []
    for module, path in MODULES.items():
        tree = tree_of(path)
        silent += [module] if tree.body and not ast.get_docstring(tree) else []
        if part(module) == "kernels" and path.name != "__init__.py":
            continue  # only a kernel's public function is public
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                silent += [] if ast.get_docstring(node) else [f"{module}.{node.name}"]
    assert set(silent) == FIELDS_SPEAK


def test_files_are_short() -> None:
    for path in own_files():
        if path.suffix == ".py":
            limit = MOST_KERNEL_LINES if path.relative_to(ROOT).parts[0] == "kernels" else MOST_LINES
            assert len(path.read_text(encoding="utf-8").splitlines()) <= limit, path
