"""The judges of a prediction, in the order in which they are asked: one alone, or from small to large."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from core.errors import UserError
from core.exported import ExportedJudge, open_exported
from core.records import ORDERS, Order
from core.scoring import SCORES
from core.store.parts import part_files
from core.store.reading import read_parts
from deploy.predicting.config import PredictConfig
from deploy.predicting.outputs import store_of
from eval.second_opinions import PILOT_SHARE
from teachers.scorers.backends import backend_of
from teachers.scorers.config import ScorerConfig

log = logging.getLogger(__name__)
JUDGED = pl.Schema({**SCORES, "process": pl.Int32(), "fingerprint": pl.UInt64()})
LEAST_PILOT = 16  # rows; fewer say nothing of which others gain by a second opinion


@dataclass(frozen=True)
class Judge:
    """One judge of a prediction: as users `name` it, its export's `folder`, and `parts`, where its scores go.

    `looks`: the orders that it is shown of a row, one after another; all but the very first are second opinions.
    """

    name: str
    folder: Path
    parts: Path
    looks: tuple[tuple[Order, ...], ...]


def named_exports(cascade: Sequence[str], model: str | None, exports: Path) -> dict[str, Path]:
    """The folders of a `predict.cascade`, by what users call them: folders, or names below the experiment's `exports`.

    Raises `UserError` for one judge, for one that is named twice or is not there, and beside `predict.model`.
    """
    if model is not None:
        raise UserError(f"predict.model={model} names one judge and predict.cascade several: give only one of the keys")
    if len(cascade) < 2:
        raise UserError(
            f"predict.cascade={[*cascade]}: a cascade has two judges or more, from small to large; a single one is "
            "predict.model"
        )
    found: dict[str, Path] = {}
    for name in cascade:
        own = exports / name  # of a path that begins at the root: that path
        if not (there := [place for place in (own, Path(name)) if place.is_dir()]):
            raise UserError(
                f"predict.cascade: there is no export {name}, neither {own} nor a folder of that name: export it "
                "first, or give its folder"
            )
        if there[0].resolve() in [folder.resolve() for folder in found.values()]:
            raise UserError(f"predict.cascade={[*cascade]}: {name} is there twice; give each judge once")
        found[name] = there[0]
    return found


def open_judges(folders: Mapping[str, Path], scorer: ScorerConfig) -> list[ExportedJudge]:
    """Open the exports of a prediction.

    Raises `UserError` where two of several are one model or know other labels, and where one engine answers for all.
    """
    judges = [open_exported(folder) for folder in folders.values()]
    first, names = judges[0], [*folders]
    for place, (name, judge) in enumerate(zip(names, judges, strict=True)):
        if judge.manifest.content in {other.manifest.content for other in judges[:place]}:
            raise UserError(f"predict.cascade: {name} is a copy of a judge before it; give each judge once")
        if judge.labels != first.labels:
            raise UserError(
                f"predict.cascade: {names[0]} knows the labels {', '.join(first.labels)} and {name} "
                f"{', '.join(judge.labels)}: take judges of data with ties, or of data without"
            )
    if len(judges) > 1 and not backend_of(scorer).loads_model:
        raise UserError(
            "predict.cascade: a server answers for one model only; take scorer@scorers.exported=vllm, which opens each"
        )
    return judges


def lined_up(
    folders: Mapping[str, Path], judges: Sequence[ExportedJudge], parts: Path, settings: PredictConfig
) -> list[Judge]:
    """The judges as they are asked. One alone may leave out the other order of some rows; of several each sees both."""
    (first, *_), several = judges, len(judges) > 1
    whole = settings.second_opinions == 1 and settings.minutes is None
    # Side by side the two orders share their question in the cache, and a pointwise judge needs both.
    together = several or whole or first.renderer.pointwise
    looks: tuple[tuple[Order, ...], ...] = (ORDERS,) if together else tuple((order,) for order in ORDERS)
    return [Judge(name, folder, store_of(parts, turn), looks) for turn, (name, folder) in enumerate(folders.items())]


def check_choice(judges: Sequence[Judge], settings: PredictConfig, rows: int) -> None:
    """Raise `UserError` where `predict.pilot` is what keeps a pilot too small to choose among so many `rows`.

    Warn of a cascade that has nothing to choose.
    """
    if len(judges) == len(judges[0].looks) == 1:
        return  # no second opinions
    if settings.second_opinions == 1 and settings.minutes is None:
        log.warning(
            "predict.cascade without a budget: %s judges every row, and nobody else is needed; set predict.minutes or "
            "predict.second_opinions",
            judges[-1].name,
        )
    elif settings.pilot < LEAST_PILOT <= settings.second_opinions * rows * PILOT_SHARE:
        raise UserError(
            f"predict.pilot={settings.pilot}: too few to tell which of {rows:,} rows gain most by a second opinion; "
            f"give {LEAST_PILOT} or more"
        )


def read_scores(parts: Path) -> pl.DataFrame:
    """All that one judge said, one row an id and order, whichever process asked; empty where there is nothing yet."""
    found = read_parts(parts) if part_files(parts) else pl.DataFrame(schema=JUDGED)
    return found.unique(["id", "order"], keep="first", maintain_order=True)


def stores_in(parts: Path) -> list[Path]:
    """The folders of what is judged, one a judge."""
    return [parts, *sorted(parts.glob("judge-*"))]


def last_words(judges: Sequence[Judge]) -> pl.DataFrame:
    """The scores of each row by the last judge that read it, in `JUDGED` and `turn`, the judge's place.

    Where a kill parted the orders of a look, that judge has not read the row.
    """
    words = pl.DataFrame(schema={**JUDGED, "turn": pl.Int32})
    for turn, judge in reversed([*enumerate(judges)]):
        scores = read_scores(judge.parts).with_columns(turn=pl.lit(turn, pl.Int32))
        needed = pl.col("order").is_in(judge.looks[0]).sum().over("id") == len(judge.looks[0])
        scores = scores.filter(needed)
        words = pl.concat([words, scores.join(words, on="id", how="anti")])
    return words
