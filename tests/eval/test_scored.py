"""Which rows an evaluation needs, and what stands for their votes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.special import softmax

from core.artefacts.building import Artefact
from core.data.arena_sim import simulate
from core.data.config import SimulateConfig
from core.errors import UserError
from core.labels import WITHOUT_TIES
from core.provenance import Learned
from core.records import ORDERS, TEST, Conversation
from core.store.rows import LOGITS
from core.store.seen import write_seen
from core.store.targets import soft_targets
from core.store.writing import StoreWriter
from eval.judges.panel import ask_all
from eval.scored import as_voted_by, scored_and_training

ROWS = 12


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    """Four of the test split, of which nobody voted on one, and four of each of two folds."""
    drawn = simulate(SimulateConfig(ROWS, seed=5))[0]
    rows = [replace(c, fold=(TEST, 0, 1)[i % 3]) for i, c in enumerate(drawn)]
    return [replace(c, votes=None) if i == 0 else c for i, c in enumerate(rows)]


def store_of(folder: Path, conversations: list[Conversation], in_sample: tuple[str, ...] = ()) -> Path:
    """A finished store of two judges, each of other logits in each order; the second was trained on some rows."""
    random = np.random.default_rng(len(conversations))
    for fold in (0, 1):
        rows = [
            {
                **{"id": c.id, "order": order, "logits": (3 * random.normal(size=3)).tolist()},
                **{"prompt_tokens": 1, "truncated": False, "judge_fold": fold},
                **{"in_sample": fold == 1 and c.id in in_sample, "fingerprint": c.sided_fingerprint()},
            }
            for c in conversations
            for order in ORDERS
        ]
        with StoreWriter(folder, {}, f"judge {fold}", fold) as writer:
            writer.append(pl.DataFrame(rows, schema=LOGITS))
        seen = [c.fingerprint() for c in conversations if fold == 1 and c.id in in_sample]
        write_seen(folder, fold, Learned(frozenset(seen)))
    Artefact(folder, "teacher", {}, [], folder.parent).finish()
    return folder


@pytest.mark.parametrize("labels", [("a", "b", "tie"), WITHOUT_TIES])
def test_the_teacher_s_verdict_is_what_students_are_taught(
    conversations: list[Conversation], labels: tuple[str, ...], tmp_path: Path
) -> None:
    store = store_of(tmp_path / "store", conversations, in_sample=tuple(c.id for c in conversations[2:4]))
    scored, training = as_voted_by(store, conversations[:6], conversations[6:], labels)
    assert [c.id for c in (*scored, *training)] == [c.id for c in conversations]
    taught = soft_targets(store, conversations, 0, "out_of_fold", None, labels).logits
    for c in (*scored, *training):
        expected = softmax(np.array(taught[c.id], dtype=float)[: len(labels)])
        assert c.votes is not None and np.abs(np.array(c.votes)[: len(labels)] - expected).max() < 1e-6
        assert sum(c.votes) == pytest.approx(1) and len(c.votes) == 3


def test_only_what_is_scored_has_to_be_covered(conversations: list[Conversation], tmp_path: Path) -> None:
    split, scored, training = scored_and_training(conversations, "test", 0, 3, unvoted=True)
    assert (split, len(scored), len(training)) == ("test", 3, 8) and scored[0].votes is None
    store = store_of(tmp_path / "store", [*scored, *training[2:]])
    told, taught = as_voted_by(store, scored, training)
    assert all(c.votes for c in told) and [c.votes is None for c in taught] == [True] * 2 + [False] * 6
    lacking = store_of(tmp_path / "lacking", [*scored[1:], *training])
    message = rf"lacks 1 of the 3 conversations that are scored, such as \['{scored[0].id}'\]"
    with pytest.raises(UserError, match=message):
        as_voted_by(lacking, scored, training)


def test_without_an_opinion_on_other_rows_there_are_no_baselines(
    conversations: list[Conversation], caplog: pytest.LogCaptureFixture
) -> None:
    nobody_is_asked: Any = None
    unvoted = [replace(c, votes=None) for c in conversations[6:]]
    assert not ask_all([], conversations[1:6], unvoted, nobody_is_asked).answers
    assert "no baselines: none of the 6 other conversations has an opinion to learn from" in caplog.text
    assert ask_all([], conversations[1:6], conversations[6:], nobody_is_asked).answers.keys() >= {"prior", "surface"}


def test_by_votes_only_rows_with_votes_are_scored(conversations: list[Conversation]) -> None:
    _, scored, _ = scored_and_training(conversations, "test", 0)
    assert len(scored) == 3 and all(c.votes for c in scored)
    unvoted = [replace(c, votes=None) if c.fold == TEST else c for c in conversations]
    assert scored_and_training(unvoted, "test", 1)[0] == "fold"
    assert scored_and_training(unvoted, "test", 1, unvoted=True)[0] == "test"
    with pytest.raises(UserError, match="fold=7 of these data has no votes to evaluate on"):
        scored_and_training(conversations, "fold", 7)
