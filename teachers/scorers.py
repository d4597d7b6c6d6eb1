"""Opening a scorer by its configuration: one protocol (`distill.scoring.Scorer`), four backends, two ways to ask.

Whoever opens a scorer here finds the device free and leaves it free, whatever engine ran before or comes next.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from distill.config import ScorerConfig
from distill.device import free_device
from distill.errors import UserError
from distill.exported import GGUF_BACKBONE
from distill.records import LABELS
from distill.scoring import Scorer
from teachers.int8 import saturates


@contextmanager
def open_scorer(
    model: Path,
    config: ScorerConfig,
    max_tokens: int,
    *,
    labels: Sequence[str] | None = LABELS,
    adapter: Path | None = None,
    fold: int | None = None,
) -> Iterator[Scorer]:
    """The scorer of a model's folder, closed at the end.

    `max_tokens` is the longest prompt in tokens. `labels` are the outputs that a classifier must have (None: any).
    `adapter` is a LoRA folder that vLLM serves beside `model`, `fold` fills a server's URL. Raises `UserError` where
    the folder or the servers do not hold such a model.
    """
    label_ids = None
    if config.method == "label_tokens":
        label_ids = label_token_ids(config.labels, model)
    elif config.backend != "server":
        check_classifier(model, labels)
    if config.backend == "server":
        from teachers.server import ServerScorer

        yield ServerScorer(config, max_tokens, fold, label_ids, None if labels is None else len(labels))
    elif config.backend == "ray":
        from teachers.ray import RayScorer

        with RayScorer(model, config, max_tokens, label_ids) as scorer:
            yield scorer
    else:
        with open_engine(model, config, max_tokens, label_ids, adapter) as scorer:
            yield scorer


@contextmanager
def open_engine(
    model: Path,
    config: ScorerConfig,
    max_tokens: int,
    label_ids: Sequence[int] | None = None,
    adapter: Path | None = None,
) -> Iterator[Scorer]:
    """A scorer in this process: vLLM or transformers. With `label_ids` the model is read as a language model.

    An export in GGUF is read by llama.cpp, the only one that can, whatever the backend. Where vLLM
    would cut int8 products (`teachers.int8`), transformers computes them. At the end the model's memory is the
    device's again, although the caller may still hold the scorer.
    """
    free_device()  # of what was trained, merged or quantised here before
    try:
        with _engine(model, config, max_tokens, label_ids, adapter) as scorer:
            yield scorer
    finally:
        free_device()


def _engine(
    model: Path, config: ScorerConfig, max_tokens: int, label_ids: Sequence[int] | None, adapter: Path | None
) -> AbstractContextManager[Scorer]:
    if (model / GGUF_BACKBONE).exists():
        from teachers.gguf import GgufScorer

        if label_ids is not None or adapter is not None:
            raise UserError(f"{model} is GGUF with a score head: set scorer.method=classify, teacher.merge=true")
        return GgufScorer(model, config, max_tokens)
    if config.backend == "vllm" and not saturates(model):
        from teachers.vllm import VllmScorer

        engine_gpus(config.vllm)
        return VllmScorer(model, config, max_tokens, label_ids, adapter)
    from teachers.transformers import TransformersScorer

    if adapter is not None:
        raise UserError("teacher.merge=false: only the vllm backend serves an adapter beside its base; merge it")
    return TransformersScorer(model, config, label_ids)


def engine_gpus(vllm: Mapping[str, Any]) -> int:
    """How many GPUs a vLLM engine with these arguments spans. Raises `UserError` where that is no number of GPUs."""
    sizes = {name: vllm.get(name, 1) for name in ("tensor_parallel_size", "pipeline_parallel_size")}
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise UserError(f"scorer.vllm.{name}={size}: give a number of GPUs, 1 or more")
    return math.prod(sizes.values())


def label_token_ids(labels: Sequence[str], model: Path) -> list[int]:
    """The token of each of the three `labels`, in the order of `LABELS`.

    Raises `UserError` for a label that is more than one token, or two labels that are the same.
    """
    if len(labels) != len(LABELS):
        raise UserError(f"scorer.labels={list(labels)}: give one text for each of {list(LABELS)}, in this order")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    pieces = [tokenizer.encode(label, add_special_tokens=False) for label in labels]
    problems = [f"{label!r} is {p.tokens}" for label, p in zip(labels, pieces, strict=True) if len(p.ids) != 1]
    if problems:
        raise UserError(
            f"scorer.labels must be one token each for {model}, but {'; '.join(problems)}: "
            "choose other texts, with or without their leading space, as prompt.template.verdict ends"
        )
    ids = [p.ids[0] for p in pieces]
    if len(set(ids)) != len(ids):
        raise UserError(f"scorer.labels={list(labels)}: two of them are the same token of {model}")
    return ids


def check_classifier(model: Path, labels: Sequence[str] | None = LABELS) -> None:
    """Raise `UserError` unless `model` is a folder with a sequence classifier, over `labels` where they are given."""
    path = model / "config.json"
    if not path.exists():
        raise UserError(f"{model} holds no model: there is no config.json; give the folder that distill.export wrote")
    config: dict[str, Any] = json.loads(path.read_text())
    architectures = config.get("architectures") or []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise UserError(
            f"{model} is not a judge: its architectures {architectures} hold no ...ForSequenceClassification; "
            "a language model without a score head is asked with scorer.method=label_tokens"
        )
    found = [name for _, name in sorted(config.get("id2label", {}).items(), key=lambda item: int(item[0]))]
    if labels is not None and found not in ([*labels], [f"LABEL_{i}" for i in range(len(labels))]):
        raise UserError(f"{model} has the labels {found} (id2label in config.json), expected {[*labels]} in this order")
