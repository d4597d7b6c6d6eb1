"""What `conf/scorer/` holds: one dataclass a backend, told apart by `backend`.

The `identity` of a scorer is what its logits depend on. What says only how they are computed (URLs, time-outs, batch
sizes, workers) is no part of it.
"""

from dataclasses import dataclass
from typing import Any, Literal

from core.bounds import Count, Natural, NonNegative, Positive

BATCH_TOKENS = 8192  # of a forward pass, where no configuration says it
Dtype = Literal["auto", "fp32", "bf16", "fp16"]
# Engine arguments of vLLM that change speed and memory, not what is computed.
HOW = {
    *("tensor_parallel_size", "pipeline_parallel_size", "gpu_memory_utilization", "enable_prefix_caching"),
    *("max_num_seqs", "max_num_batched_tokens", "max_model_len", "enforce_eager", "cpu_offload_gb", "swap_space"),
}


@dataclass(frozen=True)
class TransformersConfig:
    """One padded forward pass after another, each of at most `batch_tokens` tokens: the reference.

    `load_in_8bit`: weights are rounded to int8 as they are loaded (bitsandbytes' LLM.int8).
    """

    backend: Literal["transformers"]
    dtype: Dtype
    batch_tokens: Count
    load_in_8bit: bool

    @property
    def identity(self) -> dict[str, Any]:
        return {"backend": self.backend, "dtype": self.dtype, "load_in_8bit": self.load_in_8bit}


@dataclass(frozen=True)
class VllmConfig:
    """vLLM in this process. `engine_args` are those of `vllm.EngineArgs`, passed on as they are."""

    backend: Literal["vllm"]
    dtype: Dtype
    engine_args: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        arguments = {name: value for name, value in self.engine_args.items() if name not in HOW}
        return {"backend": self.backend, "dtype": self.dtype, "engine_args": arguments}


@dataclass(frozen=True)
class ServerConfig:
    """OpenAI-compatible vLLM servers. In `urls`, {fold} stands for the fold of the teacher that a server holds."""

    backend: Literal["server"]
    urls: list[str]
    model: str | None
    api_key_variable: str | None
    prompts_per_request: Count
    requests_in_flight: Count
    retries: Natural
    timeout_s: Positive

    @property
    def identity(self) -> dict[str, Any]:
        return {"backend": self.backend, "model": self.model}


@dataclass(frozen=True)
class RayConfig:
    """Workers on a Ray cluster: each opens `worker`, a scorer of its own, and has `gpus` GPUs for it."""

    backend: Literal["ray"]
    worker: VllmConfig | TransformersConfig
    address: str | None
    workers: Count
    gpus: NonNegative
    cpus: NonNegative
    prompts_per_task: Count

    @property
    def identity(self) -> dict[str, Any]:
        return self.worker.identity


ScorerConfig = VllmConfig | TransformersConfig | ServerConfig | RayConfig


def precision(config: ScorerConfig) -> tuple[str, str]:
    """(dtype, quantisation) that a scorer computes in, as far as its configuration tells."""
    if isinstance(config, RayConfig):
        return precision(config.worker)
    if isinstance(config, ServerConfig):
        return "auto", ""
    arguments = config.engine_args if isinstance(config, VllmConfig) else {}
    return config.dtype, str(arguments.get("quantization", ""))


def memory_share(config: ScorerConfig) -> float:
    """Of a GPU's memory, what a vLLM engine takes."""
    if isinstance(config, RayConfig):
        return memory_share(config.worker)
    return float(config.engine_args.get("gpu_memory_utilization", 0.9)) if isinstance(config, VllmConfig) else 0.9


def through_transformers(config: ScorerConfig) -> TransformersConfig:
    """The scorer that reads with transformers what `config` would read: where vLLM cannot."""
    if isinstance(config, TransformersConfig):
        return config
    return TransformersConfig(
        "transformers", config.dtype if isinstance(config, VllmConfig) else "auto", BATCH_TOKENS, load_in_8bit=False
    )


@dataclass(frozen=True)
class ScorersConfig:
    """What reads which model: `teacher` the teachers, `student` trained students, `check` an export while it is
    compared with its student, `exported` exports that evaluate, predict and serve.
    """

    teacher: ScorerConfig
    student: VllmConfig | TransformersConfig
    check: ScorerConfig
    exported: ScorerConfig
