"""The sets beside a submission: one a row, by what is known of it."""

from pathlib import Path

import numpy as np
import polars as pl

from core.data.collecting import REJECTED
from core.records import Conversation
from deploy.predicting.prediction_sets import write_sets
from deploy.predicting.unlabelled import Unlabelled
from eval.conformal import LEVELS, Thresholds

THRESHOLDS = Thresholds(both=[0.3] * len(LEVELS), one=[0.15] * len(LEVELS), groups=9)
SCORES = pl.DataFrame({"id": ["twice", "twice", "once"], "order": ["ab", "ba", "ab"], "turn": [0, 0, 0]})


def rows() -> Unlabelled:
    """Three rows for the judge, of which two are judged; one by a rule, one that nobody could read."""
    conversations = [Conversation(id, ["q"], ["x"], ["y"]) for id in ("twice", "once")]
    unreadable = pl.DataFrame([("test", 4, "damaged", "no JSON")], schema=REJECTED, orient="row")
    ids = ["twice", "once", "ruled", "damaged"]
    return Unlabelled(ids, conversations, {"ruled": [0.1, 0.1, 0.8]}, unreadable, {}, "id")


def test_a_set_has_the_threshold_of_the_orders_shown(tmp_path: Path) -> None:
    table = np.array([[0.5, 0.2, 0.3], [0.5, 0.2, 0.3], [0.1, 0.1, 0.8], [0.4, 0.4, 0.2]])
    output = tmp_path / "submission.csv"
    write_sets(output, rows(), SCORES, table, [THRESHOLDS], 0.9)
    written = tmp_path / "submission.sets.csv"
    assert written.read_text() == "id,set\ntwice,a|tie\nonce,a|b|tie\nruled,tie\ndamaged,a|b|tie\n"
    write_sets(output, rows(), SCORES, table[:, :2] / table[:, :2].sum(axis=1, keepdims=True), [THRESHOLDS], 0.9)
    assert written.read_text().splitlines()[1:] == ["twice,a", "once,a|b", "ruled,a|b", "damaged,a|b"]
    write_sets(output, rows(), SCORES, table, [None], 0.9)
    assert not written.exists(), "those of an earlier submission would be taken for this one's"
