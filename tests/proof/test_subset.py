"""The scored responses that the proof is made of: few of each prompt, whose scores differ, in an order of its own."""

import numpy as np
import polars as pl

from proof.subset import SCORE, subset


def responses(prompts: int, models: int) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    rows = [(f"prompt {p}", f"model {m}", f"answer {p} {m}") for p in range(prompts) for m in range(models)]
    table = pl.DataFrame(rows, schema=["prompt", "model", "response"], orient="row")
    return table.with_columns(pl.Series(SCORE, rng.integers(-4, 4, len(rows)).astype(float)))


def test_few_responses_of_each_prompt_with_different_scores() -> None:
    kept = subset(table := responses(40, 20), SCORE, 6)
    assert (kept.group_by("prompt").len()["len"] == 6).all() and kept["prompt"].n_unique() == 40
    assert kept.group_by("prompt").agg(pl.col(SCORE).n_unique())[SCORE].min() == 6
    assert kept.join(table, on=table.columns).height == len(kept)
    first = kept["prompt"].unique(maintain_order=True).to_list()
    assert first != table["prompt"].unique(maintain_order=True).to_list()  # the first N are no neighbours


def test_it_depends_on_the_texts_alone() -> None:
    table = responses(10, 9)
    assert subset(table.sample(fraction=1, shuffle=True, seed=3), SCORE, 4).equals(subset(table, SCORE, 4))
    alone = subset(table.filter(pl.col("prompt") == "prompt 3"), SCORE, 4)
    assert alone.equals(subset(table, SCORE, 4).filter(pl.col("prompt") == "prompt 3"))
    assert subset(table, SCORE, 2).join(subset(table, SCORE, 4), on=table.columns).height == 20  # the smaller is in it
