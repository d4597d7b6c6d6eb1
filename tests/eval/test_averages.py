import numpy as np
import pytest
from sklearn.metrics import log_loss

from eval.averages import ENSEMBLE, averages_table, compare_averages
from eval.bootstrap import Resampling
from eval.metrics import predict

ROWS = 60
RANDOM = np.random.default_rng(1)
LABEL = RANDOM.integers(3, size=ROWS)
SIGNAL = np.eye(3)[LABEL]
FOLDS = {f"fold {k}": tuple(SIGNAL + RANDOM.normal(size=(ROWS, 3)) for _ in "ab") for k in range(3)}


def test_the_ensemble_is_the_mean_of_the_folds_logits_and_each_judge_is_measured_against_it() -> None:
    logits = {**FOLDS, "average, delta": FOLDS["fold 1"]}
    found = compare_averages(logits, [*FOLDS], SIGNAL, [str(i) for i in range(ROWS)], Resampling(200, 0))  # type: ignore[arg-type]
    mean = [sum(fold[order] for fold in FOLDS.values()) / 3 for order in (0, 1)]
    expected = log_loss(LABEL, predict(*mean))
    judges = found.judges
    assert [*judges] == [*logits, ENSEMBLE] and judges[ENSEMBLE].log_loss == pytest.approx(expected)
    assert judges["average, delta"] == judges["fold 1"]
    for name, of in judges.items():
        assert of.over_ensemble.difference == pytest.approx(of.log_loss - expected), name
        assert of.log_loss_ci[0] <= of.log_loss <= of.log_loss_ci[1]
    assert min(judges, key=lambda name: judges[name].log_loss) == ENSEMBLE  # noise averages out
    assert averages_table(found).row_count == 5
