"""What a teacher says of a benchmark: its store holds the prepared conversations alone, so its models are asked."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from core.records import Conversation
from core.scoring import SCORES, mean_logits
from eval.judges.answers import Answers, Unfit, count_alike
from eval.judges.predictions import predictions
from teachers.config import TeacherConfig
from teachers.judgements import TeacherModel
from teachers.scorers.config import ScorerConfig


def ask_teacher(
    models: Sequence[TeacherModel],
    teacher: TeacherConfig,
    scorer: ScorerConfig,
    conversations: Sequence[Conversation],
    root: Path,
) -> Answers:
    """The mean logits of a teacher's `models`, as its store has them of rows that none of them learned.

    Raises `Unfit` where one of them has.
    """
    fingerprints = [c.fingerprint() for c in conversations]
    frames, seen = [], set[int]()
    for model in models:
        if leaked := sum(f in model.learned.directly for f in fingerprints):
            raise Unfit(f"the teacher was trained on {leaked} of the {len(conversations)} pairs that are scored")
        seen |= model.learned.through_teachers
        folder, adapter = model.folders()
        found = predictions(
            *(folder, model.content, model.renderer, scorer, conversations, root),
            label_tokens=model.asked_tokens(teacher),
            adapter=adapter,
            choice=model.choice,
        )
        frames.append(found.scores)
    lengths = pl.col("prompt_tokens", "truncated").first()
    scores = pl.concat(frames).group_by("id", "order", maintain_order=True).agg(mean_logits(), lengths).cast(SCORES)
    known = all(model.learned.is_known for model in models)
    taught = sum(f in seen for f in fingerprints) if known else None
    return Answers(scores, taught, count_alike(models[0].renderer, conversations))
