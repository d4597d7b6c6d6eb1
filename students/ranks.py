"""The ranks of one training: opened together, and ended together by what any of them finds wrong.

A rank that stops alone leaves the others waiting in a collective until its time-out. So every rank asks `agree()` at
the same places, each before a collective; one that has failed comes there with its error, through `all_ranks`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from distill.errors import OtherRankError, UserError
from students.engine import process_group


class UnreachableError(UserError):
    """Found while the other ranks wait in a collective: they cannot be told, the launcher has to end them."""


@contextmanager
def all_ranks() -> Iterator[None]:
    """What ends one rank with a `UserError` or an `OSError` ends all; the first that failed tells why.

    Where a launcher started several, the group is up from the beginning, before anything can fail.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    with process_group():
        try:
            yield
        except (OtherRankError, UnreachableError):
            raise
        except (UserError, OSError) as error:
            agree(error)


def agree(error: Exception | None = None) -> None:
    """Raise where any rank has failed; every rank calls it, one that has failed with its `error`.

    The first of those raises its own error, all others `OtherRankError` with the same message.
    """
    if distributed.get_world_size() > 1:
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
        failed = torch.tensor(int(error is not None), device=device)
        distributed.all_reduce(failed, distributed.ReduceOp.MAX)
        if not failed:
            return
        messages: list[str | None] = [None] * distributed.get_world_size()
        distributed.all_gather_object(messages, None if error is None else str(error))
        first = next(rank for rank, message in enumerate(messages) if message is not None)
        if first != distributed.get_rank():
            raise OtherRankError(messages[first]) from error
    if error is not None:
        raise error
