"""Which rows an average of folds may be compared and recalibrated on."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from core.artefacts.manifest import Manifest
from core.config import to_mapping
from core.records import TEST, Conversation
from students.export.fold_average import unseen
from students.trained import TrainedJudge
from students.training.data import split
from tests.composing import configured

TRAIN = replace(configured("+exp=smoke").train, validation_share=0.3)
ROWS = [
    Conversation(
        str(i), [f"p{i}"], ["x"], ["y"], votes=[1.0, 0.0, 0.0], group=f"g{i}", fold=TEST if i % 7 == 0 else i % 3
    )
    for i in range(210)
]


def fold(k: int) -> TrainedJudge:
    """A judge of fold k, as far as its manifest tells what trained it."""
    config = {"limit": None, "fold": k, "train": to_mapping(TRAIN)}
    return TrainedJudge(Path(), Manifest("student", config, {}, ""), Path(), cast(Any, None))


@pytest.mark.parametrize("folds", [[0], [0, 1, 2]])
def test_nothing_held_out_is_among_them(folds: list[int]) -> None:
    found = unseen([fold(k) for k in folds], ROWS)
    parts = [split(ROWS, k, 0.3) for k in folds]
    assert found and not {c.id for c in found} & {c.id for training, _ in parts for c in training}
    assert {c.id for c in found} <= {c.id for _, validation in parts for c in validation}
    assert not {c.fold for c in found} & {TEST, *(folds if len(folds) == 1 else ())}
