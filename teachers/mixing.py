"""Several teachers as one: each calibrated on votes it was not fitted to, then a weighted mean.

    mixture = softmax(sum_t w_t log softmax(z_t / T_t))     space: logits
    mixture =         sum_t w_t     softmax(z_t / T_t)      space: probabilities

T_t is the temperature that minimises the log loss of teacher t (Guo et al. 2017, "On calibration of modern neural
networks"), for the rows of fold k found on the votes of the other folds.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp

from distill import runs
from distill.config import Config, MixtureConfig, to_mapping
from distill.records import ORDERS, Conversation
from distill.scoring import logits_by_order, mean_logits
from distill.store import LOGITS, NO_FOLD, read_logits
from distill.targets import check_texts
from teachers.filling import open_writer

log = logging.getLogger(__name__)
LOG_TEMPERATURES = (-4.0, 4.0)


def fit_temperature(logits: np.ndarray, votes: np.ndarray) -> float:
    """T > 0 that minimises the log loss of softmax(logits / T) [n, 3] on soft votes [n, 3] (rows sum to 1)."""

    def loss(log_temperature: float) -> float:
        return float(-(votes * log_softmax(logits / np.exp(log_temperature), axis=1)).sum(1).mean())

    return float(np.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded").x))


def temperatures(logits: np.ndarray, conversations: Sequence[Conversation]) -> np.ndarray:
    """One temperature for each row of `logits` [n, 3]: fitted on the votes of the folds that the row is not in.

    Raises `ValueError` where there are no votes outside a row's fold.
    """
    folds = np.array([c.fold for c in conversations])
    voted = np.array([c.votes is not None for c in conversations])
    votes = np.array([c.votes or (0.0, 0.0, 0.0) for c in conversations], dtype=float)
    votes[voted] /= votes[voted].sum(1, keepdims=True)
    found = np.empty(len(folds))
    for fold in np.unique(folds):
        others = voted & (folds != fold)
        if not others.any():
            raise ValueError(
                f"teacher.mixture.calibrate=true: no votes outside fold {fold} to calibrate on; "
                "switch it off, or prepare the data with more folds"
            )
        found[folds == fold] = fit_temperature(logits[others], votes[others])
    return found


def mix(
    teachers: Mapping[str, pl.DataFrame], conversations: Sequence[Conversation], config: MixtureConfig
) -> tuple[np.ndarray, dict[str, list[float]]]:
    """Log-probabilities float32 [n, 2 orders, 3] of the mixture, and each teacher's temperatures by fold.

    `teachers` holds out-of-fold logits with one row for each id and order. Raises `ValueError` naming the teacher and
    ids where it does not cover all conversations.
    """
    ids = [c.id for c in conversations]
    folds = np.array([c.fold for c in conversations])
    parts, fitted = [], {}
    for name, weight in zip(config.teachers, shares(config), strict=True):
        try:
            orders = np.stack(logits_by_order(teachers[name], ids), axis=1).astype(float)
        except ValueError as error:
            raise ValueError(f"teacher {name!r} of the mixture: {error}") from error
        assert orders.shape == (len(ids), len(ORDERS), 3), orders.shape
        temperature = np.ones(len(ids))
        if config.calibrate:
            temperature = temperatures(orders.mean(1), conversations)
        fitted[name] = [float(temperature[folds == fold][0]) for fold in np.unique(folds)]
        logs = log_softmax(orders / temperature[:, None, None], axis=2)
        parts.append((weight, logs))
    if config.space == "logits":
        mixed = log_softmax(sum(weight * logs for weight, logs in parts), axis=2)
    else:
        mixed = logsumexp([np.log(weight) + logs for weight, logs in parts], axis=0)
    return mixed.astype(np.float32), fitted


def shares(config: MixtureConfig) -> list[float]:
    """The weights of the teachers, with sum 1. Raises `ValueError` unless each has one and it is positive."""
    weights = [1.0] * len(config.teachers) if config.weights is None else config.weights
    if not config.teachers or len(weights) != len(config.teachers) or min(weights) <= 0:
        raise ValueError(
            f"teacher.mixture.teachers={config.teachers}, weights={config.weights}: name teachers, and none or as many "
            "positive weights, as in 'teacher.mixture.teachers=[llama70b,qwen72b]' 'teacher.mixture.weights=[2,1]'"
        )
    return [weight / sum(weights) for weight in weights]


def write_mixture(config: Config, store: Path, rows: Sequence[Conversation]) -> None:
    """Mix stored teachers, each calibrated, into a store of its own."""
    shares(config.teacher.mixture)
    folders = {name: config.root / "logits" / name for name in config.teacher.mixture.teachers}
    stored = {}
    for name, folder in folders.items():
        logits = read_logits(folder, f"score with teacher {name} first").filter(~pl.col("in_sample"))
        check_texts(folder, logits, rows)
        facts = pl.col("prompt_tokens").max(), pl.col("truncated").any()
        stored[name] = logits.group_by("id", "order", maintain_order=True).agg(mean_logits(), *facts)
    parents = [config.root / "data" / config.data.name, *folders.values()]
    identity = {"mixture": to_mapping(config.teacher.mixture), "limit": config.limit}
    if runs.is_finished(store, "teacher", identity, parents, config.root):
        log.info("%s is finished", store)
        return
    shutil.rmtree(store, ignore_errors=True)
    mixed, fitted = mix(stored, rows, config.teacher.mixture)
    for name, temperatures in fitted.items():
        log.info("teacher %s: temperatures by fold %s", name, ", ".join(f"{t:.3f}" for t in temperatures))
    prompts = next(iter(stored.values())).select("id", "order", "prompt_tokens", "truncated")
    table = pl.DataFrame(
        {
            "id": [c.id for c in rows for _ in ORDERS],
            "order": [order for _ in rows for order in ORDERS],
            "logits": mixed.reshape(-1, 3),
            "fingerprint": pl.Series([c.fingerprint() for c in rows for _ in ORDERS], dtype=pl.UInt64),
        }
    ).join(prompts, on=["id", "order"], how="left", maintain_order="left")
    table = (
        table.with_columns(judge_fold=NO_FOLD, in_sample=False, outside=pl.lit(None))
        .select(LOGITS.names())
        .cast(LOGITS)
    )
    hashes = runs.read_manifest(next(iter(folders.values()))).prompt
    with open_writer(config, store, hashes, " + ".join(folders), NO_FOLD, LOGITS) as writer:
        writer.append(table)
    extra = {"temperatures": fitted}
    runs.write_manifest(
        store, "teacher", identity, parents, config.root, rows={"logits": len(table)}, prompt=hashes, extra=extra
    )
    log.info("%s: %d rows", store, len(table))
