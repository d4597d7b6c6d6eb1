"""`make setup`: which Pythons and builds of torch it takes, and what it does after a broken download or a kill."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# An interpreter that is told what it is. Its environments hold it again; its pip notes what it is asked, and fails as
# often as the file BREAKS says.
STAND_IN = r"""#!/bin/bash
case "$*" in
  *version_info*) echo VERSION ;;
  *"import ensurepip, venv"*) [ CAN = venv ] ;;
  "-m venv "*) mkdir -p "$3/bin" "$3/lib" && cp "$0" "$3/bin/python" && touch "$3/pyvenv.cfg" ;;
  "-m pip index versions"*)
    case "$*" in *CPU_INDEX*) offers="$OFFERED_BY_PYTORCH" ;; *) offers=OFFERED ;; esac
    [ -n "$offers" ] && echo "Available versions: 2.15.0, $offers, 2.12.0" ;;
  "-m pip install"*)
    echo "VERSION $*" >> "$LOG"
    for given; do [ "${given##*/}" != chunk.txt ] || cat "$given" >> "$LOG"; done
    if [ "$(cat "$BREAKS" 2>/dev/null || echo 0)" -gt 0 ]; then
        echo $(($(cat "$BREAKS") - 1)) > "$BREAKS"; echo "${SAYS:-ERROR: IncompleteRead}"; exit 1
    fi ;;
  *importlib.metadata*) exit 1 ;;
esac
"""


def python(folder: Path, name: str, version: str, *, offered: str = "2.13.0+cpu", venvs: bool = True) -> Path:
    """A stand-in for an interpreter, and the builds of torch that its pip finds."""
    path, script = folder / name, STAND_IN.replace("CPU_INDEX", CPU_INDEX).replace("VERSION", version)
    path.write_text(script.replace("CAN", "venv" if venvs else "not").replace("OFFERED ", f"{offered!r} "))
    path.chmod(0o755)
    return path


def setup(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "VENV": str(tmp_path / "venv"),
        "LOG": str(tmp_path / "asked"),
        "BREAKS": str(tmp_path / "breaks"),
        "SETUP_PAUSE": "0",
        **variables,
    }
    command = ["bash", "requirements/setup.sh"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


def asked(tmp_path: Path) -> list[str]:
    """What the stand-in's pip was asked to install, and the lines of the files that it was given."""
    log = tmp_path / "asked"
    return log.read_text().splitlines() if log.exists() else []


def no_others(tmp_path: Path, *names: str) -> None:
    """Cover the interpreters and the GPU that this machine has, but for `names`."""
    for name in {"python3.11", "python3.12", "python3.13", "python3", "nvidia-smi"} - set(names):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_setup_takes_each_python_that_is_declared(version: str, tmp_path: Path) -> None:
    """As far as the first thing that this one cannot do."""
    done = setup(tmp_path, PYTHON=str(python(tmp_path, "mine", version, venvs=False)))
    wanted = f"cannot make virtual environments; install its venv module (Debian: python{version}-venv)"
    assert done.returncode == 1 and wanted in done.stderr and not (tmp_path / "venv").exists()


@pytest.mark.parametrize("version", ["3.10", "3.14", "2.7"])
def test_setup_refuses_any_other(version: str, tmp_path: Path) -> None:
    done = setup(tmp_path, PYTHON=str(python(tmp_path, "mine", version)))
    assert f"is not Python 3.11, 3.12 or 3.13, for which the sets are locked, but {version}" in done.stderr
    assert done.returncode == 1 and not (tmp_path / "venv").exists()


def test_setup_takes_the_newest_that_runs(tmp_path: Path) -> None:
    """A shim that stands for nothing is no Python, nor is one without its venv module."""
    no_others(tmp_path, "python3.12", "python3.11")
    python(tmp_path, "python3.12", "3.12", venvs=False)
    python(tmp_path, "python3.11", "3.11")
    done = setup(tmp_path)
    assert done.returncode == 0 and "environment with python3.11" in done.stdout
    python(tmp_path, "python3.12", "3.12")
    done = setup(tmp_path, VENV=str(tmp_path / "other"))
    assert done.returncode == 0 and "environment with python3.12" in done.stdout


def test_without_a_gpu_the_cpu_build_comes_from_pytorch(tmp_path: Path) -> None:
    no_others(tmp_path, "python3.13")
    python(tmp_path, "python3.13", "3.13", offered="2.13.0")
    done = setup(tmp_path, OFFERED_BY_PYTORCH="2.13.0+cpu")
    assert done.returncode == 0 and f"the CPU build from {CPU_INDEX}" in done.stdout
    assert any(f"--index-url {CPU_INDEX} torch==2.13.0+cpu" in line for line in asked(tmp_path))


