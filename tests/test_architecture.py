"""Rules that a machine can hold: which way imports point, what costs time at import, what may not be called."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("distill", "teachers", "students", "eval")
DOORS = ("prepare", "teacher", "student", "sweeps", "export", "predict", "serve", "plan")
ALLOWED = {
    "contract": {"contract"},
    "teachers": {"contract", "teachers"},
    "students": {"contract", "students"},
    "eval": {"contract", "teachers", "students", "eval"},
    "doors": {"contract", "teachers", "students", "eval", "doors"},
}
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


def room(module: str) -> str | None:
    """The room of the house that a module of ours belongs to."""
    package, _, name = module.partition(".")
    if package == "distill":
        return "doors" if name in DOORS else "contract"
    if module == "eval.__main__":
        return "doors"
    return package if package in PACKAGES else None


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" if node.module in PACKAGES else node.module for alias in node.names}
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    here = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert here is not None
    wrong = {module for module in imported(path) if room(module) not in {None, *ALLOWED[here]}}
    assert not wrong, f"{here} must not import {wrong}"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_code_from_data_no_swallowed_errors_no_junk_drawers(path: Path) -> None:
    assert path.stem not in {"utils", "common", "helpers"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}, f"line {node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"
    assert "pickle" not in imported(path)


@pytest.mark.parametrize("door", [f"distill.{name}" for name in DOORS] + ["eval"])
def test_help_imports_nothing_heavy(door: str) -> None:
    module = "eval.__main__" if door == "eval" else door
    code = f"import sys, {module}; print(*({HEAVY!r} & set(sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert loaded.stdout.split() == []
    help_text = subprocess.run(
        [sys.executable, "-m", door, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
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
    assert reads <= allowed.get(path.stem, set()), f"read through distill.tables: {reads}"


@pytest.mark.parametrize(
    "path",
    [
        *sources(),
        *(path for room in ("bench", "hydra_plugins", "kaggle") for path in sorted((ROOT / room).rglob("*.py"))),
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
    assert not groups or path == ROOT / "students" / "collectives.py", f"call students.collectives, not {groups}"
