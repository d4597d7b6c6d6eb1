"""A benchmark's results: what its metrics.json holds, and what is printed of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from eval.benchmarks.rows import Benchmark, BenchmarkName
from eval.benchmarks.scorers import Scores, score_benchmark
from eval.judges.answers import Answers
from eval.report.ladder import ordered
from eval.report.terminal import held_out, provenance

TITLES: Mapping[BenchmarkName, str] = {
    "rewardbench": "RewardBench",
    "rewardbench2": "RewardBench 2",
    "rm_bench": "RM-Bench",
    "judgebench": "JudgeBench",
}
SOURCES: Mapping[BenchmarkName, str] = {
    "rewardbench": "https://github.com/allenai/reward-bench",
    "rewardbench2": "https://github.com/allenai/reward-bench",
    "rm_bench": "https://github.com/THU-KEG/RM-Bench",
    "judgebench": "https://github.com/ScalerLab/JudgeBench",
}
ABSENT = "–"


@dataclass(frozen=True, kw_only=True)
class JudgeScores(Scores):
    """A judge's scores, and what is known of it, as `eval.evaluation.JudgeResult` has it: of pairs, not of votes."""

    failed: Sequence[str]
    taught: int | None
    alike: int | None


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """All judges on one file. `pairs`: how many pairs of responses each was asked, in both orders.

    `source`: whose arithmetic the scores follow. `unanswered`: why an export gave no answer on this machine, by name.
    """

    benchmark: BenchmarkName
    title: str
    source: str
    file: str
    rows: int
    pairs: int
    judges: Mapping[str, JudgeScores]
    unanswered: Mapping[str, str]


def measure_benchmark(
    benchmark: Benchmark, answers: Mapping[str, Answers], unanswered: Mapping[str, str]
) -> BenchmarkResult:
    """The scores of all judges that answered."""
    judges = {
        name: JudgeScores(
            **vars(score_benchmark(benchmark, benchmark.margins(of.scores))),
            failed=of.failed,
            taught=of.taught,
            alike=of.alike,
        )
        for name, of in answers.items()
    }
    return BenchmarkResult(
        benchmark=benchmark.name,
        title=TITLES[benchmark.name],
        source=SOURCES[benchmark.name],
        file=benchmark.file,
        rows=len(benchmark.rows),
        pairs=sum(len(benchmark.pairs(row)) for row in benchmark.rows),
        judges={name: judges[name] for name in ordered(judges)},
        unanswered=unanswered,
    )


def benchmark_table(result: BenchmarkResult) -> Table:
    """The judges with their overall score and its sections."""
    table = Table(box=SIMPLE_HEAD, padding=0, caption=f"{result.title}: scores by the arithmetic of {result.source}")
    table.add_column("judge", no_wrap=True)
    for heading in ("overall", *sections_of(result), "held out"):
        table.add_column(heading, justify="right")
    for name, of in result.judges.items():
        overall = ABSENT if of.overall is None else f"{of.overall:.1%}"
        sections = [f"{of.sections[section]:.1%}" for section in sections_of(result)]
        table.add_row(name, overall, *sections, held_out(of.taught), style="bold" if name == "student" else None)
    return table


def sections_of(result: BenchmarkResult) -> list[str]:
    """The sections that the file has rows of, the same for every judge."""
    return list(next(iter(result.judges.values())).sections) if result.judges else []


def benchmark_lines(result: BenchmarkResult) -> list[str | Text]:
    """The notes below the table: what was scored, what is not held out, what failed."""
    told: list[str | Text] = [
        f"Scored: {result.rows:,} rows of {result.file}, {result.pairs:,} pairs of responses in both orders."
    ]
    if any(of.overall is None for of in result.judges.values()):
        told.append(f"No overall score: the file lacks sections of {result.title}.")
    for judge, of in result.judges.items():
        told += provenance(judge, of.taught, of.alike, result.pairs, "pairs")
        if of.failed:
            told.append(Text(f"✗ {judge} failed its checks: {'; '.join(of.failed)}", "red"))
    told += [Text(f"✗ {judge} gave no answer: {reason}", "red") for judge, reason in result.unanswered.items()]
    return told


def benchmark_predictions(answers: Mapping[str, Answers]) -> pl.DataFrame:
    """Every judge's logits for every pair in both orders, `id` being row/response-response."""
    return pl.concat([of.scores.select(pl.lit(name).alias("judge"), pl.all()) for name, of in answers.items()])
