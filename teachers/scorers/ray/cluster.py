"""The Ray cluster that workers run on: joined or started, whether they fit there, and who they are."""

import logging
import math
import os
import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path

import psutil
import ray

from core.errors import UserError
from teachers.scorers.config import RayConfig

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("core", "teachers")  # what a worker imports of ours: Ray takes them along
CONNECT_SECONDS = 20
LOG_LEVELS = {
    "ray.data": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,  # it warns that its bars are off
    "ray.data._internal.execution.operators.map_operator": logging.ERROR,  # and that num_cpus and num_gpus are both set
}


def start(settings: RayConfig) -> None:
    """Join the cluster at `settings.address`; null starts one here. Raises `UserError` where none answers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # `ray.init` takes SIGTERM for itself, which whoever scores may have an answer to.
    before = signal.getsignal(signal.SIGTERM)
    try:
        check_address(settings.address)
        ray.init(
            address=settings.address or "local",  # null would join what RAY_ADDRESS names
            include_dashboard=None if settings.address else False,
            logging_level=logging.ERROR,
            runtime_env={
                "py_modules": [str(ROOT / name) for name in PACKAGES],
                "env_vars": {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},  # each worker would show bars of its own
            },
        )
    except OSError as error:
        if settings.address is None:
            raise
        raise UserError(
            f"scorers.*.address={settings.address}: cannot connect to a Ray cluster there ({error}); start it, set "
            "RAY_AUTH_MODE=token if it asks for a token, or set the address to null for this machine alone"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    for name, level in LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)


def check_address(address: str | None) -> None:
    """Raise `OSError` where nothing answers at a host:port: Ray would try for a quarter of an hour."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def room_for_workers(settings: RayConfig) -> float:
    """How many workers the nodes can hold, whoever uses them now. Raises `UserError` for none: Ray would just wait."""
    needs = {name: need for name, need in (("GPU", settings.gpus), ("CPU", settings.cpus)) if need}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(min((node.get(name, 0) // need for name, need in needs.items()), default=math.inf) for node in nodes)
    if not room:
        there = "; ".join(f"{node.get('GPU', 0):g} GPUs and {node.get('CPU', 0):g} CPUs" for node in nodes)
        raise UserError(
            f"scorer: a worker with gpus={settings.gpus:g}, cpus={settings.cpus:g} fits on no node of the cluster, "
            f"whose nodes have {there}: ask for less, or add nodes first"
        )
    if room < settings.workers:
        more = "the others start when nodes come"
        log.warning("scorers.*.workers=%d: the cluster has room for %d now; %s", settings.workers, room, more)
    return room


def local_workers() -> list[psutil.Process]:
    """The workers that are children of this process: those of a cluster that it started."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.name().startswith("ray::MapWorker"):  # Ray Data's name for them
                found.append(child)
    return found
