"""What `conf/serve/` holds."""

from dataclasses import dataclass

from core.bounds import Count, NonNegative, Port


@dataclass(frozen=True)
class ServeConfig:
    """What the server serves, where, and how much it accepts."""

    model: str | None
    """Folder of an export; null for the experiment's, exports/<run>/<format>."""
    host: str
    """Address to listen on; 0.0.0.0 is reachable from other machines."""
    port: Port
    """Port to listen on."""
    api_key_variable: str | None
    """Environment variable that holds the key that clients must send; null asks for no key."""
    max_body_bytes: Count
    """Largest body of a request, in bytes."""
    max_conversations: Count
    """Conversations in one request, at most."""
    max_queue: Count
    """Conversations that wait for a result, at most; more are refused with 503."""
    max_jobs: Count
    """Jobs that are not done, at most."""
    max_wait_ms: NonNegative
    """How long a prompt that finds the scorer idle waits for others to share its batch, in milliseconds."""
    shutdown_seconds: NonNegative
    """How long accepted work may take after SIGTERM, in seconds."""
