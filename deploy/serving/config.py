"""What `conf/serve/` holds."""

from dataclasses import dataclass

from core.bounds import Count, NonNegative, Port


@dataclass(frozen=True)
class ServeConfig:
    """`model`: an export's folder, null for the experiment's. `api_key_variable`: the environment variable that holds
    the key that clients must send, null for none. `max_queue`: conversations that wait for a result; `max_jobs`: jobs
    that are not done. `max_wait_ms`: how long a prompt that finds the scorer idle waits for others to share its batch.
    """

    model: str | None
    host: str
    port: Port
    api_key_variable: str | None
    max_body_bytes: Count
    max_conversations: Count
    max_queue: Count
    max_jobs: Count
    max_wait_ms: NonNegative
    shutdown_seconds: NonNegative
