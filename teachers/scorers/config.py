"""What `conf/scorer/` holds: one dataclass a backend."""

from dataclasses import dataclass
from typing import Any, Literal

from core.bounds import Count, Natural, NonNegative, Positive


@dataclass(frozen=True)
class ServerConfig:
    """OpenAI-compatible vLLM servers. In `urls`, {fold} stands for the fold of the teacher that a server holds."""

    urls: list[str]
    model: str | None
    api_key_variable: str | None
    prompts_per_request: Count
    requests_in_flight: Count
    retries: Natural
    timeout_s: Positive


@dataclass(frozen=True)
class RayConfig:
    """Workers on a Ray cluster, each a scorer of its own with `gpus` GPUs."""

    address: str | None
    backend: Literal["vllm", "transformers"]
    workers: Count
    gpus: NonNegative
    cpus: NonNegative
    prompts_per_task: Count


@dataclass(frozen=True)
class ScorerConfig:
    """One way to turn token ids into logits; `vllm` holds engine arguments passed on as they are.

    `method`: `classify` reads a score head; `label_tokens` the log-probabilities of `labels` as the next token.
    `load_in_8bit`: transformers rounds weights to int8 as it loads them (bitsandbytes' LLM.int8).
    """

    backend: Literal["vllm", "transformers", "server", "ray"]
    method: Literal["classify", "label_tokens"]
    labels: list[str]
    dtype: Literal["auto", "fp32", "bf16", "fp16"]
    batch_tokens: Count
    load_in_8bit: bool
    vllm: dict[str, Any]
    server: ServerConfig
    ray: RayConfig
