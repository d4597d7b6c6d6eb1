"""Opening a scorer by its configuration, and the progress bar that all scorers share."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distill.config import ScorerConfig
from distill.records import LABELS
from distill.scoring import Scorer


@contextmanager
def open_scorer(model: Path, config: ScorerConfig, max_tokens: int) -> Iterator[Scorer]:
    """The scorer of a judge's folder, closed at the end so that the next engine finds the device free.

    `max_tokens` is the longest prompt in tokens. Raises `ValueError` where the folder holds no three-way judge.
    """
    check_judge(model)
    if config.backend == "vllm":
        from teachers.vllm import VllmScorer

        with VllmScorer(model, config, max_tokens) as scorer:
            yield scorer
    else:
        from teachers.transformers import TransformersScorer

        yield TransformersScorer(model, config)


def check_judge(model: Path) -> None:
    """Raise `ValueError` unless `model` is a local folder with a sequence classifier over `LABELS`, in that order."""
    path = model / "config.json"
    if not path.exists():
        raise ValueError(f"{model} holds no model: there is no config.json; give the folder that distill.export wrote")
    config: dict[str, Any] = json.loads(path.read_text())
    architectures = config.get("architectures") or []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise ValueError(
            f"{model} is not a judge: its architectures {architectures} hold no ...ForSequenceClassification"
        )
    labels = [name for _, name in sorted(config.get("id2label", {}).items(), key=lambda item: int(item[0]))]
    if labels not in ([*LABELS], [f"LABEL_{i}" for i in range(len(LABELS))]):
        raise ValueError(
            f"{model} has the labels {labels} (id2label in config.json), expected {[*LABELS]} in this order"
        )


class Progress(tqdm):
    """A progress bar over rows that shows tokens per second, too; silent where nobody watches (no terminal)."""

    def __init__(self, lengths: Sequence[int]) -> None:
        """`lengths`: tokens of each row, in the order of scoring."""
        self.ends = [0, *accumulate(lengths)]
        super().__init__(total=len(lengths), desc="scoring", unit=" rows", dynamic_ncols=True, disable=None)

    def update(self, n: float | None = 1) -> bool | None:
        shown = super().update(n)
        if not self.disable:
            self.set_postfix_str(f"{self.ends[int(self.n)] / self.format_dict['elapsed']:,.0f} tokens/s", refresh=False)
        return shown
