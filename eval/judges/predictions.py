"""What a model answers, kept below predictions/: no stage has the same model score the same conversations twice,
but for models that servers hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from core.artefacts.building import Artefact
from core.artefacts.identity import identity_hash
from core.artefacts.manifest import read_manifest
from core.pointwise import Choice
from core.prompts import Renderer
from core.records import Conversation
from core.scoring import score_conversations
from core.tables import read_parquet
from eval.canaries.checking import check_canaries
from eval.config import CanaryMode
from teachers.scorers.backends import backend_of
from teachers.scorers.config import ScorerConfig
from teachers.scorers.opening import open_scorer

SCORED, FAILED = "scores.parquet", "failed"  # the latter in the manifest's `extra`


@dataclass(frozen=True)
class Predictions:
    """`scores` of all conversations in both orders (`SCORES`), and which checks the engine `failed`."""

    scores: pl.DataFrame
    failed: Sequence[str]


def predictions(
    model: Path,
    content: str,
    renderer: Renderer,
    scorer: ScorerConfig,
    conversations: Sequence[Conversation],
    root: Path,
    canaries: CanaryMode | None = None,
    *,
    label_tokens: Sequence[str] | None = None,
    adapter: Path | None = None,
    choice: Choice | None = None,
) -> Predictions:
    """The answers of the model in a folder, whose hash is `content`, under an `adapter` where one is served beside it.

    A language model is asked for `label_tokens` instead of its score head; `choice`: see `open_scorer`.

    With `canaries`, the model is an export whose engine is checked first: with "warn", what is wrong with it is among
    what `failed`. Raises `UserError` where, with "refuse", it computes something else than was exported.
    """
    if not backend_of(scorer).loads_model:  # a server's owner alone knows which model it holds now: nothing is kept
        return ask(model, renderer, scorer, conversations, canaries, label_tokens, adapter, choice)
    shown = [[c.id, c.model_a, c.model_b, c.prompt, c.response_a, c.response_b] for c in conversations]
    identity = {
        "content": content,
        "scorer": scorer.identity,
        "prompt": renderer.hashes,
        "conversations": identity_hash(shown),
        "canaries": {"on_failure": canaries},
        **({} if label_tokens is None else {"label_tokens": [*label_tokens]}),
    }
    folder = root / "predictions" / identity_hash(identity)
    artefact = Artefact(folder, "predictions", identity, [], root)
    with artefact.building(wait=True) as lacking:
        if lacking:
            found = ask(model, renderer, scorer, conversations, canaries, label_tokens, adapter, choice)
            folder.mkdir(parents=True, exist_ok=True)
            found.scores.write_parquet(folder / SCORED)
            artefact.finish(rows={"scored": len(conversations)}, extra={FAILED: [*found.failed]})
    return Predictions(read_parquet(folder / SCORED), read_manifest(folder).extra[FAILED])


def ask(
    model: Path,
    renderer: Renderer,
    scorer: ScorerConfig,
    conversations: Sequence[Conversation],
    canaries: CanaryMode | None,
    label_tokens: Sequence[str] | None,
    adapter: Path | None,
    choice: Choice | None,
) -> Predictions:
    """The answers of a scorer that is opened for them."""
    budget = renderer.config.max_tokens
    with open_scorer(model, scorer, budget, choice=choice, label_tokens=label_tokens, adapter=adapter) as opened:
        problem = None if canaries is None else check_canaries(model, renderer, opened, canaries)
        return Predictions(score_conversations(opened, renderer, conversations), [problem] if problem else [])
