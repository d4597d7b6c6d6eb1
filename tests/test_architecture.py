"""Rules that a machine can hold: which way imports point, how long files and functions are, what costs time at import,
what may not be called.
"""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.composing import plain

ROOT = Path(__file__).resolve().parent.parent
# The floors of the house, from the ground up: a folder imports what stands below it, or on its own floor itself.
FLOORS = (("core",), ("teachers", "students"), ("eval",), ("deploy",), ("distill",))
PACKAGES = tuple(package for floor in FLOORS for package in floor)
# What stands beside the house may import all of it but entry points.
BESIDE = ("hydra_plugins", "gpu_check", "bench", "studies", "proof")
FILE_LINES, FUNCTION_LINES, ENTRY_POINT_LINES, LEAVES = 350, 60, 120, 200
COMMANDS = (
    "prepare",
    "teacher",
    "student",
    "sweeps",
    "export",
    "predict",
    "serve",
    "kaggle",
    "store",
    "plan",
    "status",
)
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


def sources(*packages: str) -> list[Path]:
    """The files of some packages, left out: of the whole house."""
    return [path for package in packages or PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def below(package: str) -> set[str]:
    """The packages of ours that one may import."""
    floor = next(i for i, packages in enumerate(FLOORS) if package in packages)
    return {package, *(each for packages in FLOORS[:floor] for each in packages)}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_entry_point(path: Path) -> bool:
    return '__name__ == "__main__"' in path.read_text()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imported(path: Path) -> frozenset[str]:
    """The modules that a file imports anywhere, functions included; `from a import b` imports a.b where that is one."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in below if is_module(name)}
            found |= modules | ({node.module} if modules != below else set())
    return frozenset(found)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@pytest.mark.parametrize("path", sources(), ids=named)
def test_imports_point_down(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    allowed = below(package) | ({"distill"} if package == "eval" and is_entry_point(path) else set())
    wrong = {module for module in imported(path) if module.split(".")[0] in {*PACKAGES, *BESIDE} - allowed}
    assert not wrong, f"{package} must not import {wrong}"


def test_entry_points_are_imported_by_nobody() -> None:
    files = sources(*PACKAGES, *BESIDE)
    entry_points = {module_of(path) for path in files if is_entry_point(path)}
    found = {f"{named(path)} imports {name}" for path in files for name in imported(path) & entry_points}
    assert not found, found


def test_no_import_goes_in_a_circle() -> None:
    graph = {module_of(path): imported(path) for path in sources(*PACKAGES, *BESIDE)}
    graph = {module: {name for name in names if name in graph} for module, names in graph.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which shows the circle


def test_files_functions_and_entry_points_are_short() -> None:
    found: set[str] = set()
    for path in sources(*PACKAGES, *BESIDE):
        text = path.read_text()
        lines = len(text.splitlines())
        if lines > FILE_LINES or (path.parent == ROOT / "distill" and lines >= ENTRY_POINT_LINES):
            found.add(named(path))
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno >= FUNCTION_LINES:
                    found.add(f"{named(path)}: {node.name}")
    assert not found, found


def test_the_configuration_has_few_leaves() -> None:
    def leaves(value: object) -> int:
        return sum(map(leaves, value.values())) if isinstance(value, dict) and value else 1

    found = leaves(plain())
    assert found <= LEAVES, f"{found} leaves"


@pytest.mark.parametrize("path", sources(*PACKAGES, *BESIDE), ids=named)
def test_no_code_from_data_no_swallowed_errors_no_junk_drawers(path: Path) -> None:
    assert path.stem not in {"utils", "common", "helpers"}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}, f"line {node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"
    assert "pickle" not in imported(path)


@pytest.mark.parametrize("command", [f"distill.{name}" for name in COMMANDS] + ["eval"])
def test_help_imports_nothing_heavy(command: str) -> None:
    code = (
        "import atexit, runpy, sys\n"
        f"atexit.register(lambda: print({HEAVY!r} & set(sys.modules)))\n"
        f"sys.argv = [{command!r}, '--help']\n"
        f"runpy.run_module({command!r}, run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told, _, loaded = done.stdout.rstrip().rpartition("\n")
    assert loaded == "set()" and ("exp" in told or command == "distill.store")  # that one is argparse's


@pytest.mark.parametrize("path", sources(*PACKAGES, "bench", "studies", "proof"), ids=named)
def test_a_path_is_read_as_a_pattern_nowhere(path: Path) -> None:
    """polars and `glob` take `[1]` in a folder's name for a pattern; users' own patterns are `data.files` alone."""
    called = {
        f"{node.func.value.id}.{node.func.attr}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
    }
    reads = {call for call in called if re.fullmatch(r"(pl|polars)\.(read|scan)_\w+|glob\.i?glob", call)}
    tables = {f"pl.{name}" for name in ("read_parquet", "scan_parquet", "read_parquet_metadata", "read_csv")}
    allowed = {"tables": tables, "opening": {"glob.glob"}}
    assert reads <= allowed.get(path.stem, set()), f"read through core.tables: {reads}"


@pytest.mark.parametrize("path", sources(*PACKAGES, "hydra_plugins", "bench", "studies", "proof"), ids=named)
def test_ranks_meet_in_one_module_alone(path: Path) -> None:
    """NCCL refuses CPU tensors: whoever calls a collective elsewhere has to know on which device the group is."""
    nodes = [*ast.walk(tree(path))]
    names = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    groups = {name for name in names if re.match(r"(torch\.distributed|deepspeed\.(comm|init_distributed))\b", name)}
    assert not groups or path == ROOT / "students" / "training" / "collectives.py", (
        f"call students.training.collectives, not {groups}"
    )
