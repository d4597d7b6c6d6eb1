"""Several teachers as one: each scaled by a temperature that suits votes of other folds, then a weighted mean.

    mixture = softmax(sum_t w_t log softmax(z_t / T_t))     space: logits
    mixture =         sum_t w_t     softmax(z_t / T_t)      space: probabilities

T_t is the temperature that minimises the log loss of teacher t (Guo et al. 2017, "On calibration of modern neural
networks"), for the rows of fold k found on the votes of the other folds, and never on those of the test split.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp

from core.artefacts.building import Artefact
from core.artefacts.manifest import read_manifest
from core.errors import UserError
from core.labels import NO_TIE, Labels, check_knows, labels_in, with_tie
from core.provenance import Learned, union
from core.records import LABELS, ORDERS, TEST, Conversation
from core.scoring import logits_by_order, mean_logits
from core.store.parts import NO_FOLD
from core.store.reading import read_logits
from core.store.seen import learned_by_judges
from core.store.targets import check_texts
from teachers.config import MixtureConfig
from teachers.derived import write_derived

log = logging.getLogger(__name__)
LOG_TEMPERATURES = (-4.0, 4.0)


@dataclass(frozen=True)
class Mixing:
    """Which teachers are mixed, and how (`MixtureConfig`); `temperature_scaling`: each is scaled before."""

    teachers: list[str]
    weights: list[float] | None
    space: str
    temperature_scaling: bool

    @classmethod
    def of(cls, config: MixtureConfig, scaling: bool | None) -> "Mixing":
        """As configured; without a word on `scaling` teachers are scaled."""
        return cls(config.teachers, config.weights, config.space, scaling is not False)


def fit_temperature(logits: np.ndarray, votes: np.ndarray) -> float:
    """T > 0 that minimises the log loss of softmax(logits / T) [n, labels] on soft votes (rows sum to 1)."""

    def loss(log_temperature: float) -> float:
        return float(-(votes * log_softmax(logits / np.exp(log_temperature), axis=1)).sum(1).mean())

    return float(np.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded").x))


def temperatures(logits: np.ndarray, conversations: Sequence[Conversation]) -> np.ndarray:
    """One temperature for each row of `logits` [n, labels]: fitted on the votes of the folds that the row is not in.

    Votes of the test split fit none. Raises `UserError` where there are no votes outside a row's fold.
    """
    folds = np.array([c.fold for c in conversations])
    voted = np.array([c.votes is not None for c in conversations])
    votes = np.array([(c.votes or (0.0, 0.0, 0.0))[: logits.shape[1]] for c in conversations], dtype=float)
    votes[voted] /= votes[voted].sum(1, keepdims=True)
    found = np.empty(len(folds))
    for fold in np.unique(folds):
        others = voted & (folds != fold) & (folds != TEST)
        if not others.any():
            raise UserError(
                f"temperature_scaling=true: no votes outside fold {fold} to fit a temperature to; "
                "switch it off, or prepare the data with more folds"
            )
        found[folds == fold] = fit_temperature(logits[others], votes[others])
    return found


def mix(
    teachers: Mapping[str, pl.DataFrame],
    conversations: Sequence[Conversation],
    config: Mixing,
    labels: Labels = LABELS,
) -> tuple[np.ndarray, dict[str, list[float]]]:
    """Log-probabilities float32 [n, 2 orders, 3] of the mixture, and each teacher's temperatures by fold.

    Where `labels` have no tie, those of a and b are mixed as if there were none, and a tie has `NO_TIE`.

    `teachers` holds out-of-fold logits with one row for each id and order. Raises `UserError` naming the teacher and
    ids where it does not cover all conversations.
    """
    ids = [c.id for c in conversations]
    folds = np.array([c.fold for c in conversations])
    parts, fitted = [], {}
    for name, weight in zip(config.teachers, shares(config), strict=True):
        try:
            orders = np.stack(logits_by_order(teachers[name], ids, labels), axis=1).astype(float)
        except UserError as error:
            raise UserError(f"teacher {name!r} of the mixture: {error}") from error
        assert orders.shape == (len(ids), len(ORDERS), len(labels)), orders.shape
        temperature = np.ones(len(ids))
        if config.temperature_scaling:
            temperature = temperatures(orders.mean(1), conversations)
        fitted[name] = [float(temperature[folds == fold][0]) for fold in np.unique(folds)]
        logs = log_softmax(orders / temperature[:, None, None], axis=2)
        parts.append((weight, logs))
    if config.space == "logits":
        mixed = log_softmax(sum(weight * logs for weight, logs in parts), axis=2)
    else:
        mixed = logsumexp([np.log(weight) + logs for weight, logs in parts], axis=0)
    return with_tie(mixed, NO_TIE).astype(np.float32), fitted


def shares(config: Mixing) -> list[float]:
    """The weights of the teachers, with sum 1. Raises `UserError` unless each has one."""
    weights = [1.0] * len(config.teachers) if config.weights is None else config.weights
    if not config.teachers or len(weights) != len(config.teachers):
        raise UserError(
            f"teacher.mixture.teachers={config.teachers}, weights={config.weights}: name teachers, and none or as many "
            "weights, as in 'teacher.mixture.teachers=[llama70b,qwen72b]' 'teacher.mixture.weights=[2,1]'"
        )
    return [weight / sum(weights) for weight in weights]


@dataclass(frozen=True)
class Mixed:
    """Rows of a mixture as a store holds them, what the judge of each fold learned from, and what was fitted."""

    logits: pl.DataFrame
    seen: dict[int, Learned]
    temperatures: dict[str, list[float]]


def write_mixture(
    artefact: Artefact,
    folders: Mapping[str, Path],
    rows: Sequence[Conversation],
    labels: Labels,
    config: Mixing,
    *,
    in_fold: bool,
) -> None:
    """Mix the stores of teachers, in `folders` by name, into a store of its own; people voted for `labels`.

    With `in_fold` the teachers of one fold are mixed with each other, fold by fold, on all rows.
    """
    shares(config)
    if in_fold and config.temperature_scaling:
        raise UserError(
            "teacher.rows=in_fold with teacher.temperature_scaling=true: a temperature fitted to rows that "
            "the teacher was trained on says nothing; set teacher.temperature_scaling=false"
        )
    stored = {}
    for name, folder in folders.items():
        logits = read_logits(folder, f"score with teacher {name} first")
        check_texts(folder, logits, rows)
        check_knows(folder, labels_in(folder), labels)
        stored[name] = logits if in_fold else logits.filter(~pl.col("in_sample"))
    if artefact.is_finished():
        log.info("%s is finished", artefact.folder)
        return
    mixed = (fold_by_fold if in_fold else across_folds)(stored, folders, rows, config, labels)
    hashes = read_manifest(next(iter(folders.values()))).prompt
    extra = {"temperatures": mixed.temperatures}
    write_derived(artefact, mixed.logits, mixed.seen, hashes, " + ".join(folders), labels, extra)


def fold_by_fold(
    stored: Mapping[str, pl.DataFrame],
    folders: Mapping[str, Path],
    rows: Sequence[Conversation],
    config: Mixing,
    labels: Labels,
) -> Mixed:
    """What the judges of each fold said of all rows, mixed with each other."""
    folds = sorted({fold for logits in stored.values() for fold in logits["judge_fold"].unique()})
    tables = []
    for fold in folds:
        of_fold = {name: logits.filter(judge_fold=fold) for name, logits in stored.items()}
        tables.append(mixed_table(of_fold, rows, config, labels)[0].with_columns(judge_fold=fold))
    seen = {fold: union(learned_by_judges(folder, [fold]) for folder in folders.values()) for fold in folds}
    return Mixed(pl.concat(tables), seen, {})


def across_folds(
    stored: Mapping[str, pl.DataFrame],
    folders: Mapping[str, Path],
    rows: Sequence[Conversation],
    config: Mixing,
    labels: Labels,
) -> Mixed:
    """What the teachers said of rows that they did not learn from, with the temperatures that suit other folds."""
    table, temperatures = mixed_table(stored, rows, config, labels)
    judges = judges_of(rows)
    table = table.with_columns(judge_fold=pl.col("id").replace_strict(judges, return_dtype=pl.Int32))
    fitted = [c for c in rows if c.votes and c.fold != TEST] if config.temperature_scaling else []
    seen = {}
    for fold in sorted({*judges.values()}):
        others = [c for c in fitted if judges[c.id] != fold]  # the temperatures are fitted to what was said of them
        told = [key for key, of in judges.items() if of == fold] + [c.id for c in others]
        seen[fold] = behind(told, stored, folders) | Learned.of(others)
    for name, values in temperatures.items():
        log.info("teacher %s: temperatures by fold %s", name, ", ".join(f"{t:.3f}" for t in values))
    return Mixed(table, seen, temperatures)


def judges_of(conversations: Sequence[Conversation]) -> dict[str, int]:
    """id -> the judge of an out-of-fold mixture: all rows of one are mixed of what the same judges said.

    What fold k holds of texts with votes is judged by those that hold out k. The test split, and texts that nobody
    voted on, by all.
    """
    voted = {c.fingerprint() for c in conversations if c.votes}
    return {c.id: c.fold if c.fold != TEST and c.fingerprint() in voted else NO_FOLD for c in conversations}


def behind(ids: Sequence[str], stored: Mapping[str, pl.DataFrame], folders: Mapping[str, Path]) -> Learned:
    """What a mixture learned from where these rows made it: its teachers are the judges that scored them."""
    asked = {
        name: logits.filter(pl.col("id").is_in(ids))["judge_fold"].unique().to_list() for name, logits in stored.items()
    }
    return union(learned_by_judges(folders[name], judges) for name, judges in asked.items()).taught()


def mixed_table(
    teachers: Mapping[str, pl.DataFrame], rows: Sequence[Conversation], config: Mixing, labels: Labels
) -> tuple[pl.DataFrame, dict[str, list[float]]]:
    """The mixture of logits that one judge of each teacher gave, as a store holds it, and the temperatures by fold."""
    facts = pl.col("prompt_tokens").max(), pl.col("truncated", "in_sample").any()
    one_each = {
        name: logits.group_by("id", "order", maintain_order=True).agg(mean_logits(), *facts)
        for name, logits in teachers.items()
    }
    mixed, fitted = mix(one_each, rows, config, labels)
    table = pl.DataFrame(
        {
            "id": [c.id for c in rows for _ in ORDERS],
            "order": [order for _ in rows for order in ORDERS],
            "logits": mixed.reshape(-1, 3),
            "fingerprint": pl.Series([c.sided_fingerprint() for c in rows for _ in ORDERS], dtype=pl.UInt64),
        }
    )
    told = pl.concat([t.select("id", "order", "prompt_tokens", "truncated", "in_sample") for t in one_each.values()])
    told = told.group_by("id", "order").agg(pl.col("prompt_tokens").max(), pl.col("truncated", "in_sample").any())
    table = table.join(told, on=["id", "order"], how="left", maintain_order="left")
    return table.with_columns(outside=pl.lit(None)), fitted
