"""Turn a trained student into a folder that transformers and vLLM load as it is: python -m distill.export +exp=demo

Merge the adapter into its base, quantise, and compare the result with the unquantised student on held-out
conversations: `fidelity.json`. Each step that is done already is not done again.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from distill.config import Config
from distill.door import door

if TYPE_CHECKING:
    from distill.records import Conversation
    from students.trained import TrainedJudge

log = logging.getLogger(__name__)


def main(config: Config) -> None:
    import shutil

    from distill import conversations, runs
    from students.quantising import quantise_w8a8
    from students.trained import open_trained

    student = config.root / "students" / config.run / f"fold={config.fold}"
    folder = export_folder(config)
    identity = {
        "run": config.run,
        "fold": config.fold,
        "format": config.export.format,
        "fidelity_rows": config.export.fidelity_rows,
    }
    judge = open_trained(student, config.root, "train the student first (make student)")
    if runs.is_finished(folder, "export", identity, [student], config.root, config.overwrite):
        log.info("%s is finished", folder)
        return

    merged = judge.merged(config.root)
    if config.export.format == "merged":
        shutil.copytree(merged, folder, ignore=shutil.ignore_patterns(runs.MANIFEST), dirs_exist_ok=True)
    else:
        quantise_w8a8(merged, folder)
    held_out = [
        c for c in conversations.load(config.root / "data" / config.data.name) if c.fold == config.fold and c.votes
    ]
    fidelity = compare(config, judge, merged, folder, held_out[: config.export.fidelity_rows])
    runs.write_json(folder / "fidelity.json", fidelity)
    runs.write_manifest(
        folder,
        "export",
        identity,
        [student],
        config.root,
        prompt=judge.manifest.prompt,
        rows={"fidelity": len(held_out[: config.export.fidelity_rows])},
    )
    log.info(
        "%s: log loss %.4f, unquantised %.4f; %.1f%% of verdicts differ",
        folder,
        fidelity["log_loss"],
        fidelity["student_log_loss"],
        100 * fidelity["flips"],
    )


def export_folder(config: Config) -> Path:
    """exports/<run>/<format>."""
    return config.root / "exports" / config.run / config.export.format


def compare(
    config: Config, judge: "TrainedJudge", merged: Path, exported: Path, rows: "list[Conversation]"
) -> dict[str, float]:
    """Log loss of both on the same rows, mean KL(student || export) in nats, and the share of verdicts that differ."""
    import numpy as np

    from distill.scoring import logits_by_order, score_conversations
    from eval.metrics import log_loss_rows, predict
    from teachers.scorers import open_scorer

    if not rows:
        raise ValueError(f"fold={config.fold} has no voted conversations to compare the export on: choose another fold")
    probabilities = []
    for model in (merged, exported):
        with open_scorer(model, config.export.scorer, judge.max_tokens) as scorer:
            scores = score_conversations(scorer, judge.renderer, rows)
            probabilities.append(predict(*logits_by_order(scores, [c.id for c in rows])))
    student, export = probabilities
    votes = np.array([c.votes for c in rows])
    return {
        "rows": len(rows),
        "student_log_loss": float(log_loss_rows(student, votes).mean()),
        "log_loss": float(log_loss_rows(export, votes).mean()),
        "mean_kl": float((student * np.log(student / export)).sum(1).mean()),
        "flips": float((student.argmax(1) != export.argmax(1)).mean()),
    }


if __name__ == "__main__":
    door(main)()
