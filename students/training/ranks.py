"""The ranks of one training: opened together, and ended together by the error that any of them meets.

A rank that stops alone leaves the others waiting in a collective until its time-out. So whatever may fail on one rank
stands in a block that all of them enter (`fail_together`); at its end they tell each other. A rank that fails while the
others are within a collective cannot tell them: it just ends, and the launcher ends the rest.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from core.errors import OtherRankError, UserError
from students.training.collectives import gathered, largest, process_group, rank, several, take_device

T = TypeVar("T")


class UnreachableError(UserError):
    """Raised while the other ranks wait in a collective. This one cannot tell them, so the launcher ends them."""


@contextmanager
def all_ranks() -> Iterator[None]:
    """Each rank has its device within; where a launcher started several, their group is up before anything can fail."""
    take_device()
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    with process_group():
        yield


@contextmanager
def fail_together() -> Iterator[None]:
    """A block that all ranks enter: a `UserError` or an `OSError` on any of them ends all. No collective stands in it.

    What only the first rank does may stand in it, too.
    """
    try:
        yield
    except (OtherRankError, UnreachableError):
        raise
    except (UserError, OSError) as error:
        raise_together(error)
    else:
        raise_together()


def raise_together(error: Exception | None = None) -> None:
    """Raise where any rank has failed; every rank calls it, one that has failed with its `error`.

    The first of those raises its own error, all others `OtherRankError` with the same message.
    """
    if several():
        if not largest(int(error is not None)):
            return
        messages = gathered(None if error is None else str(error))
        first = next(other for other, message in enumerate(messages) if message is not None)
        if first != rank():
            raise OtherRankError(messages[first]) from error
    if error is not None:
        raise error


def same_on_all_ranks(value: T, what: str) -> T:
    """`value`, which has to be the same on all ranks. All raise `UserError` where it is not: they see other disks."""
    if several():
        values = gathered(value)
        if any(other != values[0] for other in values):
            seen = ", ".join(f"rank {number}: {other}" for number, other in enumerate(values))
            raise_together(UserError(f"the ranks see {what} ({seen}): give all nodes the same files below paths.root"))
    return value
