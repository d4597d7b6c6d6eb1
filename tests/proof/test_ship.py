"""A judge that is shipped: what may not be is refused, and its card and its files tell where it comes from."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from core.data.arena_sim import simulate
from core.data.config import SimulateConfig
from core.errors import UserError
from core.exported import is_packed
from core.json_files import write_json
from core.records import LABELS
from distill import export, prepare, student
from eval.__main__ import main as evaluate
from eval.evaluation import METRICS
from proof.card import CARD
from proof.ship import main, ship
from proof.shippable import MACHINE_PATH, check_no_machine_paths
from proof.sources.lmsys_row import lmsys_row
from proof.sources.making import as_table, digest
from proof.sources.source import Base, Source
from proof.sources.table import SOURCES
from tests.artefacts import finish_again
from tests.composing import configured

pytestmark = pytest.mark.timeout(300)
ROOT, RUN, EXPORT, EVALUATION = map(
    Path, ("artifacts", "artifacts/students/smoke/fold=0", "artifacts/exports/smoke/merged", "artifacts/eval/smoke")
)
BASES = {"tiny": Base("a model of two layers", "https://example.org/tiny", "the licence of the tiny one")}
Sources = dict[str, Source]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[Sources]:
    """Two sources, and a judge of both with its export and evaluation, made in the folder that is the current one."""
    with contextlib.chdir(tmp_path_factory.mktemp("shipping")):
        shutil.copytree(tiny_llama, "tiny")
        found = {name: written(name, seed) for seed, name in enumerate(("first", "second"))}
        config = configured(
            *("+exp=smoke", "paths.root=artifacts", "model.base=tiny", "model.layers=null", "train.epochs=1"),
            *("data.simulate=null", "data.files=[first/votes.csv,second/votes.csv]", "loss=votes"),
            *("model.kind=pointwise", "prompt=pointwise", "prompt.max_tokens=160", "canaries.rows=8"),
            *(
                "export.format=merged",
                "export.dtype=fp32",
                "canaries.repeats=2",
                "teacher.folds=[]",
                "tracker.samples=0",
            ),
            *(f"scorer@scorers.{role}=transformers" for role in ("check", "student", "exported")),
        )
        config = replace(config, run="smoke")
        for stage in (prepare.main, student.main, export.main, evaluate):
            stage(config)
        yield found


def written(name: str, seed: int) -> Source:
    """A source of simulated votes, in its file."""
    rows = [
        lmsys_row(i, (c.model_a, c.model_b), c.prompt[0], (c.response_a[0], c.response_b[0]), LABELS[votes.index(1)])
        for i, c in enumerate(simulate(SimulateConfig(40, seed=seed + 1))[0])
        if (votes := c.votes)
    ]
    table = as_table(rows)
    Path(name).mkdir()
    table.write_csv(Path(name, "votes.csv"))
    row = replace(SOURCES["llmfao"], name=f"set_{name}", licence=f"the licence of {name}", repository=f"owner/{name}")
    return replace(row, digest=digest(table))


def shipped(sources: Sources, output: str, evaluation: Path = EVALUATION, export: Path = EXPORT) -> Path:
    ship(RUN, export, Path(output), evaluation, ROOT, sources, BASES)
    return Path(output)


def test_the_card_names_each_source_its_licence_and_the_figures_of_the_evaluation(sources: Sources) -> None:
    folder = shipped(sources, "judges/small")
    card = (folder / CARD).read_text()
    assert is_packed(folder)
    for source in sources.values():
        assert all(text in card for text in (source.name, source.licence, source.url, source.commit[:12]))
    base = BASES["tiny"]
    assert all(text in card for text in (base.about, base.url, base.licence))
    metrics = json.loads((EVALUATION / METRICS).read_text())
    of = metrics["judges"]["student_merged"]
    assert f"{of['log_loss']:.4f} ({of['log_loss_ci'][0]:.4f} to {of['log_loss_ci'][1]:.4f})" in card
    rows = json.loads((RUN / "manifest.json").read_text())["rows"]
    assert f"{rows['training']:,} trained it" in card and f"{rows['validation']:,} chose its checkpoint" in card
    assert "serve.model=judges/small" in card and "One training seed" in card
    held = pl.read_parquet(folder / "export" / "canaries.parquet")["id"].str.split("/").list.first()
    counts = {name: f"| {(held == name).sum()} |" for name in sources}
    lines = {name: next(line for line in card.splitlines() if f"`set_{name}`" in line) for name in sources}
    assert all(lines[name].endswith(counts[name]) for name in sources)


def test_it_holds_no_path_of_the_machine_that_made_it(sources: Sources) -> None:
    folder = shipped(sources, "judges/clean")
    text = "".join(path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file())
    assert str(Path.cwd()) not in text and str(Path(__file__).parents[2]) not in text
    manifest = folder / "run" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"command": "', '"command": "paths.root=/home/me/artifacts '))
    with pytest.raises(UserError, match=r"run/manifest.json holds a path of this machine, /home/me/artifacts: train"):
        check_no_machine_paths(folder)


def test_samples_of_the_data_are_not_shipped(sources: Sources) -> None:
    shutil.copytree(RUN, "artifacts/students/samples/fold=0")
    samples = Path("artifacts/students/samples/fold=0/samples.parquet")
    pl.DataFrame({"prompt": ["somebody's question"]}).write_parquet(samples)
    finish_again(samples.parent)
    with pytest.raises(UserError, match=r"samples.parquet holds texts of the data: .* tracker.samples=0"):
        ship(samples.parent, EXPORT, Path("judges/samples"), EVALUATION, ROOT, sources, BASES)


@pytest.mark.parametrize("text", ["https://example.org/a/b", "artifacts/models/x", "../shared/data/a", "a/b or c"])
def test_what_is_no_path_of_a_machine_is_let_pass(text: str) -> None:
    assert not MACHINE_PATH.search(json.dumps({"key": text}))


def closed(sources: Sources) -> Sources:
    return sources | {"second": replace(sources["second"], shippable=False)}


def unlisted(sources: Sources) -> Sources:
    return {"first": sources["first"]}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (closed, r"fold=0 learned from \d+ conversations of set_second, which are for measurements only"),
        (unlisted, r"fold=0 learned from \d+ conversations of second, a file that is not in proof/sources/table.py"),
    ],
)
def test_what_may_not_be_shipped_is_refused_and_leaves_what_was_there(
    changed: Callable[[Sources], Sources], told: str, sources: Sources
) -> None:
    before = shipped(sources, "judges/kept") / CARD
    text = before.read_text()
    with pytest.raises(UserError, match=told):
        shipped(changed(sources), "judges/kept")
    assert before.read_text() == text and not [*Path("judges").glob(".kept*")]


def test_a_base_without_a_known_licence_is_refused(sources: Sources) -> None:
    with pytest.raises(UserError, match=r"was trained from tiny, whose licence is not in proof/sources/table.py"):
        ship(RUN, EXPORT, Path("judges/other"), EVALUATION, ROOT, sources, {})


def test_conversations_that_the_data_do_not_hold_are_refused(sources: Sources) -> None:
    other = Path(shutil.copytree(EXPORT, "other"))
    learned = pl.read_parquet(other / "learned_from.parquet")
    strange = learned.head(1).with_columns(fingerprint=pl.lit(7, pl.UInt64))
    pl.concat([learned, strange]).write_parquet(other / "learned_from.parquet")
    finish_again(other)
    with pytest.raises(UserError, match=r"learned from 1 conversations that artifacts/data/smoke does not hold"):
        shipped(sources, "judges/other", export=other)


def test_a_teacher_whose_terms_nobody_knows_is_refused(sources: Sources) -> None:
    run = Path(shutil.copytree(RUN, "taught"))
    manifest = json.loads((run / "manifest.json").read_text())
    write_json(run / "manifest.json", manifest | {"parents": manifest["parents"] | {"logits/gpt4_turbo": "0" * 64}})
    with pytest.raises(UserError, match="taught learned from logits/gpt4_turbo, whose terms nobody has checked"):
        ship(run, EXPORT, Path("judges/other"), EVALUATION, ROOT, sources, BASES)


def test_data_that_changed_since_the_training_are_refused(sources: Sources) -> None:
    run = Path(shutil.copytree(RUN, "older"))
    manifest = json.loads((run / "manifest.json").read_text())
    write_json(run / "manifest.json", manifest | {"parents": dict.fromkeys(manifest["parents"], "0" * 64)})
    with pytest.raises(UserError, match=r"artifacts/data/smoke is not what older was trained on: train it again"):
        ship(run, EXPORT, Path("judges/other"), EVALUATION, ROOT, sources, BASES)


def test_the_command_refuses_with_one_sentence(sources: Sources, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(RUN), str(EXPORT), "judges/other", "--evaluation", str(EVALUATION)])  # by the real table
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1 and "tiny" in told


def test_an_evaluation_of_another_judge_is_refused(sources: Sources) -> None:
    other = Path(shutil.copytree(EVALUATION, "elsewhere"))
    manifest = json.loads((other / "manifest.json").read_text())
    write_json(other / "manifest.json", manifest | {"parents": dict.fromkeys(manifest["parents"], "0" * 64)})
    with pytest.raises(UserError, match="elsewhere does not tell how good this judge is"):
        shipped(sources, "judges/other", other)
