"""Compare the judges of an experiment on its held-out fold: python -m eval +exp=demo

Prints a table and writes eval/<run>/predictions.parquet, metrics.json and report.html. `+eval.judges.other=FOLDER` adds
a judge. `eval.seeds=[0,1,2]` adds what the student gains over its variants (`eval.variants`) over those training
seeds: seeds.json.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from distill.config import Config, to_mapping
from distill.door import door
from distill.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from distill.records import Conversation
    from eval.judges import Judges


def main(config: Config) -> None:
    from rich.console import Console

    from distill import conversations, runs
    from eval.judges import candidates, file_digests, judge_all
    from eval.report.page import bayes_line, surface_line, table

    folder = config.root / "eval" / config.run
    data = config.root / "data" / config.data.name
    rows = conversations.load(data)
    held_out = [c for c in rows if c.fold == config.fold and c.votes][: config.limit]
    if not held_out:
        raise UserError(
            f"fold={config.fold} of data/{config.data.name} has no votes to evaluate on: "
            "choose another fold or data set"
        )
    found = candidates(config)
    over_seeds = ("seeds", "variants")  # compared below, whether or not the rest is there already
    settings = {name: value for name, value in to_mapping(config)["eval"].items() if name not in over_seeds}
    identity = {"fold": config.fold, "limit": config.limit, "eval": settings, "files": file_digests(found)}
    artefacts = dict.fromkeys([data, *(candidate.artefact for candidate in found)])
    parents = [artefact for artefact in artefacts if (artefact / runs.MANIFEST).exists()]
    inputs = [candidate.path for candidate in found]
    with runs.making(
        folder, "eval", identity, parents, config.root, inputs=inputs, overwrite=config.overwrite
    ) as lacking:
        if lacking:
            folder.mkdir(parents=True, exist_ok=True)
            judges = judge_all(config, found, held_out, [c for c in rows if c.fold != config.fold])
            write_evaluation(config, folder, judges, held_out)
            runs.write_manifest(folder, "eval", identity, parents, config.root, rows={"held_out": len(held_out)})
    metrics = json.loads((folder / "metrics.json").read_text())
    console = Console()
    console.print(table(metrics["judges"]))
    for line in (surface_line(metrics), bayes_line(metrics)):
        if line is not None:
            console.print(line)
    if config.eval.seeds:
        console.print(compare_seeds(config, folder, held_out))
    console.print(f"report: {folder / 'report.html'}")


def write_evaluation(config: Config, folder: Path, judges: "Judges", held_out: "list[Conversation]") -> None:
    """predictions.parquet, metrics.json and report.html from what the judges said."""
    import polars as pl

    from distill import runs
    from distill.tables import read_parquet
    from eval.judges import HISTORY
    from eval.measuring import measure
    from eval.report.lineage import trace
    from eval.report.page import write_report

    said = [frame.select(pl.lit(name).alias("judge"), pl.all()) for name, frame in judges.predictions.items()]
    pl.concat(said, how="diagonal").write_parquet(folder / "predictions.parquet")
    data = config.root / "data" / config.data.name
    law = None
    if (data / "law.parquet").exists():  # a simulated arena: its law is one more judge, and its entropy the bound
        ids = pl.DataFrame({"id": [c.id for c in held_out]})
        law = ids.join(read_parquet(data / "law.parquet"), on="id", how="left", maintain_order="left")
    metrics = measure(judges, held_out, law, config.eval, config.seed)
    runs.write_json(folder / "metrics.json", metrics)
    write_report(
        folder / "report.html",
        name=config.run,
        metrics=metrics,
        conversations={c.id: c for c in held_out},
        histories={
            name: read_parquet(path / HISTORY) for name, path in judges.artefacts.items() if (path / HISTORY).exists()
        },
        lineage=trace(judges.artefacts, data, config.root),
    )


def compare_seeds(config: Config, folder: Path, held_out: "list[Conversation]") -> "Table":
    """The student against `eval.variants` over `eval.seeds`; writes seeds.json and returns its table."""
    import numpy as np

    from distill import runs
    from distill.scoring import logits_by_order
    from eval.judges import judge_seeds
    from eval.metrics import log_loss_rows, predict, summarise
    from eval.seeds import seeds_table, summarise_seeds

    ids, groups = [c.id for c in held_out], [c.group for c in held_out]
    votes = np.array([c.votes for c in held_out])
    settings = {"draws": config.eval.bootstrap, "seed": config.seed}
    logits = {
        name: [logits_by_order(frame, ids) for frame in frames]
        for name, frames in judge_seeds(config, held_out).items()
    }
    metrics = {
        name: [summarise(ab, ba, votes, groups, bins=config.eval.ece_bins, **settings) for ab, ba in pairs]
        for name, pairs in logits.items()
    }
    losses = {
        name: np.array([log_loss_rows(predict(ab, ba), votes) for ab, ba in pairs]) for name, pairs in logits.items()
    }
    summary = summarise_seeds(metrics, losses, config.eval.seeds, groups, **settings)
    runs.write_json(folder / "seeds.json", summary)
    return seeds_table(summary)


if __name__ == "__main__":
    door(main)()
