"""What fake HTTP servers of tests have in common: JSON in, JSON out, nothing in the log."""

import json
from http.server import BaseHTTPRequestHandler
from typing import Any


class Replying(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def asked(self) -> Any:
        """The body of the request; None where the client hung up before it had sent anything."""
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.close_connection |= not data
        return json.loads(data) if data else None

    def reply(self, status: int, body: Any, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        """Answer with `body`, with half of it where it is `cut`."""
        data = json.dumps(body).encode()
        data = data[: len(data) // 2] if cut else data
        try:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has hung up

    def log_message(self, format: str, *arguments: Any) -> None:
        pass
