"""What it is worth to ask a second judge, or the same one in the other order, where that is expected to gain most.

    python -m studies.cascade    # simulated judges, a minute
    python -m studies.cascade --data artifacts/data/human_pandalm artifacts/eval/human artifacts/logits/human_teacher

Simulated judges of given skill read conversations of the simulated arena: each sees the true difference in utility with
noise, more of it on hard conversations, and trusts what it sees by some share. Their loss is expected under the true
distribution, which the oracle knows. Costs go with the words of a conversation; a large judge's are four times a small
one's, another order costs what the first did. For each budget, a share of what the second opinion would cost on all:
the log loss as `distill.predict` chooses (`eval.cascades.curve`, the report's own), by chance, and by the oracle.

With `--data` (the prepared conversations, for their votes) each folder is an evaluation (`predictions.parquet`) or a
store of soft logits, whose in-sample rows are left out. Its judges' second orders are curves on votes; the pairs of an
evaluation are in its report. "kept" is the share of the gain of second orders of all rows that remains with those of
40%, where rows cost alike: expected (KL(mean || one order), far less noisy) and on votes, by how they are chosen.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.special import softmax
from scipy.stats import t

from core.data.arena_sim import NOISE, POSITION, TIE, simulate
from core.data.config import SimulateConfig
from core.data.table import load_conversations
from core.records import ORDERS
from core.scoring import logits_by_order, mean_logits
from core.store.reading import read_logits
from core.tables import read_parquet
from eval.bootstrap import Resampling, bootstrap_means, interval
from eval.cascades import PILOT, Point, chosen, curve
from eval.metrics import log_loss_rows
from eval.second_opinions import Opinions, expected_gain, margin

RESAMPLING = Resampling(draws=1000, seed=0)
DEAR = 4  # times what the small judge costs
SPREAD = 0.6  # of the logarithm of how hard a conversation is
GOAL = 0.4  # the share of second orders that "kept" is of


@dataclass(frozen=True)
class Reader:
    """A simulated judge. `noise`: of what it sees in a conversation, `sway`: of each order alone; `trust`: the share of
    what it sees that it believes."""

    noise: float
    sway: float
    trust: float


@dataclass(frozen=True)
class Run:
    """A curve, and the log loss of the mean of both opinions' logits on all rows."""

    points: Sequence[Point]
    mean: float


