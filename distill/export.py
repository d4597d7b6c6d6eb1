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
from pathlib import Path
from typing import TYPE_CHECKING

from core.exits import ChecksFailed
from distill.artefacts import data_folder, exported_judge
from distill.config import Config
from distill.entry_point import entry_point

if TYPE_CHECKING:
    from core.artefacts.building import Artefact
    from students.export.fold_average import Rows
    from students.trained import TrainedJudge

log = logging.getLogger(__name__)
READS = (
    "name fold seed overwrite check data.name export fidelity canaries scorers.check scorers.student "
    "t4 eval.bootstrap paths"
)


def main(config: Config) -> None:
    from core.artefacts.manifest import read_manifest
    from students.export.t4.checking import examine
    from students.export.t4.findings import broken_rules

    if config.check is not None:
        failed = broken_rules(examine(Path(config.check), config.t4, in_8bit(config), whole=True))
    else:
        judge, rows = judge_and_rows(config)
        artefact = exported_judge(config, judge.folder, judge.manifest.config["prompt"])
        with artefact.building(overwrite=config.overwrite) as lacking:
            if lacking:
                write_export(config, judge, rows, artefact)
        log.info("%s is finished", artefact.folder)
        failed = read_manifest(artefact.folder).extra["failed"]
    if failed:
        raise ChecksFailed("\n".join(["it failed its checks:", *(f"  - {reason}" for reason in failed)]))


def judge_and_rows(config: Config) -> "tuple[TrainedJudge, Rows]":
    """The student of the configured fold, or the average of `export.folds`; and the conversations for its export."""
    from eval.export_comparison import print_averages
    from students.export.fold_average import average, check_alike, open_fold, rows_of_average, rows_of_fold

    root, data = config.root, data_folder(config)
    folds = [open_fold(root / "students" / config.run, k, data, root) for k in config.export.folds or [config.fold]]
    if not config.export.folds:
        return folds[0], rows_of_fold(folds[0], data)
    check_alike(folds)
    rows = rows_of_average(folds, data)
    if config.export.compare_folds:
        below, draws = root / "exports" / config.run, config.eval.bootstrap
        print_averages(folds, rows.compared, config.scorers.student, below, root, draws=draws, seed=config.seed)
    return average(folds, config.export.average, root), rows


def write_export(config: Config, judge: "TrainedJudge", rows: "Rows", artefact: "Artefact") -> None:
    """Fill the folder of an export, and finish it."""
    from core.folders import copy_linked
    from core.json_files import write_json
    from core.labels import noted
    from core.pointwise import JUDGE
    from core.pointwise import noted as noted_choice
    from core.provenance import write_learned
    from eval.canaries.making import make_canaries
    from eval.export_comparison import exported, fit_to_votes, unquantised, write_fidelity
    from students.export.steps import export_model
    from students.export.t4.checking import examine
    from students.export.t4.findings import broken_rules, write_findings

    folder, export, scorer, seed = artefact.folder, config.export, config.scorers.check, config.seed
    # Merge and quantise.
    model = export_model(judge, export, rows.training, config.root, seed)
    copy_linked(model.folder, folder)
    write_learned(folder, judge.learned())
    if judge.choice is not None:
        write_json(folder / JUDGE, noted_choice(judge.choice))
    make_canaries(folder, model.folder, judge.renderer, scorer, export.dtype, config.canaries, rows.training, seed)
    # Compare.
    student = unquantised(judge, config.scorers.student, config.root)
    read, limits = exported(judge, model, scorer, config.root), (config.fidelity, config.eval.bootstrap, seed)
    failed = write_fidelity(folder, student, read, rows.compared, judge.learned(), *limits)
    fit_to_votes(folder, read, rows.validation, export.scaling)
    # Check: an export in another type than fp16 is meant for other GPUs.
    findings = examine(model.folder, config.t4, in_8bit(config))
    write_findings(folder, findings)
    failed += broken_rules(findings) if export.dtype == "fp16" else []
    artefact.finish(
        prompt=judge.manifest.prompt,
        rows={"calibration": export.calibration_rows, "fidelity": min(len(rows.compared), config.fidelity.rows)},
        extra={
            **model.extra,
            "failed": failed,
            "model": str(model.folder.relative_to(config.root)),
            **noted(judge.labels),
        },
    )


def in_8bit(config: Config) -> bool:
    """Whether the export is loaded in 8 bits where it is checked."""
    return config.scorers.check.in_transformers().load_in_8bit


if __name__ == "__main__":
    entry_point(main, READS, libraries=True)()
