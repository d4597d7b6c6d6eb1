"""What a student knows of rows that it never saw, through teachers that did: nothing, on the locked test split.

Judges here are linear in what they are shown (rewards of responses, through the real fits, store and targets), so a
thousand of them are trained in seconds, and the law of the votes is known.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.special import log_softmax, softmax

from core.artefacts.building import Artefact
from core.artefacts.contents import content_hash
from core.data.folds import assign_folds
from core.data.groups import assign_groups
from core.data.table import CONVERSATIONS, from_frame, to_frame
from core.provenance import Learned
from core.records import LABELS, TEST, Conversation
from core.store.parts import NO_FOLD
from core.store.rows import REWARDS
from core.store.targets import soft_targets
from core.store.writing import StoreWriter
from students.training.data import split
from teachers.bradley_terry import BradleyTerry, cross_fit, fit_bradley_terry
from teachers.reward_logits import write_fitted
from tests.composing import configured

FOLDS = configured("data.folds.count=5").data.folds
RUNS, ROWS, OBJECTIVES = 40, 600, 40
TIE = -0.5
Law = Callable[[Conversation, np.ndarray], np.ndarray]  # of a row with its differences of rewards: three probabilities


def split_rows(count: int) -> list[Conversation]:
    """Conversations of so many prompts in five folds and a test split, without votes yet."""
    rows = [Conversation(str(i), [f"prompt {i}"], [f"a {i}"], [f"b {i}"], votes=[1.0, 0.0, 0.0]) for i in range(count)]
    return from_frame(assign_folds(assign_groups(to_frame(rows), None), FOLDS, test_share=0.3))


def rewards_of(rows: list[Conversation], values: np.ndarray) -> pl.DataFrame:
    """A table of rewards, `values` [rows, 2 responses, objectives], as the store has them."""
    told = [
        (c.id, response, pair[k].tolist(), 1, False, NO_FOLD, c.sided_fingerprint())
        for c, pair in zip(rows, values, strict=True)
        for k, response in enumerate("ab")
    ]
    return pl.DataFrame(told, schema=REWARDS, orient="row")


def distilled(
    rows: list[Conversation], differences: np.ndarray, targets: dict[str, list[float]], l2: float
) -> BradleyTerry:
    """A linear student that holds out fold 0 and learns from soft targets alone."""
    training = {c.id for c in split(rows, 0, 0.05)[0]}
    here = np.array([c.id in training for c in rows])
    return fit_bradley_terry(differences[here], softmax([targets[c.id] for c in rows if c.id in training], axis=1), l2)


def mean_loss(student: BradleyTerry, differences: np.ndarray, shares: np.ndarray) -> float:
    return float(-(shares * log_softmax(student.logits(differences), axis=1)).sum(axis=1).mean())


def test_linear_judges_are_as_good_on_the_test_split_as_it_says() -> None:
    """Optimism: by how much the log loss on the votes there are is below what the law of the votes lets one expect."""
    rng = np.random.default_rng(0)
    optimism: dict[str, list[float]] = {"test": [], "fold": []}
    for _ in range(RUNS):
        rows = split_rows(ROWS)
        rewards = rng.normal(size=(ROWS, 2, OBJECTIVES)).astype(np.float32)
        differences = (rewards[:, 0] - rewards[:, 1]).astype(float)
        law = softmax(BradleyTerry(rng.normal(size=OBJECTIVES) * 0.3, TIE).logits(differences), axis=1)
        votes = np.eye(len(LABELS))[[rng.choice(len(LABELS), p=p) for p in law]]
        rows = [replace(c, votes=vote.tolist()) for c, vote in zip(rows, votes, strict=True)]
        taught = cross_fit(rewards_of(rows, rewards), rows, l2=0.01)
        student = distilled(rows, differences, dict(taught.select("id", "logits").iter_rows()), l2=0.01)
        for name, fold in (("test", TEST), ("fold", 0)):
            here = np.array([c.fold == fold for c in rows])
            surprise = -(np.log(law[here]) * (votes - law)[here]).sum(axis=1).mean()  # the luck of these votes
            measured, expected = (mean_loss(student, differences[here], of[here]) for of in (votes, law))
            optimism[name].append(expected + surprise - measured)
    assert abs(np.mean(optimism["test"])) < 0.01
    assert np.mean(optimism["fold"]) > 0.05, "the leak that the test split is there for has gone: so may this test"


@pytest.mark.parametrize(("fold", "knows"), [(TEST, False), (0, True)])
def test_a_law_that_some_rows_alone_follow_reaches_nobody_from_the_test_split(
    fold: int, knows: bool, tmp_path: Path
) -> None:
    """Votes of one fold follow the last reward, all others the first. The student of fold 0 has seen neither fold's."""
    rng = np.random.default_rng(1)
    config = configured("+exp=smoke", f"paths.root={tmp_path}", "data.name=secret", "teacher.reward_l2=0.01")
    rows = split_rows(1000)
    rewards = rng.normal(size=(len(rows), 2, 3)).astype(np.float32)
    differences = (rewards[:, 0] - rewards[:, 1]).astype(float)
    told = np.array([np.array([0, 0, 4.0]) if c.fold == fold else np.array([4.0, 0, 0]) for c in rows])
    law = softmax(BradleyTerry(np.ones(3), TIE).logits(told * differences), axis=1)
    rows = [
        replace(c, votes=np.eye(len(LABELS))[rng.choice(len(LABELS), p=p)].tolist())
        for c, p in zip(rows, law, strict=True)
    ]
    data, raw, store = tmp_path / "data/secret", tmp_path / "rewards/linear", tmp_path / "logits/linear"
    data.mkdir(parents=True)
    to_frame(rows).write_parquet(data / CONVERSATIONS)
    Artefact(data, "prepare", {}, [], tmp_path).finish()
    with StoreWriter(raw, {}, "linear", schema=REWARDS) as writer:
        writer.append(rewards_of(rows, rewards))
    artefact = Artefact(store, "teacher", {"rewards": content_hash(raw)}, [data], tmp_path)
    write_fitted(artefact, raw, rows, config.teacher.reward_l2, Learned(), {"template": "t", "prompt": "p"})

    training, _ = split(rows, 0, 0.05)
    targets = soft_targets(store, training, 0, "out_of_fold", None)
    student = distilled(rows, differences, targets.logits, l2=0.01)
    secret = [c.fingerprint() for c in rows if c.fold == fold]
    assert set(targets.logits) == {c.id for c in training}
    assert bool(abs(student.weights[2]) > 0.2) is knows, student.weights
    assert (targets.learned.through_teachers >= set(secret)) is knows
    assert bool(targets.learned.through_teachers & set(secret)) is knows
