"""Who judges: what is found, what is named, what is refused or left out, and that nothing is asked twice."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from core.artefacts.building import Artefact
from core.artefacts.contents import MANIFEST
from core.artefacts.manifest import read_manifest
from core.data.table import load_conversations
from core.errors import UserError
from core.exits import ChecksFailed
from core.json_files import write_json
from core.prompts import Renderer
from core.provenance import LEARNED_FROM, Learned, behind_model, read_learned, union, write_learned
from core.records import ORDERS, Conversation
from core.scoring import logits_by_order
from core.store.parts import NO_FOLD
from core.store.rows import LOGITS
from core.store.seen import write_seen
from core.store.writing import StoreWriter
from core.tables import read_parquet
from distill import prepare, student
from distill.config import Config
from eval import __main__ as entry_point
from eval.judges import predictions as keeping
from eval.judges.answers import Engines, Unfit, ask
from eval.judges.candidates import Candidate, candidates, teacher_stores
from eval.judges.panel import Panel, ask_all
from eval.metrics import predict
from eval.recalibration import Recalibration, write_recalibration
from eval.results import SEEDS
from tests.artefacts import finish_again
from tests.composing import configured
from tests.device import Device
from tests.grids import grid
from tests.tiny_exports import tiny_export, with_swapped_labels

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Config:
    """A student, distilled from a store that holds the simulated law itself."""
    root = tmp_path_factory.mktemp("artifacts")
    base = f"model.base={tiny_llama}"
    config = configured("+exp=smoke", f"paths.root={root}", base, "model.layers=null", "train.epochs=1")
    config = replace(config, run="smoke")
    prepare.main(config)
    write_store(root / "logits" / "smoke", root, tiny_llama, config)
    student.main(replace(config, teacher=replace(config.teacher, rows="out_of_fold")))
    return config


def write_store(folder: Path, root: Path, base: Path, config: Config, leave_out: int = 0) -> None:
    """A finished store of the law of all conversations but the first few."""
    law = dict(pl.read_parquet(root / "data" / "smoke" / "law.parquet").rows())
    told = {"prompt_tokens": 1, "truncated": False, "judge_fold": NO_FOLD, "in_sample": False}
    rows = [
        {
            "id": c.id,
            "order": order,
            "logits": [math.log(x) for x in law[c.id]],
            **told,
            "fingerprint": c.sided_fingerprint(),
        }
        for c in held_out_and_training(config)[0][leave_out:] + held_out_and_training(config)[1]
        for order in ORDERS
    ]
    with StoreWriter(folder, {}, "the law") as writer:
        writer.append(pl.DataFrame(rows, schema=LOGITS))
    write_seen(folder, NO_FOLD, Learned())
    hashes = Renderer(config.prompt, base).hashes
    Artefact(folder, "teacher", {}, [root / "data" / "smoke"], root).finish(prompt=hashes)


def held_out_and_training(config: Config) -> tuple[list[Conversation], list[Conversation]]:
    rows = load_conversations(config.root / "data" / "smoke")
    return [c for c in rows if c.fold == config.fold], [c for c in rows if c.fold != config.fold]


def candidates_of(config: Config) -> list[Candidate]:
    return candidates(config.root, config.run, config.fold, teacher_stores(config.teacher), config.eval.judges)


def named(config: Config, name: str) -> Candidate:
    (candidate,) = [c for c in candidates_of(config) if c.name == name]
    return candidate


def engines(config: Config) -> Engines:
    return Engines(config.root, config.scorers.student, config.scorers.exported, config.canaries.on_failure)


def panel(config: Config, held_out: list[Conversation], training: list[Conversation]) -> Panel:
    return ask_all(candidates_of(config), held_out, training, engines(config))


def naming(config: Config, **judges: Path) -> Config:
    return replace(config, eval=replace(config.eval, judges={name: str(path) for name, path in judges.items()}))


def export_of(config: Config, name: str, parents: list[Path], learned: Learned | None = None, **changes: Any) -> Path:
    """A finished export of random weights below exports/<run>, made from `parents`."""
    folder = tiny_export(config.root / "exports" / config.run / name)
    write_learned(folder, learned or union(behind_model(parent) for parent in parents))
    manifest = read_manifest(folder, verify=False)
    settings = {"export": {"format": "merged", "folds": None}, "fold": config.fold, **manifest.config}
    for key, value in changes.items():
        settings[key] = settings[key] | value if isinstance(value, dict) else value
    artefact = Artefact(folder, "export", settings, parents, config.root)
    artefact.finish(prompt=manifest.prompt, extra={"failed": []})
    return folder


def test_all_that_is_there_judges_the_same_conversations(finished: Config, tmp_path: Path) -> None:
    held_out, training = held_out_and_training(finished)
    own = finished.root / "students" / "smoke" / "fold=0"
    folder = export_of(finished, "merged", [own])
    write_recalibration(folder, Recalibration((0.5, 0.5, 0.5), (0.0, 0.0, 0.0)), {"rows": 1})
    finish_again(folder)
    export_of(finished, "w8a16", [own], Learned(frozenset(c.fingerprint() for c in held_out[:1])), fold=1)
    answers = panel(finished, held_out, training).answers
    assert [*answers] == ["prior", "surface", "bradley_terry", "teacher", "student", "student_merged"]
    for of in answers.values():
        ab, ba = logits_by_order(of.scores, [c.id for c in held_out])
        assert np.isfinite(ab).all() and np.isfinite(ba).all()
    recalibration = answers["student_merged"].recalibration
    assert recalibration is not None and recalibration.scale == (0.5, 0.5, 0.5)
    assert answers["student"].artefact == own and answers["student_merged"].artefact == folder


@pytest.mark.long
def test_each_judge_leaves_the_device_to_the_next(finished: Config, device: Device) -> None:
    """vLLM, which comes after the student, wants nine tenths of the card."""
    held_out, training = held_out_and_training(finished)
    export = export_of(replace(finished, run="other"), "merged", [finished.root / "students" / "smoke" / "fold=0"])
    shutil.rmtree(finished.root / "predictions", ignore_errors=True)
    answers = panel(naming(finished, mine=export), held_out, training).answers
    assert {"student", "mine"} <= answers.keys()
    opened = device.events.count("opened")
    assert opened >= 3  # with the one that made the export's canaries
    device.check_left_free(opened)


@pytest.mark.long
def test_an_export_that_is_computed_otherwise_is_refused_or_marked(finished: Config, tmp_path: Path) -> None:
    held_out, _ = held_out_and_training(finished)
    plain = export_of(replace(finished, run="plain"), "merged", [finished.root / "students" / "smoke" / "fold=0"])
    mine = named(naming(finished, mine=with_swapped_labels(plain, tmp_path / "swapped")), "mine")
    with pytest.raises(UserError, match=r"computes something else here .* canaries.on_failure=warn continues"):
        ask(mine, held_out, engines(finished))
    answers = ask(mine, held_out, replace(engines(finished), canaries="warn"))
    assert "computes something else" in answers.failed[0]  # shown in table, metrics.json and report
    with pytest.raises(UserError, match="computes something else"):  # whatever was kept of it
        ask(mine, held_out, engines(finished))


@pytest.mark.long
def test_an_export_that_gives_no_answer_is_told_of_and_asked_again(
    finished: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = finished.root / "students" / "smoke" / "fold=0"
    export, folder = export_of(finished, "w4a16", [own]), finished.root / "eval" / "smoke"

    def broken(*_: Any) -> Any:
        raise UserError("a broken engine")

    with monkeypatch.context() as patch, pytest.raises(ChecksFailed, match=r"student_w4a16.* gave no answer"):
        patch.setattr(keeping, "check_canaries", broken)
        entry_point.main(replace(finished, overwrite=True))
    assert "student_w4a16 gave no answer: a broken engine" in capsys.readouterr().out
    assert "a broken engine" in (folder / "report.html").read_text()
    with pytest.raises(UserError, match=r"was made differently(.|\n)*limit"):  # another evaluation takes overwrite=true
        entry_point.main(replace(finished, limit=3))
    entry_point.main(finished)  # the engine is mended, no file has changed
    assert "student_w4a16" in json.loads((folder / "metrics.json").read_text())["judges"]
    shutil.rmtree(export)
    shutil.rmtree(folder)


def test_why_the_student_cannot_judge_is_said(finished: Config) -> None:
    held_out, training = held_out_and_training(finished)
    learned = read_learned(finished.root / "students" / "smoke" / "fold=0").directly
    with pytest.raises(UserError, match="was trained on 5 of the 5 conversations that are scored"):
        panel(finished, [c for c in training if c.fingerprint() in learned][:5], training)
    with pytest.raises(UserError, match=r"students/nobody/fold=0 is not there \(make student\)"):
        panel(replace(finished, run="nobody"), held_out, training)


def test_a_model_is_asked_once(finished: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out, training = held_out_and_training(finished)
    before = panel(finished, held_out, training).answers["student"].scores

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("asked again")

    monkeypatch.setattr(keeping, "open_scorer", refuse)
    other = finished.root / "logits" / "smoke"
    answers = panel(naming(finished, other=other), held_out, training).answers
    assert answers["student"].scores.equals(before)
    assert answers["other"].scores.equals(answers["teacher"].scores)
    changed = [replace(c, prompt=[*c.prompt, "and?"]) for c in held_out]
    with pytest.raises(AssertionError, match="asked again"):
        ask(named(finished, "student"), changed, engines(finished))


def test_conversations_that_look_the_same_in_both_orders_are_counted(finished: Config) -> None:
    """Responses that are equal, or differ only where the prompt's budget cuts them: no judge can tell a from b."""
    held_out, _ = held_out_and_training(finished)
    ends = ["begin " * 200, "finish " * 200]
    cut = replace(held_out[0], response_a=["this ".join(ends)], response_b=["that ".join(ends)])
    equal = replace(held_out[1], response_b=held_out[1].response_a)
    answers = ask(named(finished, "student"), [cut, equal, *held_out[2:]], engines(finished))
    assert answers.alike == 2


