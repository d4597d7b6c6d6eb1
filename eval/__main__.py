"""Compare the judges of an experiment on the locked test split of its data: python -m eval +exp=demo

Prints a table and writes eval/<run>/predictions.parquet, metrics.json and report.html. `+eval.judges.other=FOLDER` adds
a judge. `eval.seeds=[0,1,2]` adds what the student gains over its variants (`eval.variants`) over those training
seeds: seeds.json.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from core import screen
from core.exits import ChecksFailed
from distill.artefacts import data_folder
from distill.artefacts import evaluation as evaluation_of
from distill.config import Config
from distill.entry_point import entry_point

if TYPE_CHECKING:
    from core.labels import Labels
    from core.records import Conversation
    from eval.judges.answers import Engines
    from eval.judges.panel import Panel
    from eval.seeds import SeedSummary

READS = (
    "name fold seed limit overwrite data.name eval teacher scorers.student scorers.exported canaries.on_failure paths"
)


def main(config: Config) -> None:
    from core.artefacts.contents import MANIFEST
    from core.data.table import load_conversations
    from core.labels import labels_in
    from core.locks import alone
    from eval.evaluation import METRICS, Evaluation, unanswered
    from eval.judges.answers import Engines
    from eval.judges.candidates import candidates, file_digests, teacher_stores
    from eval.judges.panel import ask_all
    from eval.report.terminal import lines, table
    from eval.results import read_result, write_result
    from eval.scored import scored_and_training
    from eval.seeds import seeds_table

    # What is scored, and who judges it
    root, data = config.root, data_folder(config)
    split, scored, training = scored_and_training(load_conversations(data), config.eval.split, config.fold)
    scored, labels = scored[: config.limit], labels_in(data)
    found = candidates(root, config.run, config.fold, teacher_stores(config.teacher), config.eval.judges)
    engines = Engines(root, config.scorers.student, config.scorers.exported, config.canaries.on_failure)

    # Evaluate, unless it is done; what gave no answer is asked again, and the evaluation made anew
    artefact = evaluation_of(config, split, [candidate.artefact for candidate in found], file_digests(found))
    folder, rows = artefact.folder, {split: len(scored)}
    inputs = [candidate.path for candidate in found]
    overwrite = config.overwrite or bool(unanswered(folder) and artefact.is_finished())
    with artefact.building(inputs=inputs, overwrite=overwrite) as lacking:
        if lacking:
            folder.mkdir(parents=True, exist_ok=True)
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
            summary = judge_seeds(config, engines, scored, labels)
            (folder / MANIFEST).unlink()  # rewritten below, with seeds.json in it
            write_result(folder / "seeds.json", summary)
            artefact.finish(rows=rows)
        console.print(seeds_table(summary))
    console.print(f"report: {folder / 'report.html'}")
    if silent := evaluation.unanswered:
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
    evaluation = measure(panel, scored, true_distribution(data, scored), config.eval, config.seed)
    write_result(folder / METRICS, evaluation)
    artefacts = {name: of.artefact for name, of in panel.answers.items() if of.artefact is not None}
    report = Report.of(config.run, evaluation, scored, artefacts, data, config.root)
    write_report(folder / "report.html", report)


def judge_seeds(config: Config, engines: "Engines", scored: "list[Conversation]", labels: "Labels") -> "SeedSummary":
    """The student against `eval.variants` over `eval.seeds`."""
    from eval.judges.answers import ask
    from eval.judges.candidates import over_seeds
    from eval.seeds import compare_seeds

    seeds, variants = config.eval.seeds, config.eval.variants
    found = over_seeds(config.root, config.run, config.fold, config.seed, seeds, variants, config.name)
    answers = {name: [ask(candidate, scored, engines, labels) for candidate in of] for name, of in found.items()}
    return compare_seeds(answers, seeds, scored, labels, config.eval.ece_bins)


if __name__ == "__main__":
    entry_point(main, READS, libraries=True)()
