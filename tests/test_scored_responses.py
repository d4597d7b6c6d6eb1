"""GPT-4 Turbo's published scores of single responses, from prepare through the stored teacher to targets."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from core.data.public import public_folder
from core.data.table import load_conversations
from core.store.targets import soft_targets
from distill import prepare, teacher
from distill.logits import logits_folder
from tests.composing import configured
from tests.running import ROOT

RESPONSES = ROOT / public_folder() / "alpaca_eval_gpt4_turbo" / "responses.parquet"
PROMPTS, MODELS = 40, 4

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not RESPONSES.exists(), reason=f"{RESPONSES} is not there: python -m proof.sources makes it"),
]


def test_scores_of_responses_become_targets(tmp_path: Path) -> None:
    table = pl.read_parquet(RESPONSES)
    prompts = table["prompt"].unique(maintain_order=True).head(PROMPTS).implode()
    models = table["model"].unique(maintain_order=True).head(MODELS).implode()
    some = table.filter(pl.col("prompt").is_in(prompts), pl.col("model").is_in(models))
    some.write_parquet(tmp_path / "responses.parquet")
    config = configured(
        "+exp=smoke",
        f"paths.root={tmp_path}",
        *("data=human", "data.simulate=null", "data.shuffle_sides=[]"),
        "data.name=alpaca_eval",
        f"data.files=[{tmp_path / 'responses.parquet'}]",
        "data.pairs_per_prompt=2",
        "data.max_rejected=1",
        "teacher=stored",
        "teacher.name=gpt4_turbo",
        f"teacher.stored.file={tmp_path / 'responses.parquet'}",
        "teacher.rows=out_of_fold",
    )
    prepare.main(config)
    teacher.main(config)
    rows = load_conversations(tmp_path / "data" / "alpaca_eval")
    targets = soft_targets(logits_folder(config), rows, 0, "out_of_fold", None)
    assert len(rows) > PROMPTS and targets.logits.keys() == {c.id for c in rows}
    # The larger the gap of the scores, the surer the teacher, and always of the response with the higher score.
    gaps = np.array([(c.score_a or 0) - (c.score_b or 0) for c in rows])
    sure = np.array([targets.logits[c.id][0] - targets.logits[c.id][1] for c in rows])
    assert (np.sign(gaps) == np.sign(sure))[gaps != 0].all() and not targets.learned.is_known