def test_who_has_learned_the_held_out_rows_cannot_judge_them(finished: Config) -> None:
    own = finished.root / "students" / "smoke" / "fold=0"
    learned = read_learned(own).directly
    rows = [c for c in held_out_and_training(finished)[1] if c.fingerprint() in learned][:5]
    export = export_of(replace(finished, run="copy"), "merged", [own])
    for path in (own, export):
        mine = named(naming(finished, mine=path), "mine")
        with pytest.raises(Unfit, match="was trained on 5 of the 5 conversations that are scored"):
            ask(mine, rows, engines(finished))


def test_exports_of_unknown_descent_cannot_be_named(finished: Config) -> None:
    held_out, _ = held_out_and_training(finished)
    export = export_of(replace(finished, run="averaged"), "merged", [finished.root / "students" / "smoke" / "fold=0"])
    mine = named(naming(finished, mine=export), "mine")
    ask(mine, held_out, engines(finished))
    (export / LEARNED_FROM).unlink()
    finish_again(export)
    with pytest.raises(Unfit, match=r"has no learned_from\.parquet"):
        ask(mine, held_out, engines(finished))


@pytest.mark.long
def test_an_export_of_another_student_is_refused(finished: Config) -> None:
    held_out, training = held_out_and_training(finished)
    folder = export_of(finished, "gguf", [finished.root / "students" / "smoke" / "fold=0"])
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["parents"] = dict.fromkeys(manifest["parents"], "0" * 64)
    write_json(folder / MANIFEST, manifest)
    with pytest.raises(ValueError, match="exported from another students/smoke/fold=0"):
        panel(finished, held_out, training)
    (folder / MANIFEST).unlink()


