"""What a stage shows: our own words on the screen, what libraries say in a log file.

Libraries write by `print`, by loggers and warnings of Python, from C++ and from child processes. So within `quietly`
standard output and standard error lead to the log, as file descriptors too, and `out()` and `err()` to the screen.
Outside of it these two are `sys.stdout` and `sys.stderr`.
"""

import faulthandler
import io
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from core.errors import EngineDied, UserError
from core.exits import ChecksFailed, nobody_reads

if TYPE_CHECKING:
    from rich.console import Console

OURS = {
    *("core", "teachers", "students", "eval", "deploy", "distill", "__main__"),
    *("hydra", "hydra_plugins", "bench", "studies", "proof", "gpu_check"),
}
LAST_LINES = 15  # of the log, shown after a crash
STREAMS = (1, 2)  # the file descriptors of standard output and standard error


@dataclass(frozen=True)
class Screen:
    """Where our own words go while standard output and standard error lead to `log`, from its byte `begin` on.

    `descriptors`: duplicates of those two as they were.
    """

    out: TextIO
    err: TextIO
    log: Path
    descriptors: tuple[int, ...]
    begin: int


_screen: Screen | None = None
_libraries: TextIO | None = None


def out() -> TextIO:
    """Where results go."""
    return _screen.out if _screen else sys.stdout


def err() -> TextIO:
    """Where progress, warnings and errors go."""
    return _screen.err if _screen else sys.stderr


def console(**settings: Any) -> "Console":
    """rich's console for results."""
    from rich.console import Console

    return Console(file=out(), **settings)


class ScreenHandler(logging.StreamHandler[TextIO]):
    """Shows what our loggers say. Within `quietly`, what those of libraries say goes to the log."""

    def emit(self, record: logging.LogRecord) -> None:
        ours = record.name.partition(".")[0] in OURS
        self.stream = err() if ours else sys.stderr
        super().emit(record)


def log_of(root: Path, module: Path, run: str) -> Path:
    """Where the libraries of a stage, whose code is the file `module`, write: `root`/logs/<stage>,<run>.log."""
    stage = module.parent.name if module.stem == "__main__" else module.stem
    return root / "logs" / f"{stage},{run[:200]}.log"


@contextmanager
def quietly(file: Path) -> Iterator[None]:
    """Lead what libraries write within to the end of `file`, which after a crash is named with its last lines.

    A folder that cannot be written keeps everything on the screen.
    """
    global _screen
    opened = _opened(file) if _screen is None and None not in (sys.stdout, sys.stderr) else None
    if opened is None:
        yield
        return
    kept, descriptor = opened
    stdout, stderr, libraries = sys.stdout, sys.stderr, _lead_libraries(descriptor)
    libraries.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(sys.argv)}\n")
    begin = os.fstat(libraries.fileno()).st_size
    screen = Screen(_on(stdout, sys.__stdout__, kept[0]), _on(stderr, sys.__stderr__, kept[1]), file, kept, begin)
    watched = not faulthandler.is_enabled()
    try:
        _lead(stdout, stderr, (libraries.fileno(),) * 2)
        sys.stdout = sys.stderr = libraries
        _screen = screen
        if watched:  # a segmentation fault shows where it was
            faulthandler.enable(kept[1])
        yield
    except (KeyboardInterrupt, SystemExit, ChecksFailed):
        raise
    except BaseException as error:
        told = isinstance(error, UserError) and not isinstance(error, EngineDied)
        if not told and not (isinstance(error, BrokenPipeError) and nobody_reads(kept[0])):
            last_words()
        raise
    finally:
        if watched:
            faulthandler.disable()
        _screen = None
        libraries.flush()
        sys.stdout, sys.stderr = stdout, stderr
        _close(screen, stdout, stderr)


def last_words() -> None:
    """Within `quietly`, show the last lines that libraries wrote: before an error whose cause they alone know."""
    if _screen is None or _libraries is None:
        return
    _libraries.flush()
    try:
        with _screen.log.open(errors="replace") as written:
            written.seek(_screen.begin)
            said = (last for line in written if (last := line.rstrip().rpartition("\r")[2]))
            lines = deque(said, LAST_LINES)
    except OSError:  # somebody took it away
        return
    if lines:
        print(f"the last that libraries wrote into {_screen.log}:", file=_screen.err)
    for line in lines:
        print(f"  | {line[:300]}", file=_screen.err)
    _screen.err.flush()


def log_file() -> Path | None:
    """Where libraries write now; None where that is the screen."""
    return _screen.log if _screen else None


@contextmanager
def restored() -> Iterator[None]:
    """Within it, processes that are started inherit the screen: for those of ours, which are quiet by themselves."""
    if _screen is None:
        yield
        return
    quiet = tuple(os.dup(number) for number in STREAMS)
    try:
        _lead(_screen.out, _screen.err, _screen.descriptors)
        yield
    finally:
        _lead(_screen.out, _screen.err, quiet)
        for descriptor in quiet:
            os.close(descriptor)


class _Log(io.FileIO):
    """A file that lets go what a full disk does not take: no stage ends for what its libraries had to say."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _opened(file: Path) -> tuple[tuple[int, ...], int] | None:
    """Duplicates of the descriptors of standard output and error, and that of the log; None where one cannot be had."""
    kept: list[int] = []
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for number in STREAMS:
            kept.append(os.dup(number))
        return tuple(kept), os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError:
        for number in kept:
            os.close(number)
        return None


def _on(stream: TextIO, original: TextIO | None, descriptor: int) -> TextIO:
    """A stream to the screen that outlives the redirection of standard output or standard error.

    Where a test or a notebook has put another stream in its place, that one.
    """
    if stream is None or stream is not original:
        return stream
    return open(descriptor, "w", buffering=1, encoding=stream.encoding, errors=stream.errors, closefd=False)


def _lead_libraries(descriptor: int) -> TextIO:
    """One stream to the log for the whole process, led to the one open at `descriptor`, which is closed.

    It is never closed: loggers of libraries hold on to it, and some speak when the process ends.
    """
    global _libraries
    if _libraries is None:
        file = io.BufferedWriter(_Log(descriptor, "w"))
        _libraries = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", line_buffering=True)
    else:
        _libraries.flush()
        os.dup2(descriptor, _libraries.fileno())
        os.close(descriptor)
    return _libraries


def _lead(stdout: TextIO, stderr: TextIO, descriptors: tuple[int, ...]) -> None:
    """Have the file descriptors of standard output and standard error lead to what `descriptors` lead to."""
    for stream in (stdout, stderr):
        stream.flush()
    for number, descriptor in zip(STREAMS, descriptors, strict=True):
        os.dup2(descriptor, number)


def _close(screen: Screen, stdout: TextIO, stderr: TextIO) -> None:
    """End the redirection. What the screen does not take any more is the caller's `lost_output` to find."""
    streams = ((screen.out, stdout), (screen.err, stderr))
    for number, descriptor, (stream, other) in zip(STREAMS, screen.descriptors, streams, strict=True):
        os.dup2(descriptor, number)
        if stream is not other:
            try:
                stream.flush()
            except OSError:
                _let_go(stream, descriptor)
        os.close(descriptor)


def _let_go(stream: TextIO, descriptor: int) -> None:
    """Forget what a stream could not write, before its descriptor's number is another file's."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
    stream.flush()
