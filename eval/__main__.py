"""Compare the judges of an experiment on the locked test split of its data: python -m eval +exp=demo

Prints a table and writes eval/<run>/predictions.parquet, metrics.json and report.html. `+eval.judges.other=FOLDER` adds
a judge. `eval.seeds=[0,1,2]` adds what the student gains over its variants (`eval.variants`) over those training
seeds: seeds.json.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from core.config import to_mapping
from core.exits import ChecksFailed
from distill.config import Config
from distill.entry_point import entry_point

if TYPE_CHECKING:
    from rich.table import Table

    from core.records import Conversation
    from eval.judges import Judges


def main(config: Config) -> None:
    from rich.console import Console

    from core.artefacts.building import Artefact
    from core.artefacts.contents import MANIFEST
    from core.data.table import load_conversations
    from core.locks import alone
    from eval.judges import candidates, file_digests, judge_all
    from eval.report.page import bayes_line, checks_line, rows_line, surface_line, table
    from eval.rows import scored_and_training

    folder = config.root / "eval" / config.run
    data = config.root / "data" / config.data.name
    split, scored, training = scored_and_training(load_conversations(data), config.eval.split, config.fold)
    scored = scored[: config.limit]
    found = candidates(config)
    over_seeds = ("seeds", "variants")  # compared below, whether or not the rest is there already
    settings = {name: value for name, value in to_mapping(config)["eval"].items() if name not in over_seeds}
    settings |= {"split": split, "fold": config.fold, "limit": config.limit, "canaries": config.canaries}
    identity = {"eval": settings, "files": file_digests(found)}
    artefacts = dict.fromkeys([data, *(candidate.artefact for candidate in found)])
    parents = [artefact for artefact in artefacts if (artefact / MANIFEST).exists()]
    evaluation, rows = Artefact(folder, "eval", identity, parents, config.root), {split: len(scored)}
    inputs = [candidate.path for candidate in found]
    # What gave no answer may give one now: the same evaluation is made again. Another one is refused, as always.
    again = unanswered(folder) and evaluation.is_finished()
    overwrite = config.overwrite or bool(again)
    with evaluation.building(inputs=inputs, overwrite=overwrite) as lacking:
        if lacking:
            folder.mkdir(parents=True, exist_ok=True)
            judges = judge_all(config, found, scored, training)
            write_evaluation(config, folder, judges, scored)
            evaluation.finish(rows=rows)
    metrics = json.loads((folder / "metrics.json").read_text())
    console = Console()
    console.print(table(metrics))
    for line in (rows_line(metrics), surface_line(metrics), bayes_line(metrics), checks_line(metrics)):
        if line is not None:
            console.print(line)
    if config.eval.seeds:
        with alone(folder):
            seeds = compare_seeds(config, folder, scored)
            evaluation.finish(rows=rows)  # seeds.json is one of its files now
        console.print(seeds)
    console.print(f"report: {folder / 'report.html'}")
    if silent := unanswered(folder):
        raise ChecksFailed(f"{', '.join(silent)} gave no answer (see above): the same command asks again")


def unanswered(folder: Path) -> list[str]:
    """The exports that gave no answer when the evaluation in `folder` was made."""
    metrics = folder / "metrics.json"
    return [*json.loads(metrics.read_text()).get("unanswered", {})] if metrics.exists() else []


def write_evaluation(config: Config, folder: Path, judges: "Judges", scored: "list[Conversation]") -> None:
    """predictions.parquet, metrics.json and report.html from what the judges said."""
    import polars as pl

    from core.json_files import write_json
    from core.tables import read_parquet
    from eval.fidelity import read_fidelities
    from eval.judges import HISTORY
    from eval.measuring import measure
    from eval.report.lineage import trace
    from eval.report.page import write_report

    said = [frame.select(pl.lit(name).alias("judge"), pl.all()) for name, frame in judges.predictions.items()]
    pl.concat(said, how="diagonal").write_parquet(folder / "predictions.parquet")
    data = config.root / "data" / config.data.name
    law = None
    if (data / "law.parquet").exists():  # a simulated arena: its law is one more judge, and its entropy the bound
        ids = pl.DataFrame({"id": [c.id for c in scored]})
        law = ids.join(read_parquet(data / "law.parquet"), on="id", how="left", maintain_order="left")
    metrics = measure(judges, scored, law, config.eval, config.seed)
    write_json(folder / "metrics.json", metrics)
    write_report(
        folder / "report.html",
        name=config.run,
        metrics=metrics,
        conversations={c.id: c for c in scored},
        histories={
            name: read_parquet(path / HISTORY) for name, path in judges.artefacts.items() if (path / HISTORY).exists()
        },
        fidelities=read_fidelities(judges.artefacts),
        lineage=trace(judges.artefacts, data, config.root),
    )


def compare_seeds(config: Config, folder: Path, scored: "list[Conversation]") -> "Table":
    """The student against `eval.variants` over `eval.seeds`; writes seeds.json and returns its table."""
    import numpy as np

    from core.artefacts.contents import MANIFEST
    from core.json_files import write_json
    from core.scoring import logits_by_order
    from eval.judges import judge_seeds
    from eval.metrics import log_loss_rows, predict, summarise
    from eval.seeds import seeds_table, summarise_seeds

    ids, groups = [c.id for c in scored], [c.group for c in scored]
    votes = np.array([c.votes for c in scored])
    settings = {"draws": config.eval.bootstrap, "seed": config.seed}
    judged = judge_seeds(config, scored)
    logits = {name: [logits_by_order(said.scores, ids) for said in runs_of] for name, runs_of in judged.items()}
    taught = {name: max(said.taught or 0 for said in runs_of) for name, runs_of in judged.items()}
    metrics = {
        name: [summarise(ab, ba, votes, groups, bins=config.eval.ece_bins, **settings) for ab, ba in pairs]
        for name, pairs in logits.items()
    }
    losses = {
        name: np.array([log_loss_rows(predict(ab, ba), votes) for ab, ba in pairs]) for name, pairs in logits.items()
    }
    summary = summarise_seeds(metrics, losses, config.eval.seeds, groups, taught)
    (folder / MANIFEST).unlink()  # until it knows of the new file
    write_json(folder / "seeds.json", summary)
    return seeds_table(summary)


if __name__ == "__main__":
    entry_point(main)()
