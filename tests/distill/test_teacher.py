"""The teacher stage as a whole: killed at any moment, leak-proof, extended, mixed; the real models, the real store."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest
from scipy.special import log_softmax

from core.artefacts.contents import MANIFEST
from core.artefacts.manifest import read_manifest
from core.data.public import public_folder
from core.data.table import CONVERSATIONS as TABLE
from core.data.table import load_conversations, to_frame
from core.provenance import read_learned
from core.records import LABELS, ORDERS, TEST, Conversation
from core.store.reading import read_logits, read_parts
from core.store.rows import LOGITS
from core.store.seen import write_seen
from core.store.targets import entropy, soft_targets
from core.store.writing import StoreWriter
from distill import prepare, student, teacher
from distill.config import Config
from distill.logits import logits_folder
from eval.judges.answers import Engines, ask
from eval.judges.candidates import candidates
from eval.report.terminal import provenance
from tests.artefacts import finish_again
from tests.composing import configured
from tests.running import ROOT, own_process, start_command, succeeds
from tests.tiny_models import tiny_judge

pytestmark = pytest.mark.timeout(600)
CONVERSATIONS = 150
FOLDS = [0, 1, 2]
HUMAN = ROOT / public_folder() / "pandalm_testset" / "lmsys_schema.csv"
Configure = Callable[..., Config]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


def overrides(root: Path, base: Path, *more: str) -> list[str]:
    return [
        "+exp=smoke",
        f"paths.root={root}",
        f"model.base={base}",
        "model.layers=null",
        f"data.simulate.conversations={CONVERSATIONS}",
        "data.folds.count=3",
        f"teacher.folds={FOLDS}",
        "teacher.rows=out_of_fold",
        "teacher.rows_per_part=5",
        "scorers.teacher.batch_tokens=512",
        "scorer@scorers.teacher=transformers",
        *more,
    ]


@pytest.fixture(scope="module")
def configure(root: Path, tiny_llama: Path) -> Configure:
    """A configuration of this module's arena, which has three fold teachers."""

    def build(*more: str) -> Config:
        return replace(configured(*overrides(root, tiny_llama, *more)), run="tiny")

    prepare.main(build())
    for fold in FOLDS:
        student.main(replace(build("role=teacher", f"fold={fold}"), run="smoke"))
    return build


@pytest.fixture(scope="module")
def straight(configure: Configure) -> pl.DataFrame:
    """The store of a run that nothing stopped."""
    config = configure()
    teacher.main(config)
    return read_logits(logits_folder(config), "")


@pytest.fixture(scope="module")
def in_fold(configure: Configure) -> Config:
    """That of a store for which each teacher scored every conversation, whatever it had learned."""
    config = replace_name(configure("teacher.rows=in_fold"), "in_fold", "smoke")
    teacher.main(config)
    return config


def parts(config: Config) -> list[Path]:
    return sorted(logits_folder(config).glob("part-*.parquet"))


def same_logits(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    by = ["id", "order", "judge_fold"]
    found, expected = found.sort(by), expected.sort(by)
    assert found.drop("logits").equals(expected.drop("logits"))
    assert np.abs(found["logits"].to_numpy() - expected["logits"].to_numpy()).max() < 1e-5


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.long)])
def test_killed_at_random_moments_and_resumed_it_equals_a_straight_run(
    configure: Configure, straight: pl.DataFrame, times: int
) -> None:
    config = replace_name(configure(), f"killed{times}", "smoke")
    rng = random.Random(0)
    kills = 0
    while kills < times:
        process = own_process(teacher.main, config)
        there = len(parts(config))
        wanted = there + rng.randint(0, 2)
        while process.is_alive() and len(parts(config)) < wanted:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05 if wanted == there else 0.005))  # a quick one writes much meanwhile
        if not process.is_alive():
            break
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        kills += 1
    assert kills == times, f"it was finished after {kills} kills"
    assert 0 < len(parts(config)) < len(straight) // 5
    before = {path: path.stat().st_mtime_ns for path in parts(config)}
    teacher.main(config)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in parts(config)}.items()
    found = read_logits(logits_folder(config), "")
    assert found.select("id", "order", "judge_fold").is_unique().all()
    same_logits(found, straight)
    assert not list(logits_folder(config).glob(".*"))


