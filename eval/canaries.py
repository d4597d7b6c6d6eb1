"""The canaries of an export: what an engine must answer, and how far it may be off (`distill.canaries` checks it).

The expected logits are those of the exported files in floating point: transformers in fp32, with int8 activations
rounded as int8 kernels round them, for GGUF llama.cpp. How far another engine may be off is measured, too: the same
again as coarsely as engines compute, every module's output rounded to 16 bits (in llama.cpp keys and values, which
are in fp16 unless it is asked for fp32). In w8a8 such small changes turn roundings, these turn others, and after some
layers as many have changed as can: no engine that is right differs by more than this second answer does, but a kernel
that is wrong also moves the mean, by far more than the standard error of so many prompts.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from distill.canaries import Differences, write_canaries
from distill.config import CanariesConfig, ExportConfig, ScorerConfig
from distill.prompts import Renderer
from distill.records import Conversation
from distill.scoring import check_finite, score
from students.calibration_rows import canary_prompts
from teachers.scorers import open_scorer
from teachers.transformers import TransformersScorer

Prompts = Sequence[Sequence[int]]


def make_canaries(
    folder: Path,
    model: Path,
    renderer: Renderer,
    export: ExportConfig,
    training: Sequence[Conversation],
    seed: int,
) -> None:
    """Write `canaries.parquet` into `folder`, from `training` conversations; `model` has its weights, to be read here.

    Raises `UserError` where the exported model gives logits that are not finite.
    """
    shown = canary_prompts(training, renderer, export.canaries, seed)
    prompts = [prompt.ids for _, prompt in shown]
    logits, coarse = answer_twice(model, export, prompts, renderer.config.max_tokens)
    check_finite(logits, [c.id for c, _ in shown])
    write_canaries(folder, shown, logits, tolerance(coarse, logits, export.canaries))


def answer_twice(
    model: Path, export: ExportConfig, prompts: Prompts, max_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [prompts, 3], exactly and as coarsely as an engine may compute them."""
    exact = replace(export.scorer, backend="transformers", dtype="fp32")
    with open_scorer(model, exact, max_tokens) as scorer:
        logits = score(scorer, prompts)
        if isinstance(scorer, TransformersScorer):
            with scorer.rounding(torch.bfloat16 if export.dtype == "bf16" else torch.float16):
                return logits, score(scorer, prompts)
    return logits, _as_usual(model, exact, prompts, max_tokens)


def _as_usual(model: Path, exact: ScorerConfig, prompts: Prompts, max_tokens: int) -> np.ndarray:
    with open_scorer(model, replace(exact, dtype="auto"), max_tokens) as scorer:
        return score(scorer, prompts)


def tolerance(coarse: np.ndarray, exact: np.ndarray, settings: CanariesConfig) -> Differences:
    """What an engine may differ by, from two answers [n, 3] that are both right."""
    apart = Differences.between(coarse, exact)
    scatter = np.sqrt(np.mean((coarse - exact) ** 2, axis=0)).max()  # of one label
    return Differences(
        rms=max(settings.floor, settings.margin * apart.rms),
        largest=max(settings.floor, settings.margin * apart.largest),
        shift=max(settings.floor, settings.errors * scatter / len(exact) ** 0.5),
    )
