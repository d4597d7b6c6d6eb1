"""The table of scorer backends. A new one is a file beside this one, its settings in `config.py`, and one row here.

Backends of this process find the device free when they open and leave it free, whatever ran before or comes next.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from core.device import free_device
from core.errors import UserError
from core.exported import GGUF_BACKBONE
from core.scoring import Scorer
from teachers.scorers.config import LocalConfig, RayConfig, ScorerConfig, ServerConfig, TransformersConfig, VllmConfig
from teachers.scorers.int8 import saturates
from teachers.scorers.spec import ModelSpec


@dataclass(frozen=True)
class Backend:
    """What holds for every scorer of one kind.

    `in_process`: its engine has this process's GPUs. `loads_model`: it reads the model's folder, here or on a cluster;
    servers have read it already. `draws_all`: it draws all prompts before it gives the first logits. `miscomputes`:
    whether it computes a folder's model wrongly on this machine, so that transformers has to do it.
    """

    open: Callable[[ModelSpec, Any], AbstractContextManager[Scorer]]
    in_process: bool = False
    loads_model: bool = True
    draws_all: bool = False
    serves_adapters: bool = False
    miscomputes: Callable[[Path], bool] = lambda model: False


def backend_of(config: ScorerConfig) -> Backend:
    """The row of a scorer's configuration."""
    return BACKENDS[type(config)]


def open_with(spec: ModelSpec, config: ScorerConfig) -> AbstractContextManager[Scorer]:
    """The scorer that `config` asks for, closed at the end."""
    if backend_of(config).in_process:
        return open_here(spec, cast(LocalConfig, config))
    return opened(backend_of(config), spec, config)


@contextmanager
def open_here(spec: ModelSpec, config: LocalConfig) -> Iterator[Scorer]:
    """A scorer of this process. Its memory is the device's again at the end, even where a caller keeps the scorer.

    The folder may overrule the configuration: llama.cpp alone reads GGUF, and what a backend would compute wrongly
    here, transformers computes.
    """
    backend = backend_of(config)
    if (spec.model / GGUF_BACKBONE).exists():
        backend = LLAMA_CPP
    elif backend.miscomputes(spec.model):
        config = config.in_transformers()
        backend = backend_of(config)
    free_device()  # of what was trained, merged or quantised here before
    try:
        with opened(backend, spec, config) as scorer:
            yield scorer
    finally:
        free_device()


def opened(backend: Backend, spec: ModelSpec, config: ScorerConfig) -> AbstractContextManager[Scorer]:
    if spec.adapter is not None and not backend.serves_adapters:
        raise UserError("teacher.merge=false: only vLLM in this process serves an adapter; set teacher.merge=true")
    return backend.open(spec, config)


def vllm(spec: ModelSpec, config: VllmConfig) -> AbstractContextManager[Scorer]:
    from teachers.scorers.vllm import VllmScorer

    assert config.gpus_spanned  # raises where it is no number
    return VllmScorer(spec.model, config, spec.max_tokens, spec.label_ids, spec.adapter)


def transformers(spec: ModelSpec, config: TransformersConfig) -> AbstractContextManager[Scorer]:
    from teachers.scorers.transformers import TransformersScorer

    return TransformersScorer(spec.model, config, spec.label_ids)


def llama_cpp(spec: ModelSpec, config: LocalConfig) -> AbstractContextManager[Scorer]:
    from teachers.scorers.llama_cpp import GgufScorer

    if spec.label_ids is not None:
        raise UserError(f"{spec.model} is GGUF with a score head: set teacher.method=classify")
    return GgufScorer(spec.model, config.dtype, spec.max_tokens)


def server(spec: ModelSpec, config: ServerConfig) -> AbstractContextManager[Scorer]:
    from teachers.scorers.server.scorer import ServerScorer

    return nullcontext(ServerScorer(config, spec.max_tokens, spec.fold, spec.label_ids, spec.outputs))


def ray(spec: ModelSpec, config: RayConfig) -> AbstractContextManager[Scorer]:
    from teachers.scorers.ray.scorer import RayScorer

    return RayScorer(spec, config, open_here)


BACKENDS: Mapping[type, Backend] = {
    VllmConfig: Backend(vllm, in_process=True, serves_adapters=True, miscomputes=saturates),
    TransformersConfig: Backend(transformers, in_process=True),
    ServerConfig: Backend(server, loads_model=False),
    RayConfig: Backend(ray, draws_all=True),
}
LLAMA_CPP = Backend(llama_cpp, in_process=True)  # what a folder in GGUF needs, whatever the configuration says