def replace_name(config: Config, name: str, teachers: str) -> Config:
    """The same teacher's folds, writing to another store."""
    path = str(config.root / "teachers" / teachers)
    return replace(config, teacher=replace(config.teacher, name=name, path=path))


def test_each_row_is_scored_by_the_teachers_that_did_not_train_on_it(
    configure: Configure, straight: pl.DataFrame
) -> None:
    config = configure()
    rows = {c.id: c for c in load_conversations(config.root / "data" / config.data.name)}
    assert set(straight["id"]) == set(rows) and not straight["in_sample"].any()
    for fold in FOLDS:
        seen = read_learned(config.root / f"teachers/smoke/fold={fold}").directly
        scored = set(straight.filter(judge_fold=fold)["id"])
        assert {i for i in scored if rows[i].fold != TEST} == {
            i for i, c in rows.items() if c.fingerprint() not in seen and c.fold != TEST
        }
        assert {c.id for c in rows.values() if c.fold == fold} <= scored
        assert any(rows[i].fold == TEST for i in scored)
    test = straight.filter(pl.col("id").is_in([i for i, c in rows.items() if c.fold == TEST]))
    assert test["id"].n_unique() * len(ORDERS) == len(test)  # each row by one of them
    assert straight.group_by("id", "judge_fold").len()["len"].eq(len(ORDERS)).all()


def test_a_planted_leak_is_caught_where_the_store_is_read(configure: Configure, straight: pl.DataFrame) -> None:
    config = replace_name(configure(), "leaky", "smoke")
    folder = shutil.copytree(logits_folder(configure()), logits_folder(config))
    learned = read_learned(config.root / "teachers/smoke/fold=0").directly
    rows = load_conversations(config.root / "data" / config.data.name)
    victim = next(c for c in rows if c.fingerprint() in learned)
    row = (
        straight.filter(judge_fold=0)
        .head(1)
        .with_columns(id=pl.lit(victim.id), fingerprint=pl.lit(victim.sided_fingerprint(), pl.UInt64), in_sample=False)
    )
    judge = read_manifest(config.root / "teachers/smoke/fold=0").content
    identity = {"prompt": read_manifest(folder).prompt["prompt"], "method": "classify", "labels": "", "dtype": "auto"}
    with StoreWriter(folder, {**identity, "quantization": ""}, judge, 0) as writer:
        writer.append(row.select(LOGITS.names()).cast(LOGITS))
    finish_again(folder)
    with pytest.raises(ValueError, match=victim.id):
        read_logits(folder, "")
    with pytest.raises(ValueError, match=victim.id):
        student.main(replace(config, run="leaky"))


@pytest.mark.skipif(not HUMAN.exists(), reason=f"{HUMAN} is not there: python -m proof.sources makes it")
@pytest.mark.long
def test_out_of_fold_on_real_votes_and_a_leak_planted_there(configure: Configure) -> None:
    human = ["data=human", "data.name=pandalm", f"data.files=[{HUMAN}]", "data.shuffle_sides=[]", "data.simulate=null"]
    human += ["limit=150", "name=pandalm", "teacher.name=pandalm"]
    prepare.main(configure(*human))
    for fold in FOLDS:
        student.main(replace(configure(*human, "role=teacher", f"fold={fold}"), run="pandalm"))
    config = configure(*human)
    teacher.main(config)
    folder = logits_folder(config)
    logits = read_logits(folder, "")
    rows = {c.id: c for c in load_conversations(config.root / "data" / "pandalm")}
    assert set(logits["id"]) == set(rows) and not logits["in_sample"].any()
    assert all((logits.filter(id=i)["judge_fold"] == c.fold).any() for i, c in rows.items() if c.fold != TEST)
    assert any(c.fold == TEST for c in rows.values())
    # The teacher of fold 0 is exchanged for one that was trained on fold 0's rows.
    other = read_learned(config.root / "teachers/pandalm/fold=1")
    (folder / "seen-00.parquet").unlink()
    write_seen(folder, 0, other)
    finish_again(folder)
    leaked = [i for i, c in rows.items() if c.fold == 0 and c.fingerprint() in other.directly]
    with pytest.raises(ValueError, match=r"trained on it: a leak") as refusal:
        student.main(replace(config, run="pandalm"))
    assert leaked and any(repr(i) in str(refusal.value) for i in leaked)


