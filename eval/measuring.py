"""All that an evaluation knows: what `metrics.json` holds, and `report.html` shows."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from core.data.arena_sim import bayes_log_loss
from core.errors import UserError
from core.records import TEST, Conversation
from core.scoring import logits_by_order
from eval.biases import find_biases, look_at
from eval.comparison import Pair, compare
from eval.config import EvalConfig
from eval.judges import Judges
from eval.leaderboard import rank_correlation, ratings
from eval.metrics import kl_rows, log_loss_rows, paired_difference, predict
from eval.seeds import STUDENT

READ = 20  # conversations of each list to read
MIN_MODELS = 3  # two have only one order
RATED = ("rating", "low", "high")  # what a judge's rating of a model tells


def measure(
    judges: Judges, held_out: Sequence[Conversation], law: pl.DataFrame | None, config: EvalConfig, seed: int
) -> dict[str, Any]:
    """What `comparison.compare` tells of all judges, and:

    - `bayes`: the entropy of the simulated law, None for real votes; its judge is then among the others
    - `gain`: by how much the student is better than the one without a teacher (`metrics.difference`), or None
    - `split`: "test" or "fold", the rows that are scored
    - `judges`, by name: also `biases` ({name: `inference.Bias`}), `failed` (checks of an export), `taught`, of how many
      of the rows its teachers, or theirs, saw the votes (0 where they are held out, None where nobody can tell), and
      `alike`, how many look the same to it in both orders (None where its prompts are not known)
    - `unanswered`: why an export that is not among them gave no answer on this machine, by name
    - `leaderboard`, None without three models: `rows`, `models` ([{`model`, `games`, `rating`, `low`, `high`, `judges`:
      {name: {`rating`, `low`, `high`}}}], by people's rating), `correlations` by judge (`leaderboard.rank_correlation`)
    - `reading`: `worst` by the student's log loss, `disagreed` by KL(`rival` || student), one conversation of a prompt:
      [{`id`, `votes`, `log_loss`, `kl`, `student` and `rival`: probabilities}]

    `law` is that of `held_out` in the same order. Raises `UserError` where `eval.own` names no judge.
    """
    ids, groups = [c.id for c in held_out], [c.group for c in held_out]
    votes = np.array([c.votes for c in held_out])
    logits: dict[str, Pair] = {name: logits_by_order(frame, ids) for name, frame in judges.predictions.items()}
    if unknown := set(config.own) - set(logits):
        raise UserError(f"eval.own names {sorted(unknown)}, but the judges are {', '.join(logits)}")
    if law is not None:
        truth = np.log(law["probabilities"].to_numpy())
        logits["bayes"] = (truth, truth)
    found = compare(
        logits,
        votes,
        groups,
        teacher="teacher" if "teacher" in logits else None,
        reference="bradley_terry" if "bradley_terry" in logits else None,
        student=STUDENT,
        draws=config.bootstrap,
        bins=config.ece_bins,
        seed=seed,
        recalibrations=judges.recalibrations,
    )
    looks = look_at(held_out)
    for name, pair in logits.items():
        shortened = None if name not in judges.predictions else _truncated(judges.predictions[name], ids)
        own = config.own.get(name)
        biases = find_biases(held_out, *pair, level=config.bias_level, own=own, truncated=shortened, looks=looks)
        found["judges"][name]["biases"] = {bias.name: asdict(bias) for bias in biases}
        found["judges"][name]["failed"] = judges.failed.get(name, [])
        found["judges"][name]["taught"] = 0 if name == "bayes" else judges.taught[name]
        found["judges"][name]["alike"] = judges.alike.get(name)
    probabilities = {name: predict(*pair) for name, pair in logits.items()}
    return {
        **found,
        "unanswered": judges.unanswered,
        "split": "test" if held_out[0].fold == TEST else "fold",
        "bayes": None if law is None else bayes_log_loss(law),
        "gain": _gain(probabilities, votes, groups, config.bootstrap, seed),
        "leaderboard": _leaderboard(held_out, votes, probabilities, config.bootstrap, seed),
        "reading": _reading(ids, groups, votes, probabilities),
    }


def _truncated(frame: pl.DataFrame, ids: Sequence[str]) -> np.ndarray | None:
    """Whether a judge's prompt was cut in either order: bool [ids]; None where it has no prompt, or does not tell."""
    if "truncated" not in frame.columns or frame["truncated"].null_count():
        return None
    cut = frame.group_by("id").agg(pl.col("truncated").any())
    return pl.DataFrame({"id": ids}).join(cut, on="id", how="left", maintain_order="left")["truncated"].to_numpy()


def _gain(
    probabilities: Mapping[str, np.ndarray], votes: np.ndarray, groups: Sequence[str], draws: int, seed: int
) -> dict[str, Any] | None:
    if "student_no_teacher" not in probabilities:
        return None
    without, student = (log_loss_rows(probabilities[name], votes) for name in ("student_no_teacher", STUDENT))
    return paired_difference(without, student, groups, draws, seed)


def _leaderboard(
    conversations: Sequence[Conversation],
    votes: np.ndarray,
    probabilities: Mapping[str, np.ndarray],
    draws: int,
    seed: int,
) -> dict[str, Any] | None:
    """People's ratings of the models, and what each judge would make of them on the same games."""
    named = np.array([c.model_a is not None and c.model_b is not None for c in conversations])
    games = pl.DataFrame(
        [(c.model_a, c.model_b, c.group) for c, whole in zip(conversations, named, strict=True) if whole],
        schema={"model_a": pl.String, "model_b": pl.String, "group": pl.String},
        orient="row",
    )
    models = pl.concat([games["model_a"], games["model_b"]]).n_unique()
    if models < MIN_MODELS or games["group"].n_unique() < 2:
        return None
    people = ratings(games, votes[named], draws=draws, seed=seed)
    rated = {judge: ratings(games, of[named], draws=draws, seed=seed) for judge, of in probabilities.items()}
    judged = {
        judge: of.table().select("model", *RATED).rows_by_key("model", named=True, unique=True)
        for judge, of in rated.items()
    }
    return {
        "rows": len(games),
        "models": [
            {**row, "judges": {judge: of[row["model"]] for judge, of in judged.items()}}
            for row in people.table().to_dicts()
        ],
        "correlations": {judge: rank_correlation(of, people) for judge, of in rated.items()},
    }


def _reading(
    ids: Sequence[str], groups: Sequence[str], votes: np.ndarray, probabilities: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Where the student lost most, and where it is farthest from its teacher, or without one from `surface`."""
    rival = "teacher" if "teacher" in probabilities else "surface"
    student, other = probabilities[STUDENT], probabilities[rival]
    losses, distances = log_loss_rows(student, votes), kl_rows(other, student)

    def rows(by: np.ndarray) -> list[dict[str, Any]]:
        order = np.argsort(-by, kind="stable")
        first = order[np.sort(np.unique(np.array(groups)[order], return_index=True)[1])]
        return [
            {
                "id": ids[i],
                "votes": votes[i].tolist(),
                "log_loss": float(losses[i]),
                "kl": float(distances[i]),
                "student": student[i].tolist(),
                "rival": other[i].tolist(),
            }
            for i in first[:READ]
        ]

    return {"rival": rival, "worst": rows(losses), "disagreed": rows(distances)}
