"""One writer at a time: a lock that goes with its process, however that ends, and says who holds it."""

import fcntl
import logging
import os
import pwd
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError

log = logging.getLogger(__name__)
held: set[int] = set()


def _let_go() -> None:
    """Close a forked child's copies, which unlocks nothing: an engine would hold the locks of its killed parent."""
    while held:
        os.close(held.pop())


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(path: Path, folder: Path, what: str = "it", wait: bool = False) -> Iterator[None]:
    """Hold the lock whose file is `path`, as the one process that writes `what` in `folder`.

    Where another process holds it, wait, or raise `UserError`; either says who. The lock's file goes with the lock, so
    that what is finished has none; one that was locked just when it went is tried again.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(file, 200, 0).decode(errors="replace") or "it does not say which"
            told = f"{folder}: another process ({owner}) is writing {what}"
            if not wait:
                os.close(file)
                raise UserError(f"{told}: wait for it or end it") from error
            log.info("%s: waiting for it", told)
            fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):  # it just went, with its lock
            if os.path.samestat(os.fstat(file), path.stat()):
                break
        os.close(file)
    held.add(file)
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, f"pid {os.getpid()} on {os.uname().nodename}".encode(), 0)
        yield
    finally:
        if file in held:  # not in a forked child
            held.discard(file)
            with suppress(OSError):  # on a disk that has become read-only it stays, but unlocked
                path.unlink(missing_ok=True)
            fcntl.flock(file, fcntl.LOCK_UN)
            os.close(file)


def alone(folder: Path, wait: bool = False) -> AbstractContextManager[None]:
    """Be the one process that writes `folder`: wait for another to end, or raise `UserError` that names it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return locked(lock_of(folder), folder, wait=wait)


def lock_of(folder: Path) -> Path:
    """The file of the lock that `alone` takes."""
    return folder.with_name(f".{folder.name}.lock")


@dataclass(frozen=True)
class Holder:
    """The process that a lock's file names: `who` it is in words, and `since` when it holds the lock (Unix time).

    `alive`: whether it still runs; taken for granted on another machine, which nobody can see from here.
    """

    who: str
    since: float
    alive: bool


def holder(path: Path) -> Holder | None:
    """Who holds the lock whose file is `path`, None where nobody does: only looked at, never taken or waited for."""
    try:
        said, stat = path.read_text(errors="replace"), path.stat()
    except OSError:  # there is no such file, or it just went
        return None
    try:
        user = pwd.getpwuid(stat.st_uid).pw_name
    except KeyError:
        user = f"user {stat.st_uid}"
    found = re.fullmatch(r"pid (\d+) on (.+)", said)
    there = found is None or found[2] != os.uname().nodename or runs_since(int(found[1]), stat.st_mtime)
    return Holder(f"{said or 'a process that is just starting'}, {user}", stat.st_mtime, there)


def runs_since(pid: int, moment: float) -> bool:
    """Whether a process ran at a `moment` (Unix time) and still does; a later one may have got its number."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])  # since boot, see proc(5)
        boot = int(re.findall(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.MULTILINE)[0])
    except OSError:
        return False
    return boot + ticks / os.sysconf("SC_CLK_TCK") <= moment + 2  # both are rounded to seconds
