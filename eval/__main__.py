"""Compare the judges of an experiment on its held-out fold: python -m eval +exp=demo

Prints a table and writes eval/<run>/predictions.parquet, metrics.json and report.html. `eval.seeds=[0,1,2]` adds what
the student gains over its variants (`eval.variants`) over those training seeds: seeds.json.
"""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from distill.config import Config, to_mapping
from distill.door import door

if TYPE_CHECKING:
    from rich.table import Table

    from distill.records import Conversation
    from eval.judges import Judges

log = logging.getLogger(__name__)


def main(config: Config) -> None:
    import polars as pl
    from rich.console import Console

    from distill import conversations, runs
    from eval.judges import judge_all
    from eval.report import table

    folder = config.root / "eval" / config.run
    data = config.root / "data" / config.data.name
    rows = conversations.load(data)
    held_out = [c for c in rows if c.fold == config.fold and c.votes][: config.limit]
    if not held_out:
        raise ValueError(
            f"fold={config.fold} of data/{config.data.name} has no votes to evaluate on: "
            "choose another fold or data set"
        )
    over_seeds = ("seeds", "variants")  # compared below, whether or not the rest is there already
    settings = {name: value for name, value in to_mapping(config)["eval"].items() if name not in over_seeds}
    identity = {"fold": config.fold, "limit": config.limit, "eval": settings}
    if not runs.is_finished(folder, "eval", identity, parents(config), config.root, config.overwrite):
        folder.mkdir(parents=True, exist_ok=True)
        judges = judge_all(config, held_out, [c for c in rows if c.fold != config.fold])
        frames = [
            frame.select(pl.lit(name).alias("judge"), "id", "order", "logits")
            for name, frame in judges.predictions.items()
        ]
        pl.concat(frames).write_parquet(folder / "predictions.parquet")
        write_metrics(config, folder, data, judges, held_out)
        runs.write_manifest(folder, "eval", identity, parents(config), config.root, rows={"held_out": len(held_out)})
    metrics = json.loads((folder / "metrics.json").read_text())
    console = Console()
    console.print(table(metrics["judges"]))
    if metrics["bayes"] is not None:
        console.print(
            f"No judge can expect less than {metrics['bayes']:.4f} on these {metrics['rows']} conversations "
            "(the entropy of the simulated law)."
        )
    if config.eval.seeds:
        console.print(compare_seeds(config, folder, held_out))
    console.print(f"report: {folder / 'report.html'}")


def parents(config: Config) -> list[Path]:
    """The artefacts that this evaluation reads, as far as they are finished."""
    from distill.runs import MANIFEST
    from eval.judges import NO_TEACHER, variant

    root, fold = config.root, f"fold={config.fold}"
    found = [
        root / "data" / config.data.name,
        root / "logits" / str(config.teacher.name),
        root / "students" / variant(config.run, NO_TEACHER) / fold,
        root / "students" / config.run / fold,
        root / "exports" / config.run / "w8a8",
    ]
    return [folder for folder in found if (folder / MANIFEST).exists()]


def write_metrics(config: Config, folder: Path, data: Path, judges: "Judges", held_out: "list[Conversation]") -> None:
    """metrics.json and report.html from the judges' predictions."""
    import numpy as np
    import polars as pl

    from distill import runs
    from distill.arena_sim import bayes_log_loss
    from distill.scoring import logits_by_order
    from eval.metrics import log_loss_rows, paired_difference, predict, summarise
    from eval.report import write_report

    settings = {"draws": config.eval.bootstrap, "seed": config.seed}
    ids, groups = [c.id for c in held_out], [c.group for c in held_out]
    votes = np.array([c.votes for c in held_out])
    logits = {name: logits_by_order(frame, ids) for name, frame in judges.predictions.items()}
    bayes = None
    if (data / "law.parquet").exists():  # a simulated arena: its law is one more judge, and its entropy the bound
        law = pl.read_parquet(data / "law.parquet")
        law = pl.DataFrame({"id": ids}).join(law, on="id", how="left", maintain_order="left")
        bayes, truth = bayes_log_loss(law), np.log(law["probabilities"].to_numpy())
        logits["bayes"] = (truth, truth)
    metrics = {
        name: summarise(ab, ba, votes, groups, bins=config.eval.ece_bins, **settings)
        for name, (ab, ba) in logits.items()
    }
    losses = {name: log_loss_rows(predict(ab, ba), votes) for name, (ab, ba) in logits.items()}
    gain = (
        paired_difference(losses["student_no_teacher"], losses["student"], groups, **settings)
        if "student_no_teacher" in losses
        else None
    )
    runs.write_json(folder / "metrics.json", {"rows": len(held_out), "bayes": bayes, "judges": metrics, "gain": gain})
    write_report(
        folder / "report.html",
        name=config.run,
        metrics=metrics,
        gain=gain,
        conversations=held_out,
        probabilities=predict(*logits["student"]),
        bins=config.eval.ece_bins,
        draws=config.eval.bootstrap,
        history=pl.read_parquet(judges.artefacts["student"] / "history.parquet"),
        lineage={
            name: (str(path.relative_to(config.root)), runs.read_manifest(path))
            for name, path in judges.artefacts.items()
        },
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
