"""Targets of several steps: which steps follow one that fails, and how they end."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("target", ["demo", "human"])
@pytest.mark.parametrize(("code", "reported"), [(0, True), (1, True), (2, False)])
def test_an_export_that_fails_its_checks_still_comes_into_the_report(
    target: str, code: int, reported: bool, tmp_path: Path
) -> None:
    """Exit code 1 says that the export was made and lost too much; any other that there is none."""
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(f'#!/bin/bash\necho "$*" >> {log}\n[[ $* != *distill.export* ]] || exit {code}\n')
    python.chmod(0o755)
    done = subprocess.run(["make", target, f"PY={python}"], cwd=ROOT, capture_output=True, text=True, check=False)
    steps = [line.split()[1] for line in log.read_text().splitlines()]
    assert steps[-1] == ("eval" if reported else "distill.export") and "distill.student" in steps
    assert (done.returncode == 0) == (code == 0), done.stderr
