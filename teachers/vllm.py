"""The scorer for large runs: vLLM's pooling engine, fed with token ids in the order that suits its prefix cache."""

import gc
import inspect
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from distill.config import ScorerConfig
from distill.records import LABELS
from teachers.scorers import Progress

log = logging.getLogger(__name__)
DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
CPU_KV_CACHE_GIB = 2
SHUTDOWN_SECONDS = 60  # vLLM's 5 would kill the engine while it still waits for its workers


class VllmScorer:
    """Scores with a vLLM engine, which lives in a child process until `close()`."""

    def __init__(self, model: Path, config: ScorerConfig, max_tokens: int) -> None:
        """Start the engine: tens of seconds on a CPU, minutes for a large model.

        `max_tokens` is the longest prompt it will take. Raises `ValueError` for engine arguments that vLLM does not
        know. Environment variables that vLLM reads are set here, unless they are set already; `close()` puts them back.
        """
        self._environment = dict(os.environ)
        # Read when vllm is imported. Its warnings tell of kernels and libraries that this machine does without.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm import LLM, EngineArgs, PoolingParams
        from vllm.platforms import current_platform

        known = {*inspect.signature(LLM).parameters, *(field.name for field in fields(EngineArgs))}
        if unknown := sorted(set(config.vllm) - known):
            raise ValueError(
                f"scorer.vllm: vllm.LLM has no engine arguments {unknown}; see the keys of vllm.EngineArgs"
            )
        arguments: dict[str, Any] = {"dtype": DTYPES[config.dtype]}
        if current_platform.is_cpu():
            arguments |= _cpu_arguments(config)
        began = time.perf_counter()
        self.llm: Any = LLM(
            model=str(model),
            runner="pooling",
            max_model_len=max_tokens,
            skip_tokenizer_init=True,
            use_tqdm_on_load=False,
            **arguments | config.vllm,
        )
        log.info("vLLM is ready to score with %s after %.0f s", model, time.perf_counter() - began)
        self.max_tokens = max_tokens
        self._raw = PoolingParams(use_activation=False)

    def score(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """float32 [len(prompts), 3] as `distill.scoring.Scorer` says. Raises `ValueError` for too long prompts."""
        for row, prompt in enumerate(prompts):
            if not 0 < len(prompt) <= self.max_tokens:
                raise ValueError(
                    f"prompt {row} has {len(prompt)} tokens, this scorer takes 1 to {self.max_tokens}: "
                    "render prompts with that budget"
                )
        logits = np.empty((len(prompts), len(LABELS)), dtype=np.float32)
        if not prompts:
            return logits
        # Neighbours in lexicographic order share the longest prefixes, so that the cache still holds them.
        ids = [list(prompt) for prompt in prompts]
        order = sorted(range(len(ids)), key=ids.__getitem__)
        began = time.perf_counter()
        outputs = self.llm.classify(
            [{"prompt_token_ids": ids[row]} for row in order],
            pooling_params=self._raw,
            use_tqdm=lambda **_: Progress([len(ids[row]) for row in order]),
        )
        logits[order] = [output.outputs.probs for output in outputs]  # "probs" are logits, see `_raw`
        tokens, cached = sum(map(len, ids)), sum(output.num_cached_tokens for output in outputs)
        seconds = time.perf_counter() - began
        log.info(
            "scored %d rows, %d tokens in %.1f s: %.1f rows/s, %.0f tokens/s, %.0f%% from the prefix cache",
            *(len(ids), tokens, seconds, len(ids) / seconds, tokens / seconds, 100 * cached / tokens),
        )
        return logits

    def close(self) -> None:
        """End the engine's processes, which frees their memory, and put the environment back."""
        if self.llm is not None:
            core = self.llm.llm_engine.engine_core
            core.shutdown(timeout=SHUTDOWN_SECONDS)
            for process in core.resources.engine_manager.processes:
                process.join()  # where the time was not enough, vLLM kills it but leaves a zombie
            self.llm = None
            gc.collect()
            os.environ.clear()
            os.environ.update(self._environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _cpu_arguments(config: ScorerConfig) -> dict[str, Any]:
    # On a CPU gpu_memory_utilization means that share of the RAM, and vLLM would keep one core for itself.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(CPU_KV_CACHE_GIB))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    arguments: dict[str, Any] = {"enforce_eager": True, "block_size": 32}
    if config.dtype == "auto":
        arguments["dtype"] = "float32"
    return arguments