@pytest.mark.long
def test_in_fold_targets_are_those_of_the_student_s_own_fold(in_fold: Config) -> None:
    config = in_fold
    logits = read_logits(logits_folder(config), "")
    assert len(logits) == CONVERSATIONS * len(ORDERS) * len(FOLDS)
    rows = load_conversations(config.root / "data" / config.data.name)
    targets = soft_targets(logits_folder(config), rows, 1, "in_fold", None).logits
    own = logits.filter(judge_fold=1).group_by("id").agg(pl.col("logits").arr.get(0).mean())
    assert {key: value[0] for key, value in targets.items()} == pytest.approx(dict(own.iter_rows()), abs=1e-6)
    out = soft_targets(logits_folder(config), rows, 1, "out_of_fold", None).logits
    assert set(out) == set(targets) and out != targets


@pytest.mark.long
def test_a_limited_run_tells_the_whole_time_and_the_full_run_goes_on_from_it(
    configure: Configure, straight: pl.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace_name(configure("limit=20", "teacher.price_per_hour=2"), "limited", "smoke")
    with caplog.at_level("INFO"):
        teacher.main(config)
    assert f"all {len(straight)} rows would take about " in caplog.text and "in cost" in caplog.text
    before = {path: path.stat().st_mtime_ns for path in parts(config)}
    assert before and read_manifest(logits_folder(config)).rows["logits"] < len(straight)
    teacher.main(replace(config, limit=None))
    assert before.items() <= {path: path.stat().st_mtime_ns for path in parts(config)}.items()
    same_logits(read_logits(logits_folder(config), ""), straight)


def test_texts_that_changed_under_an_id_are_noticed(configure: Configure, straight: pl.DataFrame) -> None:
    config = configure()
    folder = logits_folder(config)
    rows = load_conversations(config.root / "data" / config.data.name)
    changed = [replace(rows[0], response_a=["something else"]), *rows[1:]]
    with pytest.raises(ValueError, match=f"scored other texts under the same ids, such as .*{rows[0].id}"):
        soft_targets(folder, changed, 0, "out_of_fold", None)


def test_conversations_without_votes_are_distilled_unless_their_teacher_is_unsure(
    configure: Configure, straight: pl.DataFrame
) -> None:
    config = configure()
    rows = [
        replace(c, votes=None) if i % 2 else c for i, c in enumerate(load_conversations(config.root / "data/smoke"))
    ]
    found = soft_targets(logits_folder(config), rows, 0, "out_of_fold", None)
    targets = found.logits
    assert not found.left_out
    cap = float(np.median([entropy(targets[c.id]) for c in rows if c.votes is None]))
    unsure = soft_targets(logits_folder(config), rows, 0, "out_of_fold", cap).left_out
    assert 0 < len(unsure) < sum(c.votes is None for c in rows)
    assert all(entropy(targets[c.id]) > cap and c.votes is None for c in rows if c.id in unsure)


@pytest.mark.long
def test_a_mixture_is_a_teacher_like_any_other(configure: Configure, straight: pl.DataFrame) -> None:
    mixture = ["teacher.mixture.teachers=[smoke,limited_half]", "teacher.mixture.weights=[2,1]"]
    half = replace_name(configure(f"limit={CONVERSATIONS // 2}"), "limited_half", "smoke")
    teacher.main(half)
    config = configure("teacher.kind=mixture", "teacher.name=mixed", *mixture)
    with pytest.raises(ValueError, match=r"teacher 'limited_half' of the mixture: .* have no logits"):
        teacher.main(config)
    teacher.main(replace(half, limit=None))
    teacher.main(config)
    mixed = read_logits(logits_folder(config), "")
    assert len(mixed) == CONVERSATIONS * len(ORDERS)
    assert set(read_manifest(logits_folder(config)).extra["temperatures"]) == {"smoke", "limited_half"}
    assert student.main(replace(configure("teacher.name=mixed"), run="from-mixture")) < 5


@pytest.mark.long
def test_what_descends_from_unknown_opinions_says_so(configure: Configure, straight: pl.DataFrame) -> None:
    """Opinions in a file are a teacher like any other; where nobody knows its origin, the student's is unknown, too."""
    config = configure()
    table = (
        straight.group_by("id")
        .agg(pl.col("logits").first())
        .with_columns(pl.col("logits").arr.get(i).alias(f"logit_{label}") for i, label in enumerate(LABELS))
    )
    table.drop("logits").write_csv(config.root / "opinions.csv")
    stored = ["teacher=stored", f"teacher.stored.file={config.root / 'opinions.csv'}"]
    test = [c for c in load_conversations(config.root / "data" / config.data.name) if c.fold == TEST and c.votes]
    for name, origin, said in (
        ("theirs", "unknown", "{}: nobody can tell what it learned from."),
        ("ours", "none", ""),
    ):
        config = configure(*stored, f"teacher.name={name}", f"teacher.stored.learned_from={origin}", "teacher.folds=[]")
        teacher.main(config)
        store, judge = logits_folder(config), config.root / f"students/of-{name}/fold=0"
        assert read_logits(store, "")["id"].n_unique() == CONVERSATIONS
        student.main(replace(config, run=f"of-{name}"))
        for who, folder in (("student", judge), ("teacher", store)):
            assert "".join(told(config, who, folder, test)) == said.format(who)


def told(config: Config, name: str, path: Path, rows: list[Conversation]) -> tuple[str, ...]:
    """What an evaluation of `rows` says of one judge's provenance, in metrics.json and in the table's line."""
    *_, candidate = candidates(config.root, config.run, config.fold, {}, {"named": str(path)})
    engines = Engines(config.root, config.scorers.student, config.scorers.exported, config.canaries.on_failure)
    answers = ask(candidate, rows, engines)
    return tuple(provenance(name, answers.taught, 0, len(rows)))


@pytest.mark.long
def test_a_student_of_a_mixture_is_held_out_from_the_test_split_alone(
    configure: Configure, straight: pl.DataFrame
) -> None:
    """A fold's teachers learned the fold that their student holds out, and a mixture of two does not hide it."""
    config = configure("teacher.kind=mixture", "teacher.name=two", "teacher.mixture.teachers=[smoke,again]")
    teacher.main(replace_name(configure(), "again", "smoke"))
    teacher.main(config)
    student.main(replace(configure("teacher.name=two"), run="of-two"))
    rows = load_conversations(config.root / "data" / config.data.name)
    test, fold = ([c for c in rows if c.fold == of and c.votes] for of in (TEST, 0))
    folder, store = config.root / "students/of-two/fold=0", config.root / "logits/two"
    assert told(config, "student", folder, test) == ()
    everything = f"its teachers saw {len(fold)} of {len(fold)} of these votes"
    assert told(config, "student", folder, fold) == (f"student: cross-validated, {everything}.",)
    assert told(config, "teacher", store, test) == ()
    # No row is scored by who saw it, but its temperature is fitted to what others' judges said, and these saw it.
    assert told(config, "teacher", store, fold) == (f"teacher: cross-validated, {everything}.",)
    learned = read_learned(folder)
    assert not {c.fingerprint() for c in test} & (learned.directly | learned.through_teachers)
    training = [c for c in rows if c.fingerprint() in learned.directly]
    assert training and not {c.fold for c in training} & {0, TEST}
    with pytest.raises(ValueError, match="was trained on 5 of the 5 conversations"):
        told(config, "student", folder, training[:5])


def test_in_fold_teachers_keep_their_student_s_fold_held_out(in_fold: Config) -> None:
    config = in_fold
    student.main(replace(config, run="clean"))
    rows = load_conversations(config.root / "data" / config.data.name)
    assert told(config, "student", config.root / "students/clean/fold=0", [c for c in rows if c.fold == 0]) == ()


@pytest.mark.long
def test_teachers_of_one_fold_are_mixed_with_each_other(configure: Configure, in_fold: Config) -> None:
    """The winner's way: a student of fold k learns from the mean of what the two teachers of fold k said."""
    names = [in_fold.teacher.name, "in_fold_too"]
    teacher.main(replace_name(in_fold, names[1], "smoke"))
    mixture = ["teacher.kind=mixture", f"teacher.mixture.teachers=[{','.join(names)}]", "teacher.rows=in_fold"]
    with pytest.raises(ValueError, match=r"set teacher.temperature_scaling=false"):
        teacher.main(configure("teacher.name=in_fold_mixed", *mixture))
    config = configure("teacher.name=in_fold_mixed", "teacher.temperature_scaling=false", *mixture)
    teacher.main(config)
    mixed = read_logits(logits_folder(config), "").sort("judge_fold", "id", "order")
    single = read_logits(config.root / "logits" / names[0], "").sort("judge_fold", "id", "order")
    kept = ["judge_fold", "id", "order", "in_sample"]
    assert mixed.select(kept).equals(single.select(kept)) and mixed["in_sample"].any()
    expected = log_softmax(single["logits"].to_numpy(), axis=1)  # of two that are alike the mean is either
    assert np.abs(mixed["logits"].to_numpy() - expected).max() < 1e-5


@pytest.mark.long
def test_a_student_is_the_next_student_s_teacher(configure: Configure) -> None:
    for fold in FOLDS:
        student.main(replace(configure(f"fold={fold}", "loss=votes"), run="plain"))
    config = configure("teacher.name=itself")
    config = replace(config, teacher=replace(config.teacher, path=str(config.root / "students" / "plain")))
    teacher.main(config)
    logits = read_logits(logits_folder(config), "")
    assert logits["id"].n_unique() == CONVERSATIONS and not logits["in_sample"].any()
    assert student.main(replace(config, run="self-distilled")) < 5


@pytest.mark.long
def test_a_teacher_may_see_the_models_and_its_student_need_not(configure: Configure) -> None:
    for fold in FOLDS:
        privileged = configure("role=teacher", f"fold={fold}", "prompt.show_models=true", "prompt.max_tokens=192")
        student.main(replace(privileged, run="privileged"))
    config = configure("teacher.name=privileged")
    teacher.main(config)
    assert student.main(replace(config, run="from-privileged")) < 5  # no same_prompt=false is needed
    with pytest.raises(ValueError, match=r"choose another teacher\.name"):
        teacher.main(replace_name(configure(), "privileged", "smoke"))


@pytest.mark.long
def test_a_language_model_labels_without_any_fine_tuning(configure: Configure, tiny_llama: Path) -> None:
    config = configure(
        "teacher.kind=model",
        "teacher.name=zero_shot",
        f"teacher.model={tiny_llama}",
        "teacher.method=label_tokens",
        "prompt.label_tokens=[A,B,C]",
    )
    teacher.main(config)
    logits = read_logits(logits_folder(config), "")
    assert len(logits) == CONVERSATIONS * len(ORDERS) and not logits["in_sample"].any()
    outside = 1 - np.exp(logits["logits"].to_numpy().astype(float)).sum(1)
    assert np.abs(outside - logits["outside"].to_numpy()).max() < 1e-6 and 0.5 < outside.min() < 1
    with pytest.raises(ValueError, match="must be one token each"):
        teacher.main(replace_labels(config, ["yes indeed", "B", "C"]))


def test_a_reward_model_is_a_teacher_like_any_other(configure: Configure, tmp_path: Path) -> None:
    reward_model = tiny_judge(tmp_path / "reward", "llama")  # three outputs: three objectives
    (reward_model / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ '<|bos|>' + m['role'] + '\\n' + m['content'] + '<|eos|>' }}{% endfor %}"
    )
    config = configure("teacher.kind=reward", "teacher.name=reward", f"teacher.model={reward_model}", "limit=60")
    teacher.main(config)
    raw = read_parts(config.root / "rewards" / "reward")
    assert len(raw) == 120 and raw["rewards"].list.len().eq(3).all()
    scored = {path: path.stat().st_mtime_ns for path in (config.root / "rewards" / "reward").glob("part-*")}
    logits = read_logits(logits_folder(config), "")
    assert len(logits) == 60 * len(ORDERS) and not logits["in_sample"].any()
    rows = {c.id: c for c in load_conversations(config.root / "data" / config.data.name)}
    assert all(rows[i].fold == fold for i, fold in logits.select("id", "judge_fold").iter_rows())
    by_order = logits.sort("id", "order").group_by("id", maintain_order=True).agg("logits")
    assert all(ab == ba for ab, ba in by_order["logits"].to_list())  # each response was scored alone
    teacher.main(replace(config, teacher=replace(config.teacher, reward_l2=9.0), overwrite=True))
    assert scored == {path: path.stat().st_mtime_ns for path in (config.root / "rewards" / "reward").glob("part-*")}
    softer = read_logits(logits_folder(config), "")
    assert softer["logits"].to_list() != logits["logits"].to_list()
    assert (
        student.main(replace(configure("teacher.name=reward", "teacher.same_prompt=false", "limit=60"), run="rm")) < 5
    )


