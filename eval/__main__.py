"""Compare the judges of an experiment on the locked test split of its data: python -m eval +exp=demo

Prints a table and writes eval/<run>/predictions.parquet, metrics.json and report.html. `+eval.judges.other=FOLDER` adds
a judge. `eval.seeds=[0,1,2]` adds what the student gains over its variants (`eval.variants`) over those training
seeds: seeds.json. `benchmark=FILE` scores the judges on a file of RewardBench 1 or 2, RM-Bench or JudgeBench instead,
and writes benchmarks/<run>/<benchmark>-<hash>/ alike.
"""

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import screen
from core.errors import UserError
from core.exits import ChecksFailed
from distill.artefacts import data_folder, evaluation_folder, named_judges
from distill.artefacts import evaluation as evaluation_of
from distill.config import Config
from distill.entry_point import entry_point
from distill.logits import teacher_folders
from teachers.config import TeacherConfig

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from core.artefacts.building import Artefact
    from core.labels import Labels
    from core.records import Conversation
    from eval.benchmarks.rows import Benchmark
    from eval.evaluation import Evaluation
    from eval.judges.answers import Engines
    from eval.judges.candidates import Candidate
    from eval.judges.panel import Panel
    from eval.seeds import SeedSummary
    from teachers.judgements import TeacherModel

log = logging.getLogger(__name__)
READS = (
    "name fold seed limit overwrite benchmark coverage data prompt eval teacher scorers.student scorers.exported "
    "scorers.teacher canaries.on_failure t4 paths"
)


def main(config: Config) -> None:
    if config.benchmark is not None:
        score_on_benchmark(config, Path(config.benchmark))
    else:
        evaluate(config)


def evaluate(config: Config) -> None:
    """All judges on the votes of the prepared data."""
    from core.data.table import load_conversations
    from core.labels import labels_in
    from core.locks import alone
    from eval.evaluation import METRICS, Evaluation, outdated
    from eval.judges.answers import Engines
    from eval.judges.candidates import TEACHER, candidates, file_digests, teacher_stores
    from eval.judges.panel import ask_all
    from eval.report.terminal import lines, table
    from eval.results import SEEDS, read_result, write_result
    from eval.scored import as_voted_by, scored_and_training
    from eval.seeds import seeds_table

    # What is scored, and who judges it
    root, data = config.root, data_folder(config)
    conversations, labels = load_conversations(data), labels_in(data)
    stores = teacher_stores(config.teacher)
    of_teacher = config.eval.truth == "teacher"
    asked = (config.eval.split, config.fold, config.limit)
    split, scored, training = scored_and_training(conversations, *asked, unvoted=of_teacher)
    if of_teacher:
        scored, training = as_voted_by(root / "logits" / stores[TEACHER], scored, training, labels)
    found = candidates(root, config.run, config.fold, stores, named_judges(config))
    engines = Engines(root, config.scorers.student, config.scorers.exported, config.canaries.on_failure)

    # Evaluate, unless it is done; what gave no answer is asked again, and costs and sets are as configured now
    artefact = evaluation_of(config, split, [candidate.artefact for candidate in found], file_digests(found))
    folder, rows = artefact.folder, {split: len(scored)}
    inputs = [candidate.path for candidate in found]
    overwrite = config.overwrite or bool(outdated(folder, config.t4, config.coverage) and artefact.is_finished())
    with artefact.building(inputs=inputs, overwrite=overwrite) as lacking:
        if lacking:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / SEEDS).unlink(missing_ok=True)  # of a run that was killed, perhaps on other rows
            write_evaluation(config, folder, data, ask_all(found, scored, training, engines, labels), scored)
            artefact.finish(rows=rows)

    # Print it
    console = screen.console()
    evaluation = read_result(Evaluation, folder / METRICS)
    console.print(table(evaluation))
    for line in lines(evaluation):
        console.print(line)
    if config.eval.seeds:
        with alone(folder):
            summary = judge_seeds(config, engines, scored, labels, evaluation)
            with artefact.reopened():
                write_result(folder / SEEDS, summary)
                artefact.finish(rows=rows)
        console.print(seeds_table(summary))
    tell_report(folder, evaluation.unanswered)


