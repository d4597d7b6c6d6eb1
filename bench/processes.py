"""Seconds and memory of processes. Processor time below wall time shows a machine that was busy otherwise."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil


def timed(work: Callable[[], object]) -> float:
    """Wall seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def processor_seconds(process: "psutil.Process | None" = None, without: str = "") -> float:
    """Of a process (this one) and its children, but for those with `without` among their arguments."""
    import psutil

    root = process or psutil.Process()
    children = [child for child in root.children(recursive=True) if not without or without not in child.cmdline()]
    return sum(sum(each.cpu_times()[:2]) for each in [root, *children])


def resident() -> dict[str, int]:
    """Bytes of this process by the kernel's names: VmRSS now, VmHWM at most, RssAnon not mapped from files.

    From /proc, since the ru_maxrss of a process that was forked starts at its parent's.
    """
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


def peak_bytes() -> int:
    """The most memory that this process has held, Python and its libraries included."""
    return resident()["VmHWM"]