def replace_labels(config: Config, labels: list[str]) -> Config:
    config = replace(config, teacher=replace(config.teacher, name="other_labels"))
    return replace(config, prompt=replace(config.prompt, label_tokens=labels))


def with_vllm(tiny_llama: Path, root: Path, name: str) -> list[str]:
    """The stage's arguments with the real engine, which takes two prompts at a time."""
    in_transformers = ("scorer@", "scorers.teacher.")
    shared = [o for o in overrides(root, tiny_llama, f"teacher.name={name}") if not o.startswith(in_transformers)]
    return [
        *shared,
        "scorer@scorers.teacher=vllm",
        "teacher.folds=[0]",
        "+scorers.teacher.engine_args.max_num_batched_tokens=256",
        "+scorers.teacher.engine_args.max_num_seqs=2",
        f"teacher.path={root}/teachers/smoke",
    ]


def wait_for_a_part(alive: Callable[[], bool], folder: Path) -> None:
    while alive() and not list(folder.glob("part-*.parquet")):
        time.sleep(0.002)


@pytest.mark.long
def test_ctrl_c_finishes_what_the_engine_holds_and_the_command_goes_on(
    straight: pl.DataFrame, tiny_llama: Path, root: Path
) -> None:
    folder, arguments = root / "logits" / "interrupted", with_vllm(tiny_llama, root, "interrupted")
    command, pipe = [sys.executable, "-m", "distill.teacher", *arguments], subprocess.PIPE
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    run = subprocess.Popen(  # as a terminal starts it
        command, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True, process_group=0
    )
    wait_for_a_part(lambda: run.poll() is None, folder)
    os.killpg(run.pid, signal.SIGINT)  # the terminal's Ctrl-C reaches the engine's processes, too
    output, _ = run.communicate(timeout=200)
    assert run.returncode == 130 and "rerun the same command to resume" in output, output[-3000:]
    assert "Traceback" not in output and not (folder / MANIFEST).exists()
    expected = straight.filter(judge_fold=0)
    assert 0 < sum(len(pl.read_parquet(part)) for part in folder.glob("part-*.parquet")) < len(expected)
    succeeds("distill.teacher", *arguments)
    found = read_logits(folder, "").sort("id", "order")
    found = found.filter(pl.col("id").is_in(expected["id"].implode()))  # alone, it scores the whole test split
    assert np.abs(found["logits"].to_numpy() - expected.sort("id", "order")["logits"].to_numpy()).max() < 1e-4


