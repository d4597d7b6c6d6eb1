"""A benchmark's file as rows of right and wrong responses, and the pairs of them that a judge compares."""

import re
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from core.data.config import DataConfig
from core.data.layouts import judgebench
from core.data.layouts.chosen_rejected import CHOSEN, REWARDBENCH, SUBSET, sides
from core.data.layouts.judgebench import JUDGEBENCH
from core.data.layouts.layout import IDS, BadRow, Cells, Reading, identify
from core.data.layouts.recognising import Recognised
from core.data.layouts.texts import holds_list
from core.data.layouts.votes import A, B
from core.data.sources import open_recognised
from core.errors import UserError
from core.labels import WITHOUT_TIES
from core.records import Conversation
from core.scoring import logits_by_order

BenchmarkName = Literal["rewardbench", "rewardbench2", "rm_bench", "judgebench"]  # the rows of `scorers.SCORERS`
STYLES = 3  # of RM-Bench's responses: concise, detailed, detailed with markdown
DOMAIN, COUNTED = "domain", {"num_correct", "total_completions"}  # columns of RM-Bench, and of RewardBench 2
DOMAINS = ("chat", "math", "code", "safety")  # how RM-Bench's begin
TIES = re.compile(r"(ref|tied):(\d+)")  # the id of a row of RewardBench 2's Ties: one right answer, or several
Pair = tuple[int, int]  # responses of a row, by number


@dataclass(frozen=True)
class BenchmarkRow:
    """A prompt with `right` right responses first, and the wrong ones after them, each one text a turn."""

    line: int
    id: str
    subset: str
    prompt: list[str]
    responses: list[list[str]]
    right: int

    def pairs(self, every: bool) -> list[Pair]:
        """Each right response with each wrong one, or `every` two responses."""
        count = len(self.responses)
        return list(combinations(range(count), 2) if every else product(range(self.right), range(self.right, count)))


@dataclass(frozen=True)
class Benchmark:
    """The rows of one file. `file`: its name."""

    name: BenchmarkName
    file: str
    rows: list[BenchmarkRow]

    def pairs(self, row: BenchmarkRow) -> list[Pair]:
        """RewardBench 2 asks for the best of several responses, so all of them meet."""
        return row.pairs(every=self.name == "rewardbench2")

    def conversations(self) -> list[Conversation]:
        """What a judge is asked: the pairs of all rows, a being the right response or the one further up."""
        return [
            Conversation(_id(row, pair), row.prompt, row.responses[pair[0]], row.responses[pair[1]], source=self.name)
            for row in self.rows
            for pair in self.pairs(row)
        ]

    def margins(self, scores: pl.DataFrame) -> list[np.ndarray]:
        """By how much a judge prefers each response of a row to each other: float64 [2, n, n] a row.

        The difference of the logits of a and b, in order ab and in order ba; the log odds that one wins if one of them
        does. Antisymmetric, and NaN for what was not asked. `scores`: its answers to `conversations` (`SCORES`).
        """
        asked = [(number, pair) for number, row in enumerate(self.rows) for pair in self.pairs(row)]
        ids = [_id(self.rows[number], pair) for number, pair in asked]
        both = np.stack(logits_by_order(scores, ids, WITHOUT_TIES)).astype(np.float64)
        found = [np.full((2, len(row.responses), len(row.responses)), np.nan) for row in self.rows]
        for (number, (i, j)), margin in zip(asked, (both[:, :, 0] - both[:, :, 1]).T, strict=True):
            found[number][:, i, j], found[number][:, j, i] = margin, -margin
        return found


def _id(row: BenchmarkRow, pair: Pair) -> str:
    return f"{row.line}/{pair[0]}-{pair[1]}"


