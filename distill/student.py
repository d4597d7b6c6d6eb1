"""Train one judge on one fold: python -m distill.student +exp=demo

`role=student` (default) distils a teacher's logits and the votes; `role=teacher` trains on votes alone and writes
below teachers/, where distill.teacher finds it. `-m fold=0,1,2,3,4` trains all folds, `-m loss=votes,distill,wsdm3`
sweeps; `deepspeed --module --no_local_rank --num_accelerators 2 distill.student +exp=demo` uses two ranks. A run that
was killed goes on from its last checkpoint. Returns the kept judge's validation log loss, which a sweep minimises.
"""

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from core.errors import UserError
from distill.config import Config
from distill.entry_point import entry_point
from distill.training_run import run_folder, run_identity

if TYPE_CHECKING:
    from students.training.loop import Progress
    from students.training.model import Judge

log = logging.getLogger(__name__)


def main(config: Config) -> float:
    """Train on as many ranks as the launcher started; the validation log loss of the judge that is kept."""
    from students.training.ranks import all_ranks

    with all_ranks():
        return train(config)


def train(config: Config) -> float:
    """The part of one rank."""
    import json
    from contextlib import ExitStack

    from core import provenance
    from core.artefacts.building import Artefact
    from core.data.table import load_conversations
    from core.json_files import write_json
    from core.locks import alone
    from core.models.resolving import resolve
    from core.prompts import Renderer
    from core.store.targets import soft_targets
    from students.training.collectives import process_group
    from students.training.data import make_examples, split
    from students.training.loop import Trainer
    from students.training.model import build_judge
    from students.training.ranks import common, together
    from students.training.tracking import open_tracker

    if config.role == "teacher":
        config = replace(config, loss=config.loss.of_votes_alone())
    folder = run_folder(config)
    data = config.root / "data" / config.data.name
    store = config.root / "logits" / str(config.teacher.name)
    distils = config.loss.distils
    parents = [data, store] if distils else [data]
    artefact = Artefact(folder, "student", run_identity(config), parents, config.root)
    targets = None
    with together():
        rows = load_conversations(data)[: config.limit]
        if distils and config.teacher.name is None:
            raise UserError(
                "teacher.name=null: name the teacher whose logits to distil, or train on votes with loss=votes"
            )
        training, validation = split(rows, config.fold, config.train.validation_share)
        if distils:
            both = [*training, *validation]
            targets = soft_targets(store, both, config.fold, config.teacher.rows, config.teacher.max_entropy)
            training = [c for c in training if c.id not in targets.left_out]
        elif unvoted := sum(c.votes is None for c in training):
            log.info("%d of %d conversations without votes are left out: nothing to learn from", unvoted, len(training))
            training = [c for c in training if c.votes]
        finished = not config.overwrite and artefact.is_finished()
    if common(finished, f"{folder} finished, or not"):
        metrics = json.loads((folder / "metrics.json").read_text())
        log.info("%s is finished: validation log loss %.4f", folder, metrics["validation_log_loss"])
        return float(metrics["validation_log_loss"])

    with process_group() as (rank, world), ExitStack() as held_open:
        with together():
            base = resolve(config.model.base, config.root, config.model.layers)
            renderer = Renderer(config.prompt, base)
            check_template(config, renderer.hashes["template"]) if distils else None
            learned = provenance.Learned.of([*training, *validation]) | provenance.behind_model(base)
            learned = learned if targets is None else learned | targets.learned
            logits = None if targets is None else targets.logits
            examples = make_examples(training, renderer.render(training), logits, config.loss.rows)
            held = make_examples(validation, renderer.render(validation), logits, config.loss.rows)
        with together():
            if rank == 0:
                held_open.enter_context(alone(folder))
                artefact.claim(config.overwrite)
        log.info(
            "%s: %d conversations, %d for validation, fold %d left out, %d rank(s)",
            *(folder, len(examples), len(held), config.fold, world),
        )
        with together():
            tracker = open_tracker(config, folder, rank, validation)
            judge = build_judge(base, config.model, config.engine, config.seed)
        progress = Trainer(config, judge, examples, held, folder, tracker).train()
        with together():
            if rank == 0:
                provenance.write_learned(folder, learned)
                write_json(folder / "metrics.json", summary(judge, progress, len(examples), len(held)))
                artefact.finish(
                    prompt=renderer.hashes,
                    rows={"training": len(examples), "validation": len(held)},
                    extra={"base": str(base), "ranks": world},
                )
            tracker.finish()
    kept = progress.kept
    log.info(
        "%s: step %d is kept: objective %.4f (standard error %.4f), log loss of the votes %.4f, on validation rows",
        folder,
        *(kept[name] for name in ("step", "validation_objective", "validation_standard_error", "validation_log_loss")),
    )
    return float(kept["validation_log_loss"])


def check_template(config: Config, template: str) -> None:
    """Refuse targets of a teacher that was shown another template, unless `teacher.same_prompt` is off."""
    from core.artefacts.manifest import read_manifest

    store = config.root / "logits" / str(config.teacher.name)
    theirs = read_manifest(store, "teacher").prompt["template"]
    if config.teacher.same_prompt and theirs != template:
        raise UserError(
            f"{store} was made with prompt template {theirs}, this run renders {template}: "
            "use the teacher's prompt.template, score again with the new one, "
            "or allow the difference with teacher.same_prompt=false"
        )


def summary(judge: "Judge", progress: "Progress", training: int, validation: int) -> dict[str, object]:
    """What metrics.json holds."""
    tokens, seconds = (sum(record[key] for record in progress.history) for key in ("tokens", "seconds"))
    kept = progress.kept
    error = kept["validation_standard_error"]
    return {
        "validation_log_loss": kept["validation_log_loss"],
        "validation_objective": kept["validation_objective"],
        "validation_standard_error": error if math.isfinite(error) else None,
        "best_step": kept["step"],
        "steps": progress.step,
        "conversations": training,
        "validation_conversations": validation,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "padding": sum(record["padding"] * record["tokens"] for record in progress.history) / tokens,
        "trainable_parameters": sum(
            getattr(p, "ds_numel", p.numel())  # ZeRO-3 leaves a rank a part of each, or none
            for part in judge.trainable()
            for p in part
        ),
    }


if __name__ == "__main__":
    entry_point(main)()
