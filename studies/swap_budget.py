"""How much of the gain of judging all conversations in both orders is kept when only some get the second order.

    python -m studies.swap_budget --data artifacts/data/human_pandalm artifacts/eval/human

Each folder is an evaluation (`predictions.parquet`) or a store of soft logits, whose in-sample rows are left out. For
every judge with logits in both orders, and every share of conversations: the log loss on votes, how much of the gain in
log loss is kept, and how much of the expected gain, KL(mean || one order), a far less noisy figure. Intervals are
95%, bootstrapped over prompts. Ways to choose the conversations:

    pilot        as distill.predict does: a pilot decides whether the least sure or the surest come first
    least_sure   smallest margin between the two likeliest labels
    surest       largest margin
    entropy      largest entropy
    a_minus_b    smallest |P(a) - P(b)|
    random       any; its share of the gain is the share itself
    oracle       largest expected gain, which only both orders together tell: no choice can do better
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.special import softmax

from core.data.table import load_conversations
from core.scoring import logits_by_order, mean_logits
from core.store.reading import read_logits
from core.tables import read_parquet
from deploy.predicting.second_orders import by_need, draw_pilot, expected_gain, gains_where_sure, margin
from eval.bootstrap import bootstrap_means, interval
from eval.metrics import log_loss_rows, predict

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
PILOT, DRAWS, SEED = 256, 2000, 0
GOAL = 0.4  # the share of which the figures at the end tell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the prepared conversations, for their votes")
    parser.add_argument("folders", type=Path, nargs="+", help="evaluations and stores of soft logits")
    arguments = parser.parse_args()
    voted = {c.id: c for c in load_conversations(arguments.data) if c.votes}
    results = {}
    for name, scores in (judge for folder in arguments.folders for judge in read_judges(folder)):
        ids = [i for i in scores["id"].unique(maintain_order=True) if i in voted]
        first, second = logits_by_order(scores, ids)
        if np.array_equal(first, second):
            continue  # a judge that never sees an order
        votes, groups = np.array([voted[i].votes for i in ids]), [voted[i].group for i in ids]
        results[name] = curve(first, second, votes, groups)
        show(name, len(ids), results[name])
    print(json.dumps({name: figures["choices"]["pilot"][SHARES.index(GOAL)] for name, figures in results.items()}))


def read_judges(folder: Path) -> Iterator[tuple[str, pl.DataFrame]]:
    """Name and scores (id, order, logits) of every judge in `folder`."""
    if (folder / "predictions.parquet").exists():
        for (name,), scores in read_parquet(folder / "predictions.parquet").partition_by("judge", as_dict=True).items():
            yield f"{folder.name}: {name}", scores
    else:
        rows = read_logits(folder, "score it first").filter(~pl.col("in_sample"))
        yield folder.name, rows.group_by("id", "order", maintain_order=True).agg(mean_logits())


def choices(first: np.ndarray, second: np.ndarray, quota: int) -> dict[str, np.ndarray]:
    """Way to choose -> bool [rows]: the `quota` conversations that it judges twice."""
    drawn = draw_pilot(len(first), quota, PILOT)
    order = by_need(first, gains_where_sure(first[drawn], second[drawn]))
    p = softmax(first.astype(float), axis=1)
    orders = {
        "pilot": np.concatenate([drawn, order[~np.isin(order, drawn)]]),
        "least_sure": np.argsort(margin(first), kind="stable"),
        "surest": np.argsort(-margin(first), kind="stable"),
        "entropy": np.argsort((p * np.log(p)).sum(axis=1), kind="stable"),
        "a_minus_b": np.argsort(np.abs(p[:, 0] - p[:, 1]), kind="stable"),
        "random": np.random.default_rng(SEED).permutation(len(first)),
        "oracle": np.argsort(-expected_gain(first, second), kind="stable"),
    }
    return {name: np.isin(np.arange(len(first)), order[:quota]) for name, order in orders.items()}


def curve(first: np.ndarray, second: np.ndarray, votes: np.ndarray, groups: list[str]) -> dict[str, Any]:
    """Figures of one judge: log loss of one and of both orders, and by way to choose a list over `SHARES`."""
    one, both = log_loss_rows(softmax(first.astype(float), axis=1), votes), log_loss_rows(predict(first, second), votes)
    expected = expected_gain(first, second)
    found: dict[str, list[dict[str, Any]]] = {}
    for share in SHARES:
        for name, twice in choices(first, second, round(share * len(one))).items():
            means = bootstrap_means(
                np.stack([(one - both) * twice, one - both, expected * twice, expected], axis=1), groups, DRAWS, SEED
            )
            found.setdefault(name, []).append(
                {
                    "share": share,
                    "log_loss": float(np.where(twice, both, one).mean()),
                    "kept_votes": float((one - both)[twice].sum() / (one - both).sum()),
                    "kept_votes_ci": interval(means[:, 0] / means[:, 1]),
                    "kept_expected": float(expected[twice].sum() / expected.sum()),
                    "kept_expected_ci": interval(means[:, 2] / means[:, 3]),
                }
            )
    gain = bootstrap_means(one - both, groups, DRAWS, SEED)[:, 0]
    return {
        "one": float(one.mean()),
        "both": float(both.mean()),
        "gain_ci": interval(gain),
        "expected": float(expected.mean()),
        "choices": found,
    }


def show(name: str, rows: int, figures: dict[str, Any]) -> None:
    low, high = figures["gain_ci"]
    print(
        f"\n{name}, {rows} conversations: log loss {figures['one']:.4f} in one order, {figures['both']:.4f} in both; "
        f"gain {figures['one'] - figures['both']:.4f} [{low:.4f}, {high:.4f}], expected {figures['expected']:.4f}"
    )
    print(
        f"  {'log loss at':12}"
        + "".join(f"{share:>8.0%}" for share in SHARES)
        + f"   kept at {GOAL:.0%}: expected, votes"
    )
    for way, points in figures["choices"].items():
        at = points[SHARES.index(GOAL)]
        losses = "".join(f"{point['log_loss']:8.4f}" for point in points)
        expected, votes = (
            f"{at[f'kept_{kind}']:.0%} [{at[f'kept_{kind}_ci'][0]:.0%}, {at[f'kept_{kind}_ci'][1]:.0%}]"
            for kind in ("expected", "votes")
        )
        print(f"  {way:12}{losses}   {expected}, {votes}")


if __name__ == "__main__":
    main()
