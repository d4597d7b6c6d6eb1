"""The scorer for T4s and CPUs without vLLM: llama.cpp computes a judge's backbone, numpy its score head.

`students.export.gguf` writes the folder. llama.cpp runs in this process, through xllamacpp, whose wheels carry it for
CPUs and for CUDA. For LAST pooling it returns the last token's hidden state after the final norm, which is what a head
reads.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from safetensors.numpy import load_file

from core.errors import UserError
from core.exported import GGUF_BACKBONE, GGUF_HEAD
from core.scoring import check_length, given_threads
from teachers.scorers.config import BATCH_TOKENS, Dtype

log = logging.getLogger(__name__)
AS_IS, ALL_CORES = -1, -1  # llama.cpp's words for an embedding that is not normalised, and for as many threads as cores
MOST_SEQUENCES = 256  # llama.cpp's own limit, LLAMA_MAX_SEQ


class GgufScorer:
    """Scores with llama.cpp, on GPUs where its build has a backend for them. It keeps no prefixes.

    The file says in what the weights are stored, `dtype` in what keys and values are: fp32, else fp16.
    """

    tokens_cached = 0

    def __init__(self, folder: Path, dtype: Dtype, max_tokens: int) -> None:
        """Load the backbone. `max_tokens` bounds each prompt, `BATCH_TOKENS` those in flight together.

        Raises `UserError` where the folder holds no such export, and where xllamacpp is not installed.
        """
        for name in (GGUF_BACKBONE, GGUF_HEAD):
            if not (folder / name).exists():
                raise UserError(f"{folder} has no {name}: give a folder that distill.export wrote as format=gguf")
        try:
            import xllamacpp
        except ImportError as error:
            raise UserError(f"scoring {folder / GGUF_BACKBONE} needs llama.cpp: pip install xllamacpp") from error
        self.max_tokens = max_tokens
        self.slots = min(max(1, BATCH_TOKENS // max_tokens), MOST_SEQUENCES)
        self.head = load_file(folder / GGUF_HEAD)["score.weight"]
        log.info("scoring with %s through llama.cpp, %d prompts at a time", folder, self.slots)
        self._server: Any = xllamacpp.Server(self._parameters(folder / GGUF_BACKBONE, dtype))

    def stream(self, prompts: Iterable[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
        """As `core.scoring.Scorer` says, in the order of `prompts`, as many at a time as there are slots."""
        waiting = enumerate(prompts)
        while batch := list(islice(waiting, self.slots)):
            for position, prompt in batch:
                check_length(position, prompt, self.max_tokens)
            logits = self._hidden([prompt for _, prompt in batch]) @ self.head.T
            yield from zip((position for position, _ in batch), logits, strict=True)

    def close(self) -> None:
        """Free the model's memory."""
        self._server = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _hidden(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """The last token's hidden state of each prompt: float32 [prompts, width]."""
        request = {"input": [[int(token) for token in prompt] for prompt in prompts], "embd_normalize": AS_IS}
        reply = self._server.handle_embeddings(request)
        if "error" in reply:
            raise UserError(f"llama.cpp refused a prompt: {reply['error'].get('message', reply['error'])}")
        rows = sorted(reply["data"], key=lambda row: row["index"])
        return np.array([row["embedding"] for row in rows], np.float32)

    def _parameters(self, backbone: Path, dtype: Dtype) -> Any:
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(backbone)
        parameters.embedding = True
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
        parameters.n_parallel = self.slots
        parameters.n_ctx = self.slots * (self.max_tokens + 1)  # it wants room for an answer
        # A prompt may lie across several such batches; the cap keeps buffers for activations small.
        parameters.n_batch = parameters.n_ubatch = min(parameters.n_ctx, 2048)
        # Where others use the cores, too, llama.cpp's threads wait for each other; it does not read OpenMP's variable.
        parameters.cpuparams.n_threads = given_threads() or ALL_CORES
        parameters.cpuparams_batch.n_threads = parameters.cpuparams.n_threads
        parameters.fit_params = False  # it would choose a context of its own
        parameters.cache_ram_mib = 0
        parameters.warmup = False
        parameters.verbosity = 0
        if dtype == "fp32":
            parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            # On CPUs this kernel rounds to fp16 between.
            parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        return parameters
