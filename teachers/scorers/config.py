"""What `conf/scorer/` holds: one dataclass a backend, told apart by `backend`.

Each says of itself what its settings amount to; what is fixed for a backend is a row of `teachers.scorers.backends`.
The `identity` of a scorer is what its logits depend on. What says only how they are computed (URLs, time-outs, batch
sizes, workers) is no part of it.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from core.bounds import Count, Natural, NonNegative, Positive
from core.errors import UserError

BATCH_TOKENS = 8192  # of a forward pass, where no configuration says it
MEMORY_SHARE = 0.9  # of a GPU's memory, which vLLM takes where its arguments do not say
Dtype = Literal["auto", "fp32", "bf16", "fp16"]
# Engine arguments of vLLM that change speed and memory, not what is computed.
HOW = {
    *("tensor_parallel_size", "pipeline_parallel_size", "gpu_memory_utilization", "enable_prefix_caching"),
    *("max_num_seqs", "max_num_batched_tokens", "max_model_len", "enforce_eager", "cpu_offload_gb", "swap_space"),
}


@dataclass(frozen=True)
class Precision:
    """What a scorer computes in, as far as its configuration tells: "auto" and "" are for the model to say."""

    dtype: Dtype = "auto"
    quantization: str = ""


class Settings:
    """What holds for a backend unless it says otherwise: one GPU, and nothing known of what it computes in."""

    @property
    def precision(self) -> Precision:
        return Precision()

    @property
    def gpus_spanned(self) -> int:
        """How many GPUs one engine spans."""
        return 1

    @property
    def memory_share(self) -> float:
        """Of a GPU's memory, what an engine takes."""
        return MEMORY_SHARE

    def in_transformers(self) -> "TransformersConfig":
        """The scorer that reads the same model with transformers."""
        return TransformersConfig("transformers", self.precision.dtype, BATCH_TOKENS, load_in_8bit=False)

    @property
    def limited_on_cpus(self) -> bool:
        """Whether it reads only some formats of exports without a GPU: those whose row says `vllm_on_cpus`."""
        return False

    def on_worker(self, gpus: float) -> Any:
        """The settings of a worker on Ray to which Ray gives `gpus` GPUs."""
        return self


@dataclass(frozen=True)
class TransformersConfig(Settings):
    """One padded forward pass after another: the reference."""

    backend: Literal["transformers"]
    """Name of the backend, one of the files in conf/scorer/."""
    dtype: Dtype
    """Type that is computed in; auto: what suits the device and the stored weights, fp32 on CPUs."""
    batch_tokens: Count
    """Tokens of one forward pass, at most, padding included."""
    load_in_8bit: bool
    """Round the weights to int8 as they are loaded (bitsandbytes' LLM.int8)."""

    @property
    def identity(self) -> dict[str, Any]:
        return {"backend": self.backend, "dtype": self.dtype, "load_in_8bit": self.load_in_8bit}

    @property
    def precision(self) -> Precision:
        return Precision(self.dtype)

    def in_transformers(self) -> "TransformersConfig":
        return self


@dataclass(frozen=True)
class VllmConfig(Settings):
    """vLLM in this process."""

    backend: Literal["vllm"]
    """Name of the backend, one of the files in conf/scorer/."""
    dtype: Dtype
    """Type that is computed in; auto: what suits the device and the stored weights, fp32 on CPUs."""
    engine_args: dict[str, Any]
    """Arguments of `vllm.EngineArgs`, passed on as they are; more with a plus: +scorers.teacher.engine_args.NAME="""

    @property
    def identity(self) -> dict[str, Any]:
        arguments = {name: value for name, value in self.engine_args.items() if name not in HOW}
        return {"backend": self.backend, "dtype": self.dtype, "engine_args": arguments}

    @property
    def precision(self) -> Precision:
        return Precision(self.dtype, str(self.engine_args.get("quantization", "")))

    @property
    def gpus_spanned(self) -> int:
        """Raises `UserError` where the parallel sizes are no numbers of GPUs."""
        sizes = {name: self.engine_args.get(name, 1) for name in ("tensor_parallel_size", "pipeline_parallel_size")}
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise UserError(f"scorers.*.engine_args.{name}={size}: give a number of GPUs, 1 or more")
        return math.prod(sizes.values())

    @property
    def memory_share(self) -> float:
        return float(self.engine_args.get("gpu_memory_utilization", MEMORY_SHARE))

    @property
    def limited_on_cpus(self) -> bool:
        return True

    def on_worker(self, gpus: float) -> "VllmConfig":
        """Raises `UserError` where Ray gives it other GPUs than it spans."""
        if gpus and math.ceil(gpus) != self.gpus_spanned:
            raise UserError(
                f"scorers.*.gpus={gpus:g}, but worker.engine_args spreads the model over {self.gpus_spanned}: "
                "set gpus to tensor_parallel_size x pipeline_parallel_size"
            )
        if gpus <= 1:
            return self
        # Ray has given the worker its GPUs. vLLM's ray executor would ask Ray for as many again.
        return replace(self, engine_args={"distributed_executor_backend": "mp", **self.engine_args})


LocalConfig = VllmConfig | TransformersConfig  # engines of one process


@dataclass(frozen=True)
class ServerConfig(Settings):
    """OpenAI-compatible vLLM servers that are running already."""

    backend: Literal["server"]
    """Name of the backend, one of the files in conf/scorer/."""
    urls: list[str]
    """Addresses such as http://localhost:8000; {fold} stands for the fold of the teacher that a server holds."""
    model: str | None
    """What the servers call the model; null: the only one that they serve."""
    api_key_variable: str | None
    """Environment variable that holds the key; null: no key is sent."""
    prompts_per_request: Count
    """Prompts in one request."""
    requests_in_flight: Count
    """Requests that wait for an answer, to each server."""
    retries: Natural
    """How often a request is sent again after 429, 5xx, a time-out or a lost connection: after 1, 2, 4 ... seconds."""
    timeout_s: Positive
    """Seconds that an answer may take."""

    @property
    def identity(self) -> dict[str, Any]:
        return {"backend": self.backend, "model": self.model}


@dataclass(frozen=True)
class RayConfig(Settings):
    """Workers on a Ray cluster, each of which opens a scorer of its own."""

    backend: Literal["ray"]
    """Name of the backend, one of the files in conf/scorer/."""
    worker: LocalConfig
    """Scorer that each worker opens."""
    address: str | None
    """Address of a running cluster, such as auto; null: start one on this machine."""
    workers: Count
    """Number of workers."""
    gpus: NonNegative
    """GPUs of each worker: tensor_parallel_size x pipeline_parallel_size."""
    cpus: NonNegative
    """CPU cores of each worker."""
    prompts_per_task: Count
    """Prompts in one task: what the loss of a worker can cost."""

    @property
    def identity(self) -> dict[str, Any]:
        return self.worker.identity

    @property
    def precision(self) -> Precision:
        return self.worker.precision

    @property
    def memory_share(self) -> float:
        return self.worker.memory_share

    def in_transformers(self) -> TransformersConfig:
        return self.worker.in_transformers()


ScorerConfig = VllmConfig | TransformersConfig | ServerConfig | RayConfig


@dataclass(frozen=True)
class ScorersConfig:
    """Which scorer reads which model."""

    teacher: ScorerConfig
    """Reads teachers."""
    student: LocalConfig
    """Reads trained students, in eval and to compare exports with."""
    check: ScorerConfig
    """Reads an export while it is compared with its student."""
    exported: ScorerConfig
    """Reads exports, in eval, predict and serve."""
