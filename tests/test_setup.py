"""`make setup` before it downloads anything: which Pythons it takes, and what it says of others."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def python(folder: Path, name: str, version: str) -> Path:
    """An interpreter that knows its version and can do nothing else."""
    path = folder / name
    path.write_text(f"#!/bin/sh\ncase $2 in *version_info*) echo {version};; *) exit 1;; esac\n")
    path.chmod(0o755)
    return path


def setup(tmp_path: Path, **variables: str) -> str:
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "VENV": str(tmp_path / "venv"), **variables}
    command = ["bash", "requirements/setup.sh"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and not (tmp_path / "venv").exists()
    return done.stderr


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_setup_takes_each_python_that_is_declared(version: str, tmp_path: Path) -> None:
    """As far as the first thing that this one cannot do."""
    wanted = f"cannot make virtual environments; install its venv module (Debian: python{version}-venv)"
    assert wanted in setup(tmp_path, PYTHON=str(python(tmp_path, "mine", version)))


@pytest.mark.parametrize("version", ["3.10", "3.14", "2.7"])
def test_setup_refuses_any_other(version: str, tmp_path: Path) -> None:
    said = setup(tmp_path, PYTHON=str(python(tmp_path, "mine", version)))
    assert f"is not Python 3.11, 3.12 or 3.13, for which the sets are locked, but {version}" in said


def test_setup_looks_for_one_that_fits(tmp_path: Path) -> None:
    for name, version in (
        ("python3.11", "nothing"),
        ("python3.12", "3.12"),
        ("python3.13", "3.13"),
        ("python3", "3.9"),
    ):
        python(tmp_path, name, version)
    assert "setup: python3.12 cannot make" in setup(tmp_path)