@pytest.mark.long
def test_an_engine_that_dies_costs_nothing_that_was_written(
    straight: pl.DataFrame, tiny_llama: Path, root: Path, tmp_path: Path
) -> None:
    folder, log = root / "logits" / "engine_died", tmp_path / "log"
    run = start_command("distill.teacher", *with_vllm(tiny_llama, root, "engine_died"), stdout=log, stderr=log)
    wait_for_a_part(run.is_alive, folder)
    command = psutil.Process(run.pid)
    command.suspend()  # else a quick engine is done before it is found
    try:  # a forked one has no name of its own
        beside = ("engine-guard", "resource_tracker")
        (engine,) = [p for p in command.children() if not any(name in " ".join(p.cmdline()) for name in beside)]
        engine.kill()
    finally:
        command.resume()
    run.join(200)
    output = log.read_text()
    assert run.exitcode == 2 and "error: vLLM's engine died" in output, output[-3000:]
    assert sum(len(pl.read_parquet(part)) for part in folder.glob("part-*.parquet")) > 0
    assert not list(folder.glob(".*"))


@pytest.mark.long
def test_rows_added_to_the_data_are_scored_by_all_teachers_and_nothing_else_again(
    configure: Configure, straight: pl.DataFrame
) -> None:
    config = replace_name(configure(), "extended", "smoke")
    teacher.main(config)
    before = {path: path.stat().st_mtime_ns for path in parts(config)}
    data = config.root / "data" / config.data.name / TABLE
    rows = load_conversations(data.parent)
    kept = data.read_bytes()
    try:
        new = replace(rows[0], id="from-elsewhere", prompt=["A new question?"], votes=None, group="new", fold=0)
        to_frame([*rows, new]).write_parquet(data)
        finish_again(data.parent)
        teacher.main(config)
    finally:
        data.write_bytes(kept)
        finish_again(data.parent)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in parts(config)}.items()
    logits = pl.concat([pl.read_parquet(part) for part in parts(config)])
    assert len(logits) == len(straight) + len(FOLDS) * len(ORDERS)
    assert sorted(logits.filter(id="from-elsewhere", order="ab")["judge_fold"]) == FOLDS
