"""Ranking a file of responses: what each is worth among those to its prompt, in as few comparisons as will do.

What is judged lies in `<output>.parts`, some prompts a file. A run that was killed goes on after the last of them, and
once the output is written they are removed.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from core.artefacts.building import Artefact
from core.data.collecting import REJECTED
from core.data.files.opening import open_sources
from core.data.files.rows import Source as File
from core.data.layouts.layout import Reading, Rejected
from core.data.layouts.recognising import lists_in
from core.data.layouts.responses import TEXTS, Response, holds_responses, read_responses
from core.errors import UserError
from core.exported import open_exported
from core.locks import alone
from core.store.parts import publish
from core.tables import read_parquet
from deploy.predicting.config import PredictConfig
from deploy.predicting.outputs import discard_parts, parts_folder
from deploy.predicting.row_notes import tell_unreadable
from deploy.predicting.unlabelled import Source
from deploy.ranking.pairing import MOST
from deploy.ranking.ranker import Ranker, open_ranker
from eval.config import CanaryMode
from teachers.scorers.config import ScorerConfig

log = logging.getLogger(__name__)
STANDINGS = pl.Schema(
    {"prompt": pl.String, "response": pl.Int64, "reward": pl.Float64, "low": pl.Float64, "high": pl.Float64}
    | {"rank": pl.Int64, "wins": pl.Float64}
)


@dataclass(frozen=True)
class Responses:
    """The responses of a file by prompt, in the order of the file, and the rows that hold none (`REJECTED`)."""

    groups: dict[str, list[Response]]
    unreadable: pl.DataFrame
    identity: Mapping[str, Any]


def file_of_responses(source: Source) -> File | None:
    """The file where it holds single responses, and not pairs. Raises `UserError` where it cannot be opened."""
    if source.path is None or not Path(source.path).is_file():
        return None  # for the reading of pairs to say
    problems: list[str] = []
    found = open_sources(replace(source.data, files=[source.path], hub=None, simulate=None), problems)
    return found[0] if len(found) == 1 and source.data.layout is None and holds_responses(found[0].columns) else None


def grouped(file: File, limit: int | None) -> Responses:
    """The responses of the first `limit` rows. Raises `UserError` for a prompt with more of them than can be ranked."""
    reading = Reading(file.name, frozenset(file.columns), lists_in(file, TEXTS))
    groups: dict[str, list[Response]] = {}
    unreadable = []
    rows = (row for number, row in enumerate(file.rows()) if limit is None or number < limit)
    for found in read_responses(rows, reading):
        if isinstance(found, Rejected):
            unreadable.append((file.name, *found))
        else:
            chat = found.conversation
            groups.setdefault(json.dumps([chat.prompt, chat.response_a[:-1]]), []).append(found)
    if many := [group for group in groups.values() if len(group) > MOST]:
        raise UserError(
            f"{file.where}, row {many[0][0].line}: its prompt has {len(many[0])} responses, and {MOST} can be ranked: "
            "leave some out"
        )
    numbered = {str(number): group for number, group in enumerate(groups.values(), 1)}
    return Responses(numbered, pl.DataFrame(unreadable, schema=REJECTED, orient="row"), file.identity)


def write_ranks(
    file: File,
    source: Source,
    output: Path,
    model: Path,
    scorer: ScorerConfig,
    settings: PredictConfig,
    canaries: CanaryMode,
    overwrite: bool,
) -> None:
    """Write `output`: a line for each response of `file`, in its order, as far as `source` wants them.

    Raises `UserError` where a process ended early: what it judged stays, and the same command resumes.
    """
    responses, judge, parts = grouped(file, source.limit), open_exported(model), parts_folder(output)
    lines = {each.line for group in responses.groups.values() for each in group}
    rows, form = len(lines) + len(responses.unreadable), "docs/data.md has the layouts of single responses"
    if not rows:
        raise UserError(f"{file.where} holds no responses: {form}")
    most = source.data.max_rejected
    tell_unreadable(responses.unreadable, rows, most, output, fate="are not ranked", form=form)
    count = sum(map(len, responses.groups.values()))
    log.info("%s: %d responses to %d prompts", file.where, count, len(responses.groups))
    read = {
        **responses.identity,
        "limit": source.limit,
    }  # among the first rows a prompt may have fewer responses than in all
    identity = {"input": read, "model": judge.manifest.content, "scorer": scorer.identity}
    judgements = Artefact(parts, "submission", identity, [], parts.parent)
    with alone(parts):
        if overwrite and judgements.differing_start():
            discard(parts)
        judgements.claim()
        done = read_standings(parts)
        ranked = set(done["prompt"])
        left = {name: group for name, group in responses.groups.items() if name not in ranked}
        if left:
            with open_ranker(model, scorer, canaries) as ranker:
                for number, groups in enumerate(pieces(left, settings.rows_per_part), len(list(parts.glob("ranks-*")))):
                    publish(standings(ranker, groups), parts / f"ranks-{number:05}.parquet", {})
                    log.info(
                        "%d of %d prompts are ranked", len(set(read_standings(parts)["prompt"])), len(responses.groups)
                    )
        write_table(output, responses, read_standings(parts))
        discard(parts)
    log.info("%s: %d responses", output, count)


def pieces(groups: Mapping[str, list[Response]], rows: int) -> Iterator[dict[str, list[Response]]]:
    """The groups in pieces of about `rows` responses."""
    piece: dict[str, list[Response]] = {}
    for name, group in groups.items():
        piece[name] = group
        if sum(map(len, piece.values())) >= rows:
            yield piece
            piece = {}
    if piece:
        yield piece


def standings(ranker: Ranker, groups: Mapping[str, list[Response]]) -> pl.DataFrame:
    """What the responses of some prompts are worth, in `STANDINGS`."""
    rows = {
        name: [replace(each.conversation, id=f"{name}:{place}") for place, each in enumerate(group)]
        for name, group in groups.items()
    }
    tables = []
    for name, found in ranker.standings(rows).items():
        low, high = (None, None) if found.intervals is None else found.intervals.T
        alone_here = len(found.rewards) < 2
        columns = {
            "prompt": [name] * len(found.rewards),
            "response": range(len(found.rewards)),
            "reward": found.rewards,
            "low": low,
            "high": high,
            "rank": found.ranks(),
            "wins": None if alone_here else found.wins,
        }
        tables.append(pl.DataFrame(columns, schema=STANDINGS, strict=False))
    return pl.concat(tables)


def read_standings(parts: Path) -> pl.DataFrame:
    """All that is ranked so far, in `STANDINGS`."""
    return pl.concat([pl.DataFrame(schema=STANDINGS), *(read_parquet(path) for path in sorted(parts.glob("ranks-*")))])


def write_table(output: Path, responses: Responses, found: pl.DataFrame) -> None:
    """Write a line for each response, in the order of the file, to `output`, which appears whole."""
    where = [
        (name, place, each.line, each.conversation.model_a)
        for name, group in responses.groups.items()
        for place, each in enumerate(group)
    ]
    schema = {"prompt": pl.String, "response": pl.Int64, "line": pl.Int64, "model": pl.String}
    table = pl.DataFrame(where, schema=schema, orient="row").join(
        found, on=["prompt", "response"], how="left", maintain_order="left"
    )
    assert not table["rank"].has_nulls(), "a response was not ranked"
    partial = output.with_name(f".{output.name}.partial")
    table.sort("line", "response", maintain_order=True).write_csv(partial)
    partial.replace(output)


def discard(parts: Path) -> None:
    """Remove what is judged."""
    discard_parts(parts, parts.glob("ranks-*"))
