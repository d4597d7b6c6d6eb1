"""One training from data to a finished folder: read, render, train, keep the best judge, write the manifest last."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from core import provenance
from core.labels import noted
from core.locks import alone
from core.models.encoders import check_room
from core.models.resolving import resolve
from core.prompts import Renderer, check_open
from students.training.collectives import process_group
from students.training.inputs import check_prompt, check_template, load_inputs
from students.training.loop import Trainer
from students.training.model import build_judge
from students.training.outcome import finished_log_loss, write_metrics
from students.training.ranks import fail_together, same_on_all_ranks
from students.training.recipe import TrainingRun
from students.training.tracking import open_tracker

log = logging.getLogger(__name__)


def train(run: TrainingRun) -> float:
    """This rank's part of the training; the validation log loss of the judge that is kept.

    A finished run is not trained again, and one that was killed resumes from its last checkpoint.
    """
    # What to learn from, and whether that is done already.
    artefact = run.artefact
    with fail_together():
        inputs = load_inputs(run)
        finished = not run.overwrite and artefact.is_finished()
    if same_on_all_ranks(finished, f"{run.folder} finished, or not"):
        log.info("%s is finished: validation log loss %.4f", run.folder, finished_log_loss(run.folder))
        return finished_log_loss(run.folder)

    with process_group() as (rank, world), ExitStack() as lock:
        # Render every example; nothing has been written yet.
        with fail_together():
            base = resolve(run.model.base, run.root, run.model.layers)
            renderer = Renderer(run.prompt, base)
            check_prompt(run.model.kind, run.prompt)
            check_room(base, run.prompt.max_tokens)
            if run.model.head == "label_tokens":
                check_open(renderer, "model.head=label_tokens", base)
            if run.soft_targets is not None:
                check_template(run.soft_targets, renderer.hashes)
            learned = inputs.learned(base)
            training, validation = inputs.examples(renderer, run.recipe.loss.rows)

        # Claim the folder: one process writes it.
        with fail_together():
            if rank == 0:
                lock.enter_context(alone(run.folder))
                artefact.claim(run.overwrite)
        log.info(
            "%s: %d conversations, %d for validation, fold %d left out, %d rank(s)",
            *(run.folder, len(training), len(validation), run.fold, world),
        )

        # Train, from the last checkpoint where there is one.
        with fail_together():
            tracker = open_tracker(run, rank, inputs.validation, inputs.labels)
            told = (run.recipe.engine, run.recipe.seed, run.prompt.label_tokens, inputs.labels)
            judge = build_judge(base, run.model, *told)
        trainer = Trainer(run.recipe, judge, training, validation, run.folder, tracker, run.trial, inputs.labels)
        state = trainer.train()

        # Write the results; the manifest is last.
        with fail_together():
            if rank == 0:
                provenance.write_learned(run.folder, learned)
                write_metrics(run.folder, judge, state, len(training), len(validation))
                artefact.finish(
                    prompt=renderer.hashes,
                    rows={"training": len(training), "validation": len(validation)},
                    extra={"base": str(base), "ranks": world, **noted(inputs.labels)},
                )
            tracker.finish()
    return log_kept(run.folder, state.kept)


def log_kept(folder: Path, kept: Mapping[str, Any]) -> float:
    """Report the history's record of the judge that is kept; its validation log loss."""
    log.info(
        "%s: step %d is kept: objective %.4f (standard error %.4f), log loss of the votes %.4f, on validation rows",
        folder,
        *(kept[name] for name in ("step", "validation_objective", "validation_standard_error", "validation_log_loss")),
    )
    return float(kept["validation_log_loss"])