def tell_report(folder: Path, silent: "Collection[str]") -> None:
    """Say where the report is. Raises `ChecksFailed` where there are judges that gave no answer."""
    screen.console().print(f"report: {folder / 'report.html'}")
    if silent:
        raise ChecksFailed(f"{', '.join(silent)} gave no answer (see above): rerun the same command to ask again")


def write_evaluation(config: Config, folder: Path, data: Path, panel: "Panel", scored: "list[Conversation]") -> None:
    """predictions.parquet, metrics.json and report.html from what the judges answered."""
    import polars as pl

    from eval.evaluation import METRICS, measure
    from eval.report.page import Report, write_report
    from eval.results import write_result
    from eval.scored import true_distribution

    frames = [of.scores.select(pl.lit(name).alias("judge"), pl.all()) for name, of in panel.answers.items()]
    pl.concat(frames, how="diagonal").write_parquet(folder / "predictions.parquet")
    law = true_distribution(data, scored) if config.eval.truth == "votes" else None  # of votes, which do not count here
    evaluation = measure(panel, scored, law, config.eval, config.seed, config.t4, config.coverage)
    write_result(folder / METRICS, evaluation)
    artefacts = {name: of.artefact for name, of in panel.answers.items() if of.artefact is not None}
    report = Report.of(config.run, evaluation, scored, artefacts, data, config.root)
    write_report(folder / "report.html", report)


def judge_seeds(
    config: Config, engines: "Engines", scored: "list[Conversation]", labels: "Labels", evaluation: "Evaluation"
) -> "SeedSummary":
    """The student against `eval.variants` over `eval.seeds`, beside the baselines, which have no seeds."""
    from core.tables import read_parquet
    from eval.judges.answers import Answers, ask
    from eval.judges.candidates import BASELINES, over_seeds
    from eval.reliability import BINS
    from eval.seeds import compare_seeds

    seeds, variants = config.eval.seeds, config.eval.variants
    found = over_seeds(config.root, config.run, config.fold, config.seed, seeds, variants, config.name)
    answers = {name: [ask(candidate, scored, engines, labels) for candidate in of] for name, of in found.items()}
    kept = read_parquet(evaluation_folder(config) / "predictions.parquet").partition_by("judge", as_dict=True)
    for name in BASELINES:
        if (name,) in kept:
            answers[name] = [Answers(kept[name,], evaluation.judges[name].taught)]
    return compare_seeds(answers, seeds, scored, labels, BINS, config.eval.truth)


def score_on_benchmark(config: Config, path: Path) -> None:
    """All judges on a benchmark's file, by the arithmetic of its official scorer."""
    from eval.benchmarks.results import BenchmarkResult, benchmark_lines, benchmark_table
    from eval.benchmarks.rows import read_benchmark
    from eval.evaluation import METRICS, unanswered
    from eval.judges.candidates import candidates
    from eval.results import read_result

    # What is scored, and who judges it
    benchmark = read_benchmark(path, config.data, config.limit)
    found = candidates(config.root, config.run, config.fold, {}, named_judges(config))
    teachers = benchmark_teachers(config)

    # Score, unless it is done; what gave no answer is asked again
    folds = teacher_folders(config) if teachers and config.teacher.kind == "folds" else []
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    judges = [*(candidate.artefact for candidate in found), *folds]
    artefact = benchmark_artefact(config, benchmark.name, digest, judges, asked_of(teachers, config.teacher))
    folder = artefact.folder
    overwrite = config.overwrite or bool(unanswered(folder) and artefact.is_finished())
    with artefact.building(inputs=[path, *judges], overwrite=overwrite) as lacking:
        if lacking:
            folder.mkdir(parents=True, exist_ok=True)
            write_benchmark(config, artefact, benchmark, found, teachers)
            artefact.finish(rows={"rows": len(benchmark.rows)})

    # Print it
    console, result = screen.console(), read_result(BenchmarkResult, folder / METRICS)
    console.print(benchmark_table(result))
    for line in benchmark_lines(result):
        console.print(line)
    tell_report(folder, result.unanswered)


