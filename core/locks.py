"""One writer at a time: a lock that goes with its process, however that ends, and says who holds it."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
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
    return locked(folder.with_name(f".{folder.name}.lock"), folder, wait=wait)
