"""Turn a trained student into a folder that runs on T4s: python -m distill.export +exp=demo

    average    the adapters of several folds as one, with export.folds=[0,1,2,3,4]
    merge      adapter and base as one classifier in fp16, of which it is known that no activation overflows
    quantise   to export.format
    compare    with the unquantised student, on conversations that it was not trained on: fidelity.json
    check      whether T4s can run the folder: t4.json

What is done already is not done again. An export that surely loses more than `fidelity` allows, or that T4s
cannot run, stays where it is, marked in its manifest, and the exit code is 1. `check=FOLDER` only examines a folder.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.config import to_mapping
from core.errors import UserError
from core.exits import ChecksFailed
from distill.config import Config
from distill.entry_point import entry_point
from students.export.config import T4Config
from teachers.scorers.config import through_transformers

if TYPE_CHECKING:
    from core.artefacts.building import Artefact
    from core.records import Conversation
    from eval.exports import ReadModel
    from students.export.steps import ExportModel
    from students.export.t4.findings import Finding
    from students.trained import TrainedJudge

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """What `training` taught the judge, `validation` chose of its checkpoints, and the export is `compared` on.

    None of them is of the test split, so that no choice between exports spoils it. The compared rows trained nothing
    of the judge itself; its teachers may have seen their votes, and `fidelity.json` says of how many (`taught`).
    """

    training: "list[Conversation]"
    validation: "list[Conversation]"
    compared: "list[Conversation]"


def main(config: Config) -> None:
    from core.artefacts.building import Artefact
    from core.artefacts.manifest import read_manifest
    from core.exported import export_folder
    from students.export.t4.findings import broken_rules

    if config.check is not None:
        in_8bit = through_transformers(config.scorers.check).load_in_8bit
        failed = broken_rules(examine(Path(config.check), config.t4, in_8bit))
    else:
        judge, rows = folds_average(config) if config.export.folds else one_fold(config)
        folder = export_folder(config.root, config.run, config.export.name)
        settings = {
            "export": to_mapping(config.export),
            "fold": config.fold,
            "prompt": judge.manifest.config["prompt"],
            "fidelity": to_mapping(config.fidelity),
            "canaries": {**to_mapping(config.canaries), "on_failure": None},
            "scorer": config.scorers.check.identity,
            "t4": {"memory_gb": config.t4.memory_gb, "batch_tokens": config.t4.batch_tokens},
        }
        artefact = Artefact(folder, "export", settings, [judge.folder], config.root)
        with artefact.building(overwrite=config.overwrite) as lacking:
            if lacking:
                write_export(config, judge, rows, artefact)
        log.info("%s is finished", folder)
        failed = read_manifest(folder).extra["failed"]
    if failed:
        raise ChecksFailed("\n".join(["it failed its checks:", *(f"  - {reason}" for reason in failed)]))


def one_fold(config: Config) -> "tuple[TrainedJudge, Rows]":
    """The student of the configured fold."""
    from core.data.table import load_conversations
    from students.export.folds import parts

    judge = trained_fold(config, config.fold)
    table = load_conversations(config.root / "data" / config.data.name)
    compared = [c for c in table if c.fold == config.fold and c.votes]
    if not compared:
        raise UserError(f"fold={config.fold} has no voted conversations to compare the export on: choose another fold")
    return judge, Rows(*parts(judge, table), compared)


def folds_average(config: Config) -> "tuple[TrainedJudge, Rows]":
    """The average of `export.folds`, compared on the validation rows that trained none of them."""
    from core.data.table import load_conversations
    from students.export.folds import average, check_alike, parts, unseen

    folds = [trained_fold(config, k) for k in config.export.folds or []]
    check_alike(folds)
    table = load_conversations(config.root / "data" / config.data.name)
    validation = unseen(folds, table)
    if config.export.compare_folds:
        compare_folds(config, folds, validation)
    return average(folds, config.export.average, config.root), Rows(parts(folds[0], table)[0], validation, validation)


def compare_folds(config: Config, folds: "Sequence[TrainedJudge]", rows: "list[Conversation]") -> None:
    """What averaging costs: log loss of folds, averages and ensemble, printed, and kept in exports/<run>/averages-*.

    On validation rows that trained none of them. Whoever chooses an average by it has not looked at the test split.
    """
    from rich.console import Console

    from core.artefacts.building import Artefact
    from core.artefacts.identity import identity_hash
    from core.json_files import write_json
    from eval.averages import Averages, averages_table
    from eval.bootstrap import Resampling
    from eval.exports import compare_folds as compared_folds
    from eval.results import read_result
    from students.export.folds import average, methods

    fold_names = [f"fold {fold.manifest.config['fold']}" for fold in folds]
    folder = config.root / "exports" / config.run / f"averages-{identity_hash([f.manifest.content for f in folds])}"
    identity = {"folds": fold_names, "rows": identity_hash([c.id for c in rows])}
    artefact = Artefact(folder, "averages", identity, [fold.folder for fold in folds], config.root)
    with artefact.building(wait=True) as lacking:
        if lacking:
            averages = {f"average, {name}": average(folds, name, config.root) for name in methods(folds)}
            judges = {**dict(zip(fold_names, folds, strict=True)), **averages}
            models = {name: unquantised(config, judge) for name, judge in judges.items()}
            folder.mkdir(parents=True, exist_ok=True)
            compared = compared_folds(models, fold_names, rows, Resampling(config.eval.bootstrap, config.seed))
            energy = {name: judge.manifest.extra["energy"] for name, judge in averages.items()}
            write_json(folder / "averages.json", {**asdict(compared), "energy": energy})
            artefact.finish(rows={"compared": len(rows)})
    Console().print(averages_table(read_result(Averages, folder / "averages.json")))


def write_export(config: Config, judge: "TrainedJudge", rows: Rows, artefact: "Artefact") -> None:
    """All steps from a trained judge to its export."""
    from core.provenance import write_learned
    from eval.bootstrap import Resampling
    from eval.canaries.making import make_canaries
    from eval.exports import compare_export, recalibrate
    from eval.fidelity import FIDELITY, exceeded, untold
    from eval.recalibration import write_recalibration
    from eval.results import write_result
    from students.export.steps import copy_linked, export_model
    from students.export.t4.findings import broken_rules, write_findings

    folder = artefact.folder
    made = export_model(judge, config.export, rows.training, config.root, config.seed)
    model = made.folder
    copy_linked(model, folder)
    make_canaries(
        folder,
        model,
        judge.renderer,
        config.scorers.check,
        config.export.dtype,
        config.canaries,
        rows.training,
        config.seed,
    )
    export, learned = exported(config, judge, made), judge.learned()
    found = compare_export(
        unquantised(config, judge),
        export,
        rows.compared,
        learned,
        config.fidelity,
        resampling=Resampling(config.eval.bootstrap, config.seed),
        bins=config.eval.ece_bins,
    )
    failed = exceeded(found.differences)
    for limit in untold(found.differences, found.rows):
        log.warning("%s: %s", folder, limit)
    write_result(folder / FIDELITY, found)
    write_learned(folder, learned)
    if config.export.scaling != "none":
        recalibration = recalibrate(export, rows.validation, config.export.scaling)
        write_recalibration(folder, recalibration, {"kind": config.export.scaling, "rows": len(rows.validation)})
    # The model's manifest holds its fp16 margin already.
    findings = examine(model, config.t4, through_transformers(config.scorers.check).load_in_8bit)
    write_findings(folder, findings)
    if config.export.dtype == "fp16":  # else it is meant for other GPUs
        failed += broken_rules(findings)
    artefact.finish(
        prompt=judge.manifest.prompt,
        rows={"calibration": config.export.calibration_rows, "fidelity": found.rows},
        extra={**made.extra, "failed": failed, "model": str(model.relative_to(config.root))},
    )
    log.info(
        "%s: log loss %.4f, unquantised %.4f; %.1f%% of verdicts differ",
        folder,
        found.log_loss,
        found.student_log_loss,
        100 * found.differences["verdicts"].difference,
    )


def examine(model: Path, t4: T4Config, load_in_8bit: bool) -> "list[Finding]":
    """Print what `students.export.t4` finds in an exported model."""
    from rich.console import Console

    from students.export.t4.checking import check_t4
    from students.export.t4.findings import findings_table

    findings = check_t4(model, t4, load_in_8bit=load_in_8bit)
    Console().print(findings_table(model, findings))
    return findings


def trained_fold(config: Config, fold: int) -> "TrainedJudge":
    """A finished student of the configured run. Raises `UserError` where the data, and so the folds, changed since."""
    from core.artefacts.manifest import made_from
    from students.trained import open_trained

    folder = config.root / "students" / config.run / f"fold={fold}"
    judge = open_trained(folder, config.root, "train the student first (make student)")
    if not made_from(judge.manifest, [config.root / "data" / config.data.name], config.root):
        raise UserError(
            f"{folder} was trained on other data than data.name={config.data.name} holds now, so nobody can tell "
            "what is held out from it: prepare the data as they were, or train it again with overwrite=true"
        )
    return judge


def unquantised(config: Config, judge: "TrainedJudge") -> "ReadModel":
    """What an export is compared with: base and adapter merged in fp32, whatever the type of the base."""
    import torch

    from eval.exports import ReadModel

    model = judge.merged(config.root, torch.float32)
    return ReadModel(
        model, judge.manifest.content, judge.renderer, replace(config.scorers.student, dtype="fp32"), config.root
    )


def exported(config: Config, judge: "TrainedJudge", made: "ExportModel") -> "ReadModel":
    """A model that was made of a judge."""
    from eval.exports import ReadModel

    return ReadModel(made.folder, made.content, judge.renderer, config.scorers.check, config.root)


if __name__ == "__main__":
    entry_point(main)()
