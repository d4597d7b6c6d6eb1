"""Items that a thread makes ready while earlier ones are used."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], size: int) -> Iterator[T]:
    """`items` as a thread produces them, up to `size` of them ahead; its exceptions are raised here."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(size)
    closed = threading.Event()

    def put(entry: tuple[bool, Any]) -> bool:
        while not closed.is_set():
            try:
                ready.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:  # raised again where the items are used
            put((False, error))

    thread = threading.Thread(target=produce, name="rendering", daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if not more:
                if item is not None:
                    raise item
                return
            yield item
    finally:
        closed.set()
        thread.join()
