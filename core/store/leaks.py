"""Leaks are found by what a judge saw (`seen.py`), not by what its rows claim."""

import polars as pl

from core.errors import UserError
from core.store.parts import token

NAMED = 3  # how many offending rows a message names


def check_leaks(logits: pl.DataFrame, seen: pl.DataFrame) -> None:
    """Raise `UserError` unless `in_sample` is, row by row, whether the judge was trained on the row's fingerprint.

    `seen` is what `read_seen` gives; what a judge has of its teachers alone does not count here.
    """
    other_way_round = pl.col("fingerprint").xor(pl.lit(1, pl.UInt64))
    trained = [
        (pl.col("judge_fold") == fold)
        & pl.any_horizontal(
            texts.is_in(theirs["fingerprint"].implode()) for texts in (pl.col("fingerprint"), other_way_round)
        )
        for (fold,), theirs in seen.filter("directly").partition_by("judge_fold", as_dict=True).items()
    ]
    wrong = logits.filter(pl.col("in_sample").ne_missing(pl.any_horizontal(pl.lit(False), *trained)))
    wrong = wrong.select("id", "judge_fold", "in_sample").unique(maintain_order=True)
    if len(wrong):
        leaks = wrong.filter(~pl.col("in_sample"))
        told = ", ".join(
            f"{row['id']!r} by the judge of fold {token(row['judge_fold'])} "
            f"({'in_sample=true, but it was not trained on it' if row['in_sample'] else 'trained on it: a leak'})"
            for row in pl.concat([leaks, wrong.filter("in_sample")]).head(NAMED).iter_rows(named=True)
        )
        raise UserError(
            f"{len(wrong)} judgements have a wrong `in_sample` flag, {len(leaks)} of them are leaks: {told}; "
            "score the conversations again with overwrite=true"
        )
