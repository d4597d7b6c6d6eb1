"""Rules that a machine can hold: which way imports point, what costs time at import, what may not be called."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# The floors of the house, from the ground up: a folder imports what stands below it, or on its own floor itself.
FLOORS = (("core",), ("teachers", "students"), ("eval",), ("deploy",), ("distill",))
PACKAGES = tuple(package for floor in FLOORS for package in floor)
COMMANDS = ("prepare", "teacher", "student", "sweeps", "export", "predict", "serve", "kaggle", "store", "plan")
HEAVY = {
    "torch",
    "transformers",
    "vllm",
    "deepspeed",
    "peft",
    "llmcompressor",
    "optuna",
    "plotly",
    "datasets",
    "wandb",
    "sklearn",
    "polars",
    "httpx",
    "ray",
    "gguf",
    "xllamacpp",
    "fastapi",
    "uvicorn",
    "prometheus_client",
}


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def below(package: str) -> set[str]:
    """The packages of ours that one may import."""
    floor = next(i for i, packages in enumerate(FLOORS) if package in packages)
    return {package, *(each for packages in FLOORS[:floor] for each in packages)}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_entry_point(path: Path) -> bool:
    return '__name__ == "__main__"' in path.read_text()


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" if node.module in PACKAGES else node.module for alias in node.names}
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    commands = {module_of(other) for other in sources() if is_entry_point(other)}
    allowed = below(package) | ({"distill"} if package == "eval" and is_entry_point(path) else set())
    wrong = {module for module in imported(path) if module.split(".")[0] in {*PACKAGES} - allowed}
    assert not wrong, f"{package} must not import {wrong}"
    assert not commands & imported(path), "entry points are imported by nobody"


def test_no_import_goes_in_a_circle() -> None:
    graph = {module_of(path): imported(path) for path in sources()}
    graph = {module: {name for name in names if name in graph} for module, names in graph.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which shows the circle


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_code_from_data_no_swallowed_errors_no_junk_drawers(path: Path) -> None:
    assert path.stem not in {"utils", "common", "helpers"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}, f"line {node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"
    assert "pickle" not in imported(path)


@pytest.mark.parametrize("command", [f"distill.{name}" for name in COMMANDS] + ["eval"])
def test_help_imports_nothing_heavy(command: str) -> None:
    module = f"{command}.__main__" if command in ("eval", "distill.plan") else command
    code = f"import sys, {module}; print(*({HEAVY!r} & set(sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert loaded.stdout.split() == []
    help_text = subprocess.run(
        [sys.executable, "-m", command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert help_text.returncode == 0 and "exp" in help_text.stdout


@pytest.mark.parametrize("path", [*sources(), *sorted((ROOT / "bench").glob("*.py"))], ids=lambda p: p.stem)
def test_a_path_is_read_as_a_pattern_nowhere(path: Path) -> None:
    """polars and `glob` take `[1]` in a folder's name for a pattern; users' own patterns are `data.files` alone."""
    called = {
        f"{node.func.value.id}.{node.func.attr}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
    }
    reads = {call for call in called if re.fullmatch(r"(pl|polars)\.(read|scan)_\w+|glob\.i?glob", call)}
    tables = {f"pl.{name}" for name in ("read_parquet", "scan_parquet", "read_parquet_metadata", "read_csv")}
    allowed = {"tables": tables, "readers": {"glob.glob"}}
    assert reads <= allowed.get(path.stem, set()), f"read through core.tables: {reads}"


@pytest.mark.parametrize(
    "path",
    [
        *sources(),
        *(path for folder in ("bench", "hydra_plugins") for path in sorted((ROOT / folder).rglob("*.py"))),
    ],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_ranks_meet_in_one_module_alone(path: Path) -> None:
    """NCCL refuses CPU tensors: whoever calls a collective elsewhere has to know on which device the group is."""
    tree = ast.parse(path.read_text())
    named = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {f"{node.module}.{alias.name}" for alias in node.names}
    groups = {name for name in named if re.match(r"(torch\.distributed|deepspeed\.(comm|init_distributed))\b", name)}
    assert not groups or path == ROOT / "students" / "training" / "collectives.py", (
        f"call students.training.collectives, not {groups}"
    )
