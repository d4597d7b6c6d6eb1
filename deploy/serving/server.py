"""An exported judge as an HTTP service: a server that ends without losing what it accepted."""

import ipaddress
import logging
import os
import socket
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from core.errors import UserError
from core.exported import ExportedJudge
from deploy.serving.config import ServeConfig
from deploy.serving.middleware import Middleware
from deploy.serving.routes import create_app
from deploy.serving.service import Service
from eval.config import CanaryMode
from teachers.scorers.config import ScorerConfig

log = logging.getLogger(__name__)


def serve(
    exported: ExportedJudge,
    scorer: ScorerConfig,
    settings: ServeConfig,
    jobs: Path,
    canaries: CanaryMode,
    coverage: float,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what was accepted. Jobs are kept in the folder `jobs`.

    `coverage`: how often a prediction set shall hold the vote.

    Raises `UserError` for settings that contradict each other, for an address that is taken, and for a judge that this
    machine does not compute as it was exported. Where the scorer dies, raises what it died of: a restart resumes its
    jobs.
    """
    check_queue(settings.max_queue, settings.max_conversations)
    key = api_key(settings.api_key_variable, settings.host)
    with bound_socket(settings.host, settings.port) as listening:
        service = Service(exported, scorer, settings, jobs, canaries, coverage)
        app = Middleware(create_app(service, with_key=key is not None), service.traffic, key, settings.max_body_bytes)
        host, port = listening.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        log.info("loading %s, which will be on %s", service.model, url)
        options: dict[str, Any] = {"lifespan": "on", "log_config": None, "log_level": "warning", "access_log": False}
        config = uvicorn.Config(app, server_header=False, timeout_graceful_shutdown=1, **options)
        Server(config, service, url).run([listening])
    if service.failure is not None:
        raise service.failure


class Server(uvicorn.Server):
    """Says at which `url` it is ready, and stops once its service is over.

    After a signal it refuses new work with 503 until all accepted work is answered.
    """

    def __init__(self, config: uvicorn.Config, service: Service, url: str) -> None:
        super().__init__(config)
        self.service, self.url, self.said = service, url, False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.service.state == "draining":  # the second signal: stop at once
            self.should_exit = True
        else:
            log.info("shutting down once %d conversations are judged", self.service.queue.waiting)
            self.service.drain()

    async def on_tick(self, counter: int) -> bool:
        if self.service.state == "ready" and not self.said:
            self.said = True
            log.info("%s is ready on %s (page and API); Ctrl-C stops it", self.service.model, self.url)
        return await super().on_tick(counter) or self.service.over


def check_queue(max_queue: int, max_conversations: int) -> None:
    """Raise `UserError` for a queue that the largest request never fits into."""
    if max_queue < max_conversations:
        raise UserError(
            f"serve.max_queue={max_queue} is less than serve.max_conversations={max_conversations}: "
            "a request of that size would never be accepted; raise the one or lower the other"
        )


def api_key(variable: str | None, host: str) -> str | None:
    """The key in the environment `variable`, which clients must send; None where no variable is named.

    Raises `UserError` where the variable is empty. Warns where other machines reach a server without a key.
    """
    if variable is None:
        if not is_loopback(host):
            log.warning(
                "serve.host=%s without a key: anybody who reaches it may use it; set serve.api_key_variable", host
            )
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"serve.api_key_variable={variable}: this environment variable is empty; put the key there")
    return key


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens already, so that a taken port is found before a model is loaded."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"serve.host={host} serve.port={port}: cannot listen there ({error}); choose another address or port"
        ) from error