SWAYED = Reader(noise=1.0, sway=2.0, trust=0.6)
STRONG = Reader(noise=0.5, sway=0.1, trust=0.95)
# Name -> small judge, large judge, how alike their errors are.
PAIRS = {
    "a student that hesitates where it errs": (Reader(2.0, 0.4, 0.55), STRONG, 0.0),
    "an overconfident student": (Reader(2.0, 0.4, 1.0), STRONG, 0.0),
    "a student that shares its teacher's errors": (Reader(2.0, 0.4, 0.55), Reader(0.8, 0.2, 0.9), 0.5),
    "a student that the order sways": (SWAYED, Reader(0.8, 0.2, 0.9), 0.0),
    "two judges that are nearly alike": (Reader(1.0, 0.3, 0.8), Reader(0.8, 0.2, 0.85), 0.3),
    "a second judge that is worse": (Reader(0.8, 0.2, 0.9), Reader(2.0, 0.4, 0.55), 0.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--conversations", type=int, default=4000)
    parser.add_argument("--data", type=Path, help="the prepared conversations, for their votes")
    parser.add_argument("folders", type=Path, nargs="*", help="evaluations and stores of soft logits")
    arguments = parser.parse_args()
    if arguments.data:
        measured(arguments.data, arguments.folders)
    else:
        simulated(arguments.files, arguments.conversations)


def simulated(files: int, count: int) -> None:
    """The curves of simulated judges, means over `files` of `count` conversations, each with judges of its own."""
    found: dict[str, list[Run]] = {}
    for seed in range(files):
        conversations, law = simulate(SimulateConfig(count, seed=seed))
        words = [len(" ".join([*c.prompt, *c.response_a, *c.response_b]).split()) for c in conversations]
        prompts = [c.prompt[0] for c in conversations]
        for name, run in runs(law["probabilities"].to_numpy(), np.array(words, float), prompts, seed):
            found.setdefault(name, []).append(run)
    print(f"{files} files of {count} conversations each; better than chance by: 95% intervals over files")
    for name, of in found.items():
        show(name, of)


def runs(truth: np.ndarray, words: np.ndarray, prompts: list[str], seed: int) -> Iterator[tuple[str, "Run"]]:
    """Each pair of judges on one file whose true distribution is `truth`."""
    difference = np.log((truth[:, 0] - NOISE / 3) / (truth[:, 1] - NOISE / 3)) - POSITION
    rng = np.random.default_rng(seed)
    hardness, own, common = np.exp(rng.normal(0, SPREAD, len(truth))), *rng.normal(size=(2, len(truth)))

    def run(first: Opinions, second: np.ndarray, times: float) -> Run:
        mean = log_loss_rows(softmax((first.logits + second) / 2, axis=1), truth).mean()
        return Run(curve(first, second, (words, times * words), truth, prompts, RESAMPLING), float(mean))

    for name, (small, large, alike) in PAIRS.items():
        errors = np.sqrt(1 - alike**2) * own + alike * common
        first = opinions(small, difference, hardness * errors, words, rng)
        second = opinions(large, difference, hardness * common, words, rng)
        yield name, run(first, second.logits, DEAR)
    both = opinions(SWAYED, difference, hardness * own, words, rng)
    yield "the other order of a student that the order sways", run(replace(both, ba=both.ab), both.logits, 1)


def opinions(
    reader: Reader, difference: np.ndarray, errors: np.ndarray, words: np.ndarray, rng: np.random.Generator
) -> Opinions:
    """What a simulated judge says; `errors` [n] of what it sees have variance 1 where conversations are easy."""
    sides = []
    for sign in (1, -1):
        seen = difference + reader.noise * errors + reader.sway * rng.normal(size=len(difference))
        shown = reader.trust * seen + sign * POSITION
        weights = softmax(np.stack([shown / 2, -shown / 2, np.full(len(shown), TIE)], axis=1), axis=1)
        sides.append(np.log((1 - NOISE) * weights + NOISE / 3))
    return Opinions(sides[0], sides[1], words)


def measured(data: Path, folders: Sequence[Path]) -> None:
    """The curves of second orders of judges that were asked."""
    voted = {c.id: c for c in load_conversations(data) if c.votes}
    for name, scores in (judge for folder in folders for judge in read_judges(folder)):
        ids = [i for i in scores["id"].unique(maintain_order=True) if i in voted]
        ab, ba = logits_by_order(scores, ids)
        if np.array_equal(ab, ba):
            continue  # a judge that never sees an order
        votes, groups = np.array([voted[i].votes for i in ids]), [voted[i].group for i in ids]
        tokens = [by_id(scores.filter(pl.col("order") == order), ids) for order in ORDERS]
        first, both = Opinions(ab, ab, tokens[0]), (ab.astype(float) + ba) / 2
        mean = log_loss_rows(softmax((first.logits + both) / 2, axis=1), votes).mean()
        run = Run(curve(first, both, (tokens[0], tokens[1]), votes, groups, RESAMPLING), float(mean))
        show(f"{name}, second orders of {len(ids)} conversations", [run])
        print(json.dumps(kept(first, both, votes, groups)))


def read_judges(folder: Path) -> Iterator[tuple[str, pl.DataFrame]]:
    """Name and scores (id, order, logits, prompt_tokens) of every judge in `folder` that has read prompts."""
    if (folder / "predictions.parquet").exists():
        rows = read_parquet(folder / "predictions.parquet").drop_nulls("prompt_tokens")
        for (name,), scores in rows.partition_by("judge", as_dict=True, maintain_order=True).items():
            yield f"{folder.name}: {name}", scores
    else:
        rows = read_logits(folder, "score it first").filter(~pl.col("in_sample"))
        tokens = pl.col("prompt_tokens").first()
        yield folder.name, rows.group_by("id", "order", maintain_order=True).agg(mean_logits(), tokens)


def by_id(scores: pl.DataFrame, ids: Sequence[str]) -> np.ndarray:
    """The tokens of each prompt, in the order of `ids`."""
    found = pl.DataFrame({"id": ids}).join(scores, on="id", how="left", maintain_order="left")
    return found["prompt_tokens"].cast(pl.Float64).to_numpy()


def kept(first: Opinions, second: np.ndarray, votes: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """What is kept of the gain of second orders, expected and on votes, where `GOAL` of the rows get one."""
    even = Opinions(first.ab, first.ba, np.ones(len(votes)))
    probabilities = softmax(first.logits, axis=1)
    before, after = log_loss_rows(probabilities, votes), log_loss_rows(softmax(second, axis=1), votes)
    expected, quota = expected_gain(first.logits, second), round(GOAL * len(votes))
    ways = {
        "pilot": chosen(even, second, GOAL, PILOT),
        "least sure": np.argsort(margin(first.logits), kind="stable"),
        "surest": np.argsort(-margin(first.logits), kind="stable"),
        "entropy": np.argsort((probabilities * np.log(probabilities)).sum(axis=1), kind="stable"),
        "expected gain itself": np.argsort(-expected, kind="stable"),
    }
    found = {}
    for way, order in ways.items():
        asked = np.isin(np.arange(len(votes)), order[:quota])
        columns = np.stack([(before - after) * asked, before - after, expected * asked, expected], axis=1)
        draws = bootstrap_means(columns, groups, RESAMPLING.draws, RESAMPLING.seed)
        means = columns.mean(axis=0)
        found[way] = {
            "expected": told(means[2] / means[3], draws[:, 2] / draws[:, 3]),
            "votes": told(means[0] / means[1], draws[:, 0] / draws[:, 1]),
        }
    return found


def told(value: float, draws: np.ndarray) -> str:
    low, high = interval(draws)
    return f"{value:.0%} [{low:.0%}, {high:.0%}]"


def show(name: str, of: Sequence[Run]) -> None:
    """Print the mean of some runs' curves; intervals are those of a single run, or Student's t over several."""
    points = [run.points for run in of]
    small, large, mean = (np.mean(values) for values in zip(*map(ends, of), strict=True))
    print(f"\n{name}: log loss {small:.4f} alone, {large:.4f} with all second opinions; mean of both {mean:.4f}")
    print(f"  {'budget':>6} {'asked':>6} {'log loss':>8} {'chance':>7} {'oracle':>7}  better than chance by")
    for same in list(zip(*points, strict=True))[1:-1]:
        share, asked, loss, chance, oracle = (
            np.mean([getattr(point, field) for point in same])
            for field in ("share", "asked", "log_loss", "random", "oracle")
        )
        ahead = np.array([point.over_random.difference for point in same])
        low, high = same[0].over_random.ci
        if len(same) > 1:
            reach = t.ppf(0.975, len(ahead) - 1) * ahead.std(ddof=1) / len(ahead) ** 0.5
            low, high = ahead.mean() - reach, ahead.mean() + reach
        print(
            f"  {share:6.0%} {asked:6.0%} {loss:8.4f} {chance:7.4f} {oracle:7.4f}"
            f"  {ahead.mean():+.4f} ({low:+.4f} to {high:+.4f})"
        )


def ends(run: Run) -> tuple[float, float, float]:
    """The log loss of the first judge alone, of the second on all, and of the mean of both judges' logits."""
    return run.points[0].log_loss, run.points[-1].log_loss, run.mean


if __name__ == "__main__":
    main()
