"""Steps that end in every way a step can, for the runner's tests: each in a process that imports little."""

import os
import subprocess
import time
from pathlib import Path

from gpu_check.results import Failed, Figures, Skip


def passes(folder: Path, dry: bool, count: str) -> Figures:
    with Path(count).open("a") as file:
        file.write("x")
    return {"off_by": 0.125}


def skips(folder: Path, dry: bool) -> Figures:
    raise Skip("not here | nor there")


def fails(folder: Path, dry: bool) -> Figures:
    raise Failed("3 is not 4")


def breaks(folder: Path, dry: bool) -> Figures:
    raise KeyError("nothing there")


def aborts(folder: Path, dry: bool) -> Figures:
    print("about to abort", flush=True)
    os.abort()


def hangs(folder: Path, dry: bool, child: str) -> Figures:
    Path(child).write_text(str(subprocess.Popen(["sleep", "600"]).pid))
    time.sleep(600)
    return {}
