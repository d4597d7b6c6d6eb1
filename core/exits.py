"""How a process of ours ends: its exit codes, one message for what a user can fix, and no traceback."""

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from core.errors import OtherRankError, UserError, of_file_system, of_missing_package

INTERRUPTED = 128 + signal.SIGINT  # the exit code, as a shell has it


class ChecksFailed(Exception):
    """The artefact was written but failed its checks: exit code 1, or in a multirun a failed run of it."""


class surroundings_explained:  # a context manager, as `suppress` is one
    """Turn errors of a full disk, a missing permission, too long a name or a missing package into a `UserError`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and (said := of_file_system(error) or of_missing_package(error)):
            raise UserError(said) from error


@contextmanager
def plain_ends() -> Iterator[None]:
    """On Ctrl-C, and where standard output is closed or full, end with a line at most and the exit code of that."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        if not isinstance(lost_output(), BrokenPipeError):
            raise
        sys.exit(1)  # `head` has read enough: no reason for a word
    finally:
        lost = lost_output()
    if isinstance(lost, BrokenPipeError):
        sys.exit(1)
    if lost is not None:
        refuse(UserError(f"the results are kept, but standard output cannot be written: {lost.strerror}"))


def lost_output() -> OSError | None:
    """Flush standard output. Where it takes nothing, give why, and let what follows, Python's own flush too, go."""
    out = sys.__stdout__
    if out is None or out.closed:
        return None
    try:
        out.flush()
        if nobody_reads(out.fileno()):
            raise BrokenPipeError
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        return error
    return None


def nobody_reads(descriptor: int) -> bool:
    """Whether it leads to a pipe whose other end nobody holds."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def refuse(error: Exception) -> NoReturn:
    """Say what is wrong, without a traceback, and exit with 2, or with 1 where what was made failed its checks."""
    if not isinstance(error, OtherRankError):
        print(f"error: {error}", file=sys.stderr)
    sys.exit(1 if isinstance(error, ChecksFailed) else 2)
