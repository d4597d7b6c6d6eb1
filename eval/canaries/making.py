"""The canaries of an export: what an engine must answer, and how far it may be off (checked by `checking`).

The reference is the exported model in floating point: transformers in fp32, with int8 activations rounded as int8
kernels round them. Engines compute in 16 bits and add in another order, so the model answers several times, every
module's output off at random by what 16 bits cost. The mean of the answers is expected of an engine, and their scatter
is what it may be off by. In `merged` and w4a16 that is next to nothing. In w8a8 a small change turns roundings to int8,
these turn others, and after some layers the answers scatter as much as quantising itself has moved them, which no
engine can avoid. What is wrong beyond that shows in the mean over prompts, where scatter averages out.

llama.cpp, which reads GGUF, answers twice: with keys and values in fp32, and in fp16 as usual.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from core.exported import GGUF_BACKBONE
from core.pointwise import PointwiseScorer
from core.prompts import Renderer
from core.records import Conversation
from core.scoring import check_finite, score
from eval.canaries.checking import Differences, write_canaries
from eval.config import CanariesConfig
from students.export.calibration_rows import canary_prompts
from teachers.scorers.config import Dtype, ScorerConfig
from teachers.scorers.opening import open_scorer
from teachers.scorers.transformers import TransformersScorer

Prompts = Sequence[Sequence[int]]


def make_canaries(
    folder: Path,
    model: Path,
    renderer: Renderer,
    scorer: ScorerConfig,
    dtype: Dtype,
    canaries: CanariesConfig,
    training: Sequence[Conversation],
    seed: int,
) -> None:
    """Write `canaries.parquet` into `folder`, from `training` conversations; `model` has its weights, to be read here.

    Raises `UserError` where the exported model gives logits that are not finite.
    """
    shown = canary_prompts(training, renderer, canaries.rows, canaries.tokens, seed)
    prompts = [prompt.ids for _, prompt in shown]
    exact, *moved = answer(model, scorer, dtype, canaries.repeats, prompts, renderer.config.max_tokens)
    answers = np.stack(moved)
    check_finite(answers.mean(axis=0), [c.id for c, _ in shown])
    write_canaries(folder, shown, answers.mean(axis=0), tolerance(answers, exact, canaries))


def answer(
    model: Path, scorer: ScorerConfig, dtype: Dtype, repeats: int, prompts: Prompts, max_tokens: int
) -> Iterator[np.ndarray]:
    """Logits [prompts, 3] of the exported model: the exact ones, then those of several engines that are all right."""
    exact = replace(scorer.in_transformers(), dtype="fp32")
    if (model / GGUF_BACKBONE).exists():
        for each in (exact, exact, replace(exact, dtype="auto")):
            with open_scorer(model, each, max_tokens) as llama_cpp:
                yield score(llama_cpp, prompts)
        return
    with open_scorer(model, exact, max_tokens) as opened:
        computing = opened.rewards if isinstance(opened, PointwiseScorer) else opened
        assert isinstance(computing, TransformersScorer)
        yield score(opened, prompts)
        for seed in range(repeats):
            with computing.rounding(torch.bfloat16 if dtype == "bf16" else torch.float16, seed):
                yield score(opened, prompts)


def tolerance(answers: np.ndarray, exact: np.ndarray, settings: CanariesConfig) -> Differences:
    """What an engine may differ by from the mean of `answers` [engines, prompts, 3], as each does from the others.

    At least `factors.exact` times what the `exact` logits [prompts, 3] do: rounding at random may move all answers to
    one side.
    """
    count = len(answers)
    mean = answers.mean(axis=0)
    apart = (answers - mean) * count / (count - 1)
    scatter = np.sqrt(np.mean(apart**2))
    shift = np.sqrt(np.mean(apart.mean(axis=1) ** 2))
    factors, own = settings.factors, Differences.between(exact, mean)
    return Differences(
        rms=max(settings.floor, factors.rms * scatter, factors.exact * own.rms),
        largest=max(settings.floor, factors.largest * np.abs(apart).max(), factors.exact * own.largest),
        shift=max(settings.floor, factors.shift * shift, factors.exact * own.shift),
    )