def test_a_store_that_lacks_rows_is_left_out_or_where_it_is_named_refused(
    finished: Config, tiny_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held_out, training = held_out_and_training(finished)
    store = finished.root / "logits" / "partly"
    write_store(store, finished.root, tiny_llama, finished, leave_out=3)
    partly = replace(finished, teacher=replace(finished.teacher, name="partly"))
    assert "teacher" not in panel(partly, held_out, training).answers
    assert "teacher left out" in caplog.text and f"lacks 3 of {len(held_out)}" in caplog.text
    with pytest.raises(ValueError, match=f"partly lacks 3 of {len(held_out)} conversations"):
        panel(naming(finished, other=store), held_out, training)
    moved = [replace(c, id=d.id) for c, d in zip(held_out, [*held_out[1:], held_out[0]], strict=True)]
    with pytest.raises(ValueError, match="judgements of other texts under the ids"):
        panel(naming(finished, other=finished.root / "logits" / "smoke"), moved, training)


def test_parts_of_a_mixture_judge_beside_it(finished: Config) -> None:
    mixture = replace(finished.teacher.mixture, teachers=["smoke", "absent"])
    found = candidates_of(replace(finished, teacher=replace(finished.teacher, kind="mixture", mixture=mixture)))
    assert [c.name for c in found[:3]] == ["teacher", "teacher_smoke", "teacher_absent"]
    assert found[1].path == finished.root / "logits" / "smoke"


def test_predictions_of_another_evaluation_can_be_named(finished: Config, tmp_path: Path) -> None:
    held_out, training = held_out_and_training(finished)
    mine = panel(finished, held_out, training).answers["student"].scores
    both = pl.concat([mine.with_columns(judge=pl.lit(name)) for name in ("student", "teacher")])
    both.with_columns(logits=pl.col("logits")).write_parquet(tmp_path / "predictions.parquet")
    other = naming(finished, other=tmp_path / "predictions.parquet")
    assert panel(other, held_out, training).answers["other"].scores.equals(mine)
    mine.drop("order").write_parquet(tmp_path / "predictions.parquet")
    with pytest.raises(ValueError, match=r"has no columns \['order'\]"):
        panel(other, held_out, training)
    mine.with_columns(logits=pl.lit("odd")).write_parquet(tmp_path / "predictions.parquet")
    with pytest.raises(UserError, match=r"predictions.parquet holds .*String.*, expected "):
        panel(other, held_out, training)
    for content, told in (
        (b"id,a\n1,2\n", "is damaged, or no parquet"),
        (b"\x1f\x8b", "compressed by gzip: unpack it"),
    ):
        (tmp_path / "predictions.parquet").write_bytes(content)
        with pytest.raises(UserError, match=rf"predictions.parquet .*{told}.*; a judge is a predictions.parquet"):
            panel(other, held_out, training)


@pytest.mark.parametrize(
    "name", grid(["student", "prior", "bayes", "student_w8a8", "a b", "<b>"], short=["student", "<b>"])
)
def test_names_are_new_and_plain(finished: Config, name: str) -> None:
    export_of(finished, "w8a8", [finished.root / "students" / "smoke" / "fold=0"])
    with pytest.raises(ValueError, match=f"eval.judges.{name}: choose another name"):
        candidates_of(naming(finished, **{name: finished.root / "logits" / "smoke"}))


def test_a_judge_that_is_not_there_is_named(finished: Config) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist"):
        candidates_of(naming(finished, other=finished.root / "nowhere"))
    with pytest.raises(ValueError, match="stage 'prepare' leaves no judge"):
        candidates_of(naming(finished, other=finished.root / "data" / "smoke"))


def test_the_entry_point_writes_what_it_says_and_resumes_only_as_it_began(
    finished: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("merged", "w8a8"):
        (finished.root / "exports" / "smoke" / name / MANIFEST).unlink(missing_ok=True)
    entry_point.main(finished)
    folder = finished.root / "eval" / "smoke"
    said = read_parquet(folder / "predictions.parquet")
    judges = json.loads((folder / "metrics.json").read_text())["judges"]
    assert set(said["judge"]) | {"bayes"} == set(judges)
    assert {"logits", "prompt_tokens", "truncated"} <= set(said.columns)
    assert said.filter(judge="student")["truncated"].null_count() == 0 == said["logits"].null_count()
    assert "✗" in capsys.readouterr().out
    written = (folder / "report.html").stat().st_mtime_ns
    entry_point.main(finished)
    assert (folder / "report.html").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"eval\.judges\.other"):
        entry_point.main(naming(finished, other=finished.root / "logits" / "smoke"))
    with pytest.raises(ValueError, match=r"eval.own names \['nobody'\]"):
        entry_point.main(replace(finished, overwrite=True, eval=replace(finished.eval, own={"nobody": "gpt"})))


def test_a_teacher_can_stand_for_the_votes(finished: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """Log loss is then the cross-entropy with its probabilities, of baselines, too, which are fitted to them."""
    entry_point.main(replace(finished, overwrite=True, eval=replace(finished.eval, truth="teacher")))
    told = " ".join(capsys.readouterr().out.split())
    assert "stand for votes" in told
    folder = finished.root / "eval" / "smoke"
    judges = json.loads((folder / "metrics.json").read_text())["judges"]
    said = read_parquet(folder / "predictions.parquet").filter(judge="student")
    ids = said["id"].unique(maintain_order=True).to_list()
    law = dict(read_parquet(finished.root / "data" / "smoke" / "law.parquet").rows())
    true = np.array([law[name] for name in ids])
    entropy = -(true * np.log(true)).sum(axis=1).mean()
    assert judges["teacher"]["log_loss"] == pytest.approx(entropy, abs=1e-5)
    assert "bayes" not in judges and "simulated true distribution" not in told, "the law of votes bounds nothing here"
    probabilities = predict(*logits_by_order(said, ids))
    assert judges["student"]["log_loss"] == pytest.approx(-(true * np.log(probabilities)).sum(axis=1).mean(), abs=1e-5)
    assert entropy < judges["surface"]["log_loss"] < judges["prior"]["log_loss"]
    lacking = finished.root / "logits" / "lacking"
    write_store(lacking, finished.root, Path(finished.model.base or ""), finished, leave_out=3)
    teacher = replace(finished.teacher, name="lacking")
    with pytest.raises(
        ValueError, match=r"eval.truth=teacher: .* lacks 3 of the \d+ conversations that are scored, such"
    ):
        entry_point.main(replace(finished, eval=replace(finished.eval, truth="teacher", split="fold"), teacher=teacher))


def test_seeds_are_judged_like_the_student(finished: Config, capsys: pytest.CaptureFixture[str]) -> None:
    students = finished.root / "students"
    for name in ("smoke,seed=1", "smoke,loss=votes", "smoke,loss=votes,seed=1"):
        shutil.copytree(students / "smoke", students / name, dirs_exist_ok=True)
    seeds = replace(finished.eval, seeds=[0, 1], variants=["loss=votes"])
    entry_point.main(replace(finished, overwrite=True, eval=seeds))
    assert "2 training seeds: 0, 1" in capsys.readouterr().out
    summary = json.loads((finished.root / "eval" / "smoke" / "seeds.json").read_text())
    metrics = json.loads((finished.root / "eval" / "smoke" / "metrics.json").read_text())
    assert summary["judges"]["student"]["log_loss"] == pytest.approx(metrics["judges"]["student"]["log_loss"])
    assert summary["gains"]["loss=votes"]["difference"] == pytest.approx(0) == metrics["gain"]["difference"]
    gain = metrics["judges"]["surface"]["log_loss"] - metrics["judges"]["student"]["log_loss"]
    assert summary["over_surface"]["student"]["difference"] == pytest.approx(gain)
    with pytest.raises(ValueError, match=r"student of seed 2 is missing; train it first: .* seed=2"):
        entry_point.main(replace(finished, eval=replace(seeds, seeds=[0, 2])))


def test_a_kill_while_seeds_are_added_leaves_an_evaluation_that_is_made_again(
    finished: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of seeds is there by then: it must not stay beside an evaluation by another truth."""
    folder = finished.root / "eval" / "smoke"
    shutil.copytree(
        finished.root / "students" / "smoke", finished.root / "students" / "smoke,seed=1", dirs_exist_ok=True
    )
    seeds = replace(finished, eval=replace(finished.eval, seeds=[0, 1], variants=[]))
    entry_point.main(replace(finished, overwrite=True))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Artefact, "finish", killed)
        entry_point.main(seeds)
    assert (folder / SEEDS).exists() and not (folder / MANIFEST).exists()
    entry_point.main(replace(finished, eval=replace(finished.eval, truth="teacher")))
    assert read_manifest(folder).config["eval"]["truth"] == "teacher" and not (folder / SEEDS).exists()
    entry_point.main(replace(seeds, overwrite=True))
    assert SEEDS in (read_manifest(folder).files or {})


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt
