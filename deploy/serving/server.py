"""An exported judge as an HTTP service: a server that ends without losing what it accepted."""

import ipaddress
import logging
import os
import socket
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from core.config import CanaryMode
from core.errors import UserError
from core.exported import ExportedJudge
from deploy.serving.config import ServeConfig
from deploy.serving.gate import Gate
from deploy.serving.routes import create_app
from deploy.serving.service import Service

log = logging.getLogger(__name__)


def serve(judge: ExportedJudge, settings: ServeConfig, jobs: Path, canaries: CanaryMode) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what was accepted. `jobs` is the folder that jobs are kept in.

    Raises `UserError` for settings that do not fit, for an address that cannot be had and for a judge that this machine
    does not compute as it was exported, and what ended the scorer where it died: started again, it goes on with its
    jobs.
    """
    check_settings(settings)
    key = api_key(settings)
    with bound_socket(settings) as listening:
        service = Service(judge, settings, jobs, canaries)
        app = Gate(create_app(service, with_key=key is not None), service.traffic, key, settings.max_body_bytes)
        host, port = listening.getsockname()[:2]
        log.info("serving %s on http://%s:%d", service.model, f"[{host}]" if ":" in host else host, port)
        options: dict[str, Any] = {"lifespan": "on", "log_config": None, "log_level": "warning", "access_log": False}
        config = uvicorn.Config(app, server_header=False, timeout_graceful_shutdown=1, **options)
        Server(config, service).run([listening])
    if service.failure is not None:
        raise service.failure


class Server(uvicorn.Server):
    """Stops when its service is over: after a signal it answers until what was accepted is done, new work with 503."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.service.state == "draining":  # told twice: at once
            self.should_exit = True
        else:
            log.info("shutting down: %d conversations are waited for", self.service.waiting)
            self.service.drain()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self.service.over


def check_settings(settings: ServeConfig) -> None:
    """Raise `UserError` for a queue that the largest request never fits into."""
    if settings.max_queue < settings.max_conversations:
        raise UserError(
            f"serve.max_queue={settings.max_queue} is less than serve.max_conversations={settings.max_conversations}: "
            "a request of that size would never be accepted"
        )


def api_key(settings: ServeConfig) -> str | None:
    """The key that clients must send. Raises `UserError` where it is empty, and warns where everybody may come in."""
    if settings.api_key_variable is None:
        if not is_loopback(settings.host):
            log.warning(
                "serve.host=%s without a key: whoever reaches it may use it; set serve.api_key_variable", settings.host
            )
        return None
    key = os.environ.get(settings.api_key_variable, "").strip()
    if not key:
        raise UserError(
            f"serve.api_key_variable={settings.api_key_variable}: this environment variable is empty: put the key there"
        )
    return key


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound_socket(settings: ServeConfig) -> socket.socket:
    """A socket that listens there already, so that a port that is taken is told before a model is loaded."""
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"serve.host={settings.host} serve.port={settings.port} cannot be listened on ({error}): choose others"
        ) from error
