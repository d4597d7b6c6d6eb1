"""Opening a scorer for a model, after a check that the model can be asked so."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models.encoders import check_room
from core.models.label_tokens import label_token_ids
from core.pointwise import Choice, PointwiseScorer, choice_in, outputs_of
from core.records import LABELS
from core.scoring import Scorer
from teachers.scorers.backends import ModelSpec, backend_of, open_with
from teachers.scorers.config import ScorerConfig


@contextmanager
def open_scorer(
    model: Path,
    config: ScorerConfig,
    max_tokens: int,
    *,
    judges: bool = True,
    choice: Choice | None = None,
    label_tokens: Sequence[str] | None = None,
    adapter: Path | None = None,
    fold: int | None = None,
) -> Iterator[Scorer]:
    """The scorer of a model's folder, closed at the end.

    `max_tokens` is the longest prompt in tokens. It gives the logits of a judge (`judges`), or whatever outputs the
    classifier has. A pointwise judge's rewards become logits by what its config.json says, or by `choice` where the
    folder is not that of its model. With `label_tokens`, one text a label, a language model is asked for these next
    tokens instead. `adapter` is a LoRA folder that is served beside `model`, `fold` fills a server's URL. Raises
    `UserError` where the folder or the servers do not hold such a model.
    """
    choice = choice or (choice_in(model) if judges and label_tokens is None else None)
    labels = outputs_of(choice is not None) if judges else None
    label_ids = None
    if label_tokens is not None:
        label_ids = label_token_ids(label_tokens, model)
    elif backend_of(config).loads_model:
        check_classifier(model, labels)
        check_room(model, max_tokens)
    outputs = None if labels is None else len(labels)
    with open_with(ModelSpec(model, max_tokens, label_ids, outputs, adapter, fold), config) as scorer:
        yield scorer if choice is None else PointwiseScorer(scorer, choice)


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
            "a language model without a score head is asked with teacher.method=label_tokens"
        )
    found = [name for _, name in sorted(config.get("id2label", {}).items(), key=lambda item: int(item[0]))]
    if labels is not None and found not in ([*labels], [f"LABEL_{i}" for i in range(len(labels))]):
        raise UserError(f"{model} has the labels {found} (id2label in config.json), expected {[*labels]} in this order")
