"""How an entry point ends: a line at most for what a user did or can mend, the exit code of it, no traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import of_file_system, of_missing_package
from tests.running import ROOT, refuses

PREPARE = ("-m", "distill.prepare", "data=arena_sim", "data.simulate.conversations=60")
LITTLE = 4096  # bytes that a file may have, in place of a full disk

FILL = f"""
import resource, numpy, polars, pyarrow, torch
from pyarrow.parquet import write_table
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models
from core.errors import of_file_system
resource.setrlimit(resource.RLIMIT_FSIZE, ({LITTLE}, {LITTLE}))
table = polars.DataFrame({{"x": numpy.random.rand(9999)}})
for write in (
    lambda: open("f", "w").write("x" * 9999),
    lambda: table.write_csv("f"),
    lambda: table.write_parquet("f"),
    lambda: write_table(table.to_arrow(), "f"),
    lambda: save_file({{"x": table["x"].to_numpy()}}, "f"),
    lambda: Tokenizer(models.BPE()).save("/dev/full"),
    lambda: torch.save(torch.rand(9999), "f"),
):
    try:
        write()
    except Exception as error:
        print(type(error).__name__, of_file_system(error))
"""


def run(*arguments: str, stdout: int = subprocess.PIPE, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120, check=False)


def test_a_full_standard_output_is_told_in_a_line(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = run(*PREPARE, f"paths.root={tmp_path}", stdout=full.fileno())
    assert done.returncode == 2
    assert done.stderr == "error: No space left on device: free space, then rerun the same command\n"
    assert (tmp_path / "data" / "arena_sim" / "manifest.json").exists()


@pytest.mark.parametrize("python", [(), ("-u",)], ids=["buffered", "unbuffered"])
def test_a_closed_standard_output_ends_silently(tmp_path: Path, python: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = run(*python, *PREPARE, f"paths.root={tmp_path}", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("moment", ["hydra", "polars"])
def test_ctrl_c_during_the_start_is_a_line(tmp_path: Path, moment: str) -> None:
    """While Hydra is imported, and while the stage imports what it needs."""
    code = (
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(name, *_):\n"
        f"        if name == {moment!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder)\n"
        f"sys.argv[1:] = ['data=arena_sim', 'paths.root={tmp_path}']\n"
        "runpy.run_module('distill.prepare', run_name='__main__', alter_sys=True)\n"
    )
    done = run("-c", code)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "interrupted\n")


def test_a_disk_that_takes_no_more_is_told_with_the_file(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    for root, said in (
        (blocked, "Not a directory: move what is there"),
        (tmp_path / ("x" * 300), "File name too long: choose"),
    ):
        message = refuses("distill.prepare", "data=arena_sim", f"paths.root={root}")
        assert str(root) in message and said in message


def test_every_library_s_word_for_a_full_disk_is_known(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FILL]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert len(said) == 7 and all(line.endswith("free space, then rerun the same command") for line in said), said


def test_a_package_of_another_environment_is_told_in_a_line(tmp_path: Path) -> None:
    """polars stands for one that a stage imports late."""
    code = (
        "import runpy, sys\n"
        "sys.modules['polars'] = None\n"
        f"sys.argv[1:] = ['data=arena_sim', 'paths.root={tmp_path}']\n"
        "runpy.run_module('distill.prepare', run_name='__main__', alter_sys=True)\n"
    )
    done = run("-c", code)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {sys.prefix} holds no polars"), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_our_own_faults_keep_their_traceback() -> None:
    for fault in (ValueError("range() arg 3 must not be zero"), FileNotFoundError(2, "", "x"), KeyError("x")):
        assert of_file_system(fault) is of_missing_package(fault) is None
    for name in ("distill.x", "torch.x.y"):  # of another version, or a slip: no package is missing
        assert of_missing_package(ModuleNotFoundError(f"No module named {name!r}", name=name)) is None
