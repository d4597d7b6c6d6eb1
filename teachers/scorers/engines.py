"""The engines of this process: vLLM, transformers and llama.cpp, one of which answers for a model's folder.

Whoever opens an engine here finds the device free and leaves it free, whatever ran before or comes next.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from core.device import free_device
from core.errors import UserError
from core.exported import GGUF_BACKBONE
from core.scoring import Scorer
from teachers.scorers.config import TransformersConfig, VllmConfig, through_transformers
from teachers.scorers.int8 import saturates


@contextmanager
def open_engine(
    model: Path,
    config: VllmConfig | TransformersConfig,
    max_tokens: int,
    label_ids: Sequence[int] | None = None,
    adapter: Path | None = None,
) -> Iterator[Scorer]:
    """A scorer in this process: vLLM or transformers. With `label_ids` the model is read as a language model.

    An export in GGUF is read by llama.cpp, the only one that can, whatever the backend. Where vLLM
    would cut int8 products (`teachers.scorers.int8`), transformers computes them. At the end the model's memory is the
    device's again, although the caller may still hold the scorer.
    """
    free_device()  # of what was trained, merged or quantised here before
    try:
        with _engine(model, config, max_tokens, label_ids, adapter) as scorer:
            yield scorer
    finally:
        free_device()


def _engine(
    model: Path,
    config: VllmConfig | TransformersConfig,
    max_tokens: int,
    label_ids: Sequence[int] | None,
    adapter: Path | None,
) -> AbstractContextManager[Scorer]:
    if (model / GGUF_BACKBONE).exists():
        from teachers.scorers.llama_cpp import GgufScorer

        if label_ids is not None or adapter is not None:
            raise UserError(f"{model} is GGUF with a score head: set teacher.method=classify, teacher.merge=true")
        return GgufScorer(model, config.dtype, max_tokens)
    if isinstance(config, VllmConfig) and not saturates(model):
        from teachers.scorers.vllm import VllmScorer

        engine_gpus(config.engine_args)
        return VllmScorer(model, config, max_tokens, label_ids, adapter)
    from teachers.scorers.transformers import TransformersScorer

    if adapter is not None:
        raise UserError("teacher.merge=false: only the vllm backend serves an adapter beside its base; merge it")
    return TransformersScorer(model, through_transformers(config), label_ids)


def engine_gpus(engine_args: Mapping[str, Any]) -> int:
    """How many GPUs a vLLM engine with these arguments spans. Raises `UserError` where that is no number of GPUs."""
    sizes = {name: engine_args.get(name, 1) for name in ("tensor_parallel_size", "pipeline_parallel_size")}
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise UserError(f"scorer.engine_args.{name}={size}: give a number of GPUs, 1 or more")
    return math.prod(sizes.values())
