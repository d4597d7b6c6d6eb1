"""The screen of a stage: our words stay on it, libraries' words go to the log, whichever way they write."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.running import ROOT

STAGE = """
import logging, os, subprocess, sys, warnings
from pathlib import Path
from core import screen
from core.errors import EngineDied, UserError
from core.screen import ScreenHandler, quietly

logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[ScreenHandler()])
with quietly(Path(sys.argv[1])):
    logging.getLogger("core.x").warning("our warning")
    logging.getLogger("vllm.x").warning("noise of a logger")
    print("noise of print")
    print("noise on standard error", file=sys.stderr)
    warnings.warn("noise of a warning")
    os.write(1, b"noise from C\\n"), os.write(2, b"noise from C++\\n")
    subprocess.run(["sh", "-c", "echo noise of a child; echo noise of a child >&2"])
    screen.console().print("our table")
    with screen.restored():
        subprocess.run(["echo", "our child"])
    BODY
print("after")
"""


def stage(log: Path, body: str = "pass") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", STAGE.replace("BODY", body), str(log)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_what_libraries_say_goes_to_the_log_and_what_we_say_to_the_screen(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "stage,run.log"
    done = stage(log)
    assert (done.returncode, done.stdout) == (0, "our table\nour child\nafter\n")
    assert done.stderr == "our warning\n"
    assert log.read_text().count("noise") == 8 and "our" not in log.read_text()


@pytest.mark.parametrize(
    ("ends", "code", "shown"),
    [
        ("raise KeyError('x')", 1, True),
        ("raise EngineDied('it died')", 1, True),
        ("raise UserError('a bad value')", 1, False),
        ("sys.exit(130)", 130, False),
    ],
)
def test_after_a_crash_the_log_is_named_with_its_last_lines(ends: str, code: int, shown: bool, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("an earlier start\n")
    done = stage(log, ends)
    assert done.returncode == code and ("  | noise of a child" in done.stderr) == shown
    assert "an earlier start" not in done.stderr and ("Traceback" in done.stderr) == (code == 1)


def test_a_segmentation_fault_shows_where_it_was(tmp_path: Path) -> None:
    done = stage(tmp_path / "log", "import ctypes; ctypes.string_at(0)")
    assert done.returncode < 0 and "Segmentation fault" in done.stderr and "string_at" in done.stderr


def test_where_no_log_can_be_written_everything_stays_on_the_screen(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = stage(tmp_path / "file" / "log")
    assert done.returncode == 0 and "noise of print" in done.stdout and "our table" in done.stdout


def test_a_log_that_takes_no_more_ends_no_stage(tmp_path: Path) -> None:
    """As on a full disk: libraries' words are lost, ours are not."""
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1)); print('noise ' * 9999)"
    done = stage(tmp_path / "log", f"{full}; screen.console().print('our end'); raise KeyError('x')")
    assert done.stdout == "our table\nour child\nour end\n", done.stderr
    assert done.stderr.startswith("our warning\n") and done.stderr.endswith("KeyError: 'x'\n")


def test_a_log_that_is_taken_away_hides_no_error(tmp_path: Path) -> None:
    done = stage(tmp_path / "log", "Path(sys.argv[1]).unlink(); raise KeyError('x')")
    assert done.stderr.endswith("KeyError: 'x'\n") and "FileNotFoundError" not in done.stderr


def test_a_reader_that_has_enough_is_no_crash(tmp_path: Path) -> None:
    """`python -m eval | head -1`: no word of libraries, and nothing that was not written goes elsewhere."""
    read, write = os.pipe()
    os.close(read)
    plain = STAGE.replace('screen.console().print("our table")', 'print("our table", file=screen.out())')
    indented = textwrap.indent(plain.replace("BODY", "pass"), "    ")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from core.exits import plain_ends\nwith plain_ends():\n{indented}",
            str(tmp_path / "log"),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "our warning\n")


def test_a_closed_standard_error_is_left_alone(tmp_path: Path) -> None:
    code = STAGE.replace('os.write(2, b"noise from C++\\n")', "None").replace("; echo noise of a child >&2", "")
    command = ["sh", "-c", 'exec "$0" -c "$1" "$2" 2>&-', sys.executable, code.replace("BODY", "pass"), "log"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and "our table" in done.stdout and done.stdout.endswith("after\n")


def test_what_an_engine_said_is_shown_where_the_stage_goes_on(tmp_path: Path) -> None:
    done = stage(tmp_path / "log", "screen.last_words()")
    assert done.returncode == 0 and "  | noise of a child" in done.stderr


def test_streams_that_others_put_in_place_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Notebooks and tests, and two jobs of one process with a log each: loggers of libraries keep their stream."""
    from core import screen

    kept = []
    for name in ("first", "second"):
        with screen.quietly(tmp_path / name):
            kept.append(sys.stderr)
            print(f"noise of {name}", file=kept[0])
            print(f"ours in {name}", file=screen.out())
    assert capsys.readouterr().out == "ours in first\nours in second\n"
    assert (
        "noise of first" in (tmp_path / "first").read_text() and "noise of second" in (tmp_path / "second").read_text()
    )