def test_where_pytorch_cannot_be_reached_an_older_python_serves(tmp_path: Path) -> None:
    no_others(tmp_path, "python3.13", "python3.11")
    python(tmp_path, "python3.13", "3.13", offered="2.13.0")
    python(tmp_path, "python3.11", "3.11")
    done = setup(tmp_path)
    assert done.returncode == 0 and "not with python3.13: torch 2.13.0 where pip looks" in done.stdout
    assert {line.split()[0] for line in asked(tmp_path) if "pip install" in line} == {"3.11"}


def test_where_nothing_fits_one_sentence_says_what_to_set(tmp_path: Path) -> None:
    no_others(tmp_path, "python3.13")
    python(tmp_path, "python3.13", "3.13", offered="2.13.0")
    done = setup(tmp_path)
    assert done.returncode == 1 and "Set TORCH_INDEX" in done.stderr and "ALLOW_CUDA=1" in done.stderr
    assert not (tmp_path / "venv").exists() and not asked(tmp_path)


@pytest.mark.parametrize("by", ["ALLOW_CUDA", "GPU"])
def test_the_cuda_build_is_taken_where_it_is_wanted(by: str, tmp_path: Path) -> None:
    no_others(tmp_path, "python3.13")
    python(tmp_path, "python3.13", "3.13", offered="2.13.0")
    if by == "GPU":
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: one'\n")
    done = setup(tmp_path, **({"ALLOW_CUDA": "1"} if by == "ALLOW_CUDA" else {}))
    assert done.returncode == 0 and "a CUDA build" in done.stdout
    assert any("-c requirements/cpu.txt torch==2.13.0" in line for line in asked(tmp_path))


def test_a_cpu_build_is_none_for_a_set_of_gpus(tmp_path: Path) -> None:
    no_others(tmp_path, "python3.13")
    python(tmp_path, "python3.13", "3.13", offered="2.14.1")
    done = setup(tmp_path, REQUIREMENTS="requirements/gpu-export.txt", OFFERED_BY_PYTORCH="2.14.1+cpu")
    assert done.returncode == 1 and "ALLOW_CUDA=1" in done.stderr and not asked(tmp_path)


def test_a_download_that_breaks_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "breaks").write_text("2")
    done = setup(tmp_path, PYTHON=str(python(tmp_path, "mine", "3.12")))
    assert done.returncode == 0 and done.stdout.count("trying again") == 2


@pytest.mark.parametrize(
    ("says", "attempts"), [("ERROR: IncompleteRead", 3), ("ERROR: No matching distribution found", 1)]
)
def test_one_that_stays_broken_ends_with_what_pip_said(says: str, attempts: int, tmp_path: Path) -> None:
    (tmp_path / "breaks").write_text("99")
    done = setup(tmp_path, PYTHON=str(python(tmp_path, "mine", "3.12")), SAYS=says)
    assert done.returncode == 1 and says in done.stderr and "setup.log" in done.stderr
    assert len(asked(tmp_path)) == attempts


def test_setup_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """The environment stays, and with it what is installed; a package that a kill left half is installed anew."""
    mine = str(python(tmp_path, "mine", "3.12"))
    (tmp_path / "breaks").write_text("99")
    assert setup(tmp_path, PYTHON=mine, SAYS="No space left").returncode == 1
    (tmp_path / "breaks").unlink()
    packages = tmp_path / "venv/lib/python3.12/site-packages"
    for name, whole in (("whole", True), ("half", False)):
        (packages / f"{name}-1.dist-info").mkdir(parents=True)
        (packages / f"{name}-1.dist-info/METADATA").touch()
        if whole:
            (packages / f"{name}-1.dist-info/RECORD").touch()
    done = setup(tmp_path, PYTHON="/nonexistent")  # not asked for: the environment is there
    assert done.returncode == 0 and os.listdir(packages) == ["whole-1.dist-info"]
    assert "already holds" in setup(tmp_path).stdout


def test_setup_installs_every_pin_once_and_shows_how_far_it_is(tmp_path: Path) -> None:
    done = setup(tmp_path, PYTHON=str(python(tmp_path, "mine", "3.12")))
    pins = [line for line in (ROOT / "requirements/cpu.txt").read_text().splitlines() if line[:1].isalnum()]
    assert [line for line in asked(tmp_path) if line in set(pins)] == pins
    lines = [line for line in done.stdout.splitlines() if line.startswith("setup: 4/5")]
    assert f"{len(pins)} of {len(pins)} packages" in lines[-1] and len(lines) > 5


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv/mine.txt").touch()
    done = setup(tmp_path, PYTHON=str(python(tmp_path, "mine", "3.12")))
    assert done.returncode == 1 and "is no virtual environment" in done.stderr and (tmp_path / "venv/mine.txt").exists()


@pytest.mark.parametrize("target", ["demo", "test", "student", "checks"])
def test_a_target_before_setup_says_so_in_one_line(target: str, tmp_path: Path) -> None:
    command = ["make", target, f"VENV={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and "run make setup first" in done.stderr