def read_benchmark(path: Path, data: DataConfig, limit: int | None = None) -> Benchmark:
    """The first `limit` rows of a benchmark's file, in a format that `distill.prepare` reads.

    Raises one `UserError` that names file and row where a row cannot be used: a score over the others would not be the
    benchmark's.
    """
    if not path.is_file():
        raise UserError(f"benchmark={path}: no such file; give one of RewardBench, RM-Bench or JudgeBench")
    (source,) = open_recognised(replace(data, files=[str(path)], hub=None, simulate=None, layout=None))
    name, rows, problems = _name(source, path), list[BenchmarkRow](), list[str]()
    for line, cells, problem in source.rows(limit):
        try:
            if problem is not None:
                raise BadRow(problem)
            rows.append(_row(name, line, cells, source.reading))
        except BadRow as error:
            problems.append(f"row {line}: {error}")
    if problems:
        others = f" (and {len(problems) - 1} more rows)" if len(problems) > 1 else ""
        raise UserError(f"benchmark={path}: {problems[0]}{others}; every row of a benchmark counts, so mend the file")
    if not rows:
        raise UserError(f"benchmark={path} has no rows")
    return Benchmark(name, path.name, rows)


def _name(source: Recognised, path: Path) -> BenchmarkName:
    """Which benchmark a file is of, by its columns, and whether several responses stand in one cell."""
    if source.layout is JUDGEBENCH:
        return "judgebench"
    if source.layout is not REWARDBENCH:
        raise UserError(
            f"benchmark={path} has the layout {source.layout.name}; RewardBench and RM-Bench have prompt, chosen, "
            "rejected and subset or domain, JudgeBench question, response_A, response_B and label"
        )
    if DOMAIN in source.reading.columns:
        return "rm_bench"
    chosen = source.reading.needed(CHOSEN)
    first = next((row.cells.get(chosen) for row in source.rows(1)), None)
    several = isinstance(first, list) and all(isinstance(item, str) for item in first)
    if not several and not (isinstance(first, str) and holds_list(first)):
        return "rewardbench"
    if not source.reading.columns & COUNTED:
        raise UserError(
            f"benchmark={path} has lists of responses, but neither {DOMAIN}, as RM-Bench has (its total_dataset.json), "
            f"nor {' or '.join(sorted(COUNTED))}, as RewardBench 2"
        )
    return "rewardbench2"


def _row(name: BenchmarkName, line: int, cells: Cells, reading: Reading) -> BenchmarkRow:
    """Raises `BadRow` for one that the benchmark's scorer could not use."""
    column = reading.named(IDS)
    id = str(line) if column is None else identify(cells, column)
    if name == "judgebench":
        (pair,) = judgebench.conversations(cells, reading)
        if pair.votes not in (A, B):
            raise BadRow(f"{judgebench.LABEL} has to be A>B or B>A: {cells.get(judgebench.LABEL)}")
        right, wrong = (pair.response_a, pair.response_b) if pair.votes == A else (pair.response_b, pair.response_a)
        return BenchmarkRow(line, id, _text(cells, "source"), pair.prompt, [right, wrong], 1)
    chosen, rejected = sides(cells, reading)
    subset = _text(cells, DOMAIN if name == "rm_bench" else reading.needed(SUBSET))
    row = BenchmarkRow(
        *(line, id, subset, chosen[0].prompt),
        responses=[one.response for one in (*chosen, *rejected)],
        right=len(chosen),
    )
    if name == "rewardbench" and len(row.responses) != 2:
        raise BadRow(f"RewardBench has one chosen and one rejected response, found {len(chosen)} and {len(rejected)}")
    if name == "rm_bench" and not len(chosen) == len(rejected) == STYLES:
        raise BadRow(f"RM-Bench has {STYLES} chosen and {STYLES} rejected, found {len(chosen)} and {len(rejected)}")
    if name == "rewardbench2" and (told := cells.get("num_correct")) not in (None, len(chosen)):
        raise BadRow(f"num_correct is {told}, but there are {len(chosen)} chosen responses")
    if name == "rm_bench" and not row.subset.startswith(DOMAINS):
        raise BadRow(f"domain begins with none of {', '.join(DOMAINS)}: {row.subset}")
    if name == "rewardbench2" and row.subset.lower() == "ties" and not TIES.fullmatch(row.id):
        raise BadRow(f"the id of a row of Ties is neither ref:NUMBER nor tied:NUMBER: {row.id}")
    return row


def _text(cells: Cells, column: str) -> str:
    value = cells.get(column)
    if not isinstance(value, str) or not value:
        raise BadRow(f"{column} is empty: {value}")
    return value