def benchmark_artefact(
    config: Config, name: str, file: str, judges: "Iterable[Path]", teacher: "Iterable[Mapping[str, Any]]"
) -> "Artefact":
    """benchmarks/<run>/<name>-<hash>: what all that `judges` score on a benchmark's `file`, given by its sha256.

    `teacher`: what each of its models is asked (`asked_of`).
    """
    from core.artefacts.building import Artefact
    from core.artefacts.contents import MANIFEST

    identity = {
        "benchmark": {"name": name, "file": file, "limit": config.limit},
        "scorers": {
            "student": config.scorers.student.identity,
            "exported": config.scorers.exported.identity,
            "teacher": config.scorers.teacher.identity,
        },
        "canaries": {"on_failure": config.canaries.on_failure},
        "fold": config.fold,
        "teacher": [*teacher],
    }
    folder = config.root / "benchmarks" / config.run / f"{name}-{file[:8]}"
    return Artefact(folder, "benchmark", identity, [path for path in judges if (path / MANIFEST).exists()], config.root)


def benchmark_teachers(config: Config) -> "list[TeacherModel]":
    """The teacher's models; none, and a line in the log, where there are none to be asked."""
    if config.teacher.kind not in ("folds", "model"):
        log.info("teacher left out: of kind %s it keeps logits of prepared conversations alone", config.teacher.kind)
        return []
    from distill.teacher_models import teacher_models

    try:
        return teacher_models(config)
    except UserError as error:
        log.info("teacher left out: %s", error)
        return []


def asked_of(models: "Iterable[TeacherModel]", teacher: TeacherConfig) -> list[dict[str, Any]]:
    """What the answers of a teacher's models depend on."""
    by_label_tokens = teacher.method == "label_tokens"
    return [
        {
            "content": model.content,
            "prompt": model.renderer.hashes["prompt"],
            "label_tokens": model.renderer.config.label_tokens if by_label_tokens else None,
        }
        for model in models
    ]


def write_benchmark(
    config: Config,
    artefact: "Artefact",
    benchmark: "Benchmark",
    found: "list[Candidate]",
    teachers: "list[TeacherModel]",
) -> None:
    """predictions.parquet, metrics.json and report.html of a benchmark."""
    from core.labels import WITHOUT_TIES
    from eval.benchmarks.page import write_benchmark_page
    from eval.benchmarks.results import benchmark_predictions, measure_benchmark
    from eval.benchmarks.teachers import ask_teacher
    from eval.evaluation import METRICS
    from eval.judges.answers import Engines, Unfit
    from eval.judges.candidates import TEACHER
    from eval.judges.panel import ask_each
    from eval.results import write_result

    folder, root, pairs = artefact.folder, config.root, benchmark.conversations()
    engines = Engines(root, config.scorers.student, config.scorers.exported, config.canaries.on_failure)
    answers, unanswered = ask_each(found, pairs, engines, WITHOUT_TIES)
    if teachers:
        try:
            answers[TEACHER] = ask_teacher(teachers, config.teacher, config.scorers.teacher, pairs, root)
        except Unfit as error:
            log.warning("teacher left out: %s", error)
    benchmark_predictions(answers).write_parquet(folder / "predictions.parquet")
    result = measure_benchmark(benchmark, answers, unanswered)
    write_result(folder / METRICS, result)
    artefacts = {name: of.artefact for name, of in answers.items() if of.artefact is not None}
    write_benchmark_page(folder / "report.html", config.run, result, artefacts, root)


if __name__ == "__main__":
    entry_point(main, READS, libraries=True)()
