"""The store: parts are whole or absent, say what made them and what they hold, and no leak gets past its readers."""

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from core.artefacts.building import Artefact
from core.artefacts.contents import content_hash
from core.artefacts.manifest import read_manifest
from core.labels import WITHOUT_TIES, noted
from core.provenance import Learned
from core.store import compaction
from core.store.compaction import compact
from core.store.inspection import verify
from core.store.leaks import check_leaks
from core.store.parts import NO_FOLD, rows_hash
from core.store.reading import read_logits, read_parts
from core.store.rows import LOGITS, REWARDS
from core.store.seen import read_seen, write_seen
from core.store.writing import StoreWriter

ROOT = Path(__file__).resolve().parents[3]
IDENTITY = {"prompt": "p1", "dtype": "fp32"}
NOBODY = 65534


def scored(*ids: str, fold: int = 0, in_sample: bool = False) -> pl.DataFrame:
    """Both orders of each id; the fingerprint of "7" is 7."""
    rng = np.random.default_rng([int(i) for i in ids])
    return pl.DataFrame(
        {
            "id": [i for i in ids for _ in range(2)],
            "order": ["ab", "ba"] * len(ids),
            "logits": rng.normal(size=(2 * len(ids), 3)).astype(np.float32),
            "prompt_tokens": [9 + int(i) for i in ids for _ in range(2)],
            "truncated": [False, True] * len(ids),
            "judge_fold": [fold] * 2 * len(ids),
            "in_sample": [in_sample] * 2 * len(ids),
            "fingerprint": [int(i) for i in ids for _ in range(2)],
            "outside": [None, 0.25] * len(ids),
        },
        schema=LOGITS,
    )


def filled(folder: Path, *tables: pl.DataFrame, fold: int = 0, judge: str = "j") -> list[Path]:
    """One part for each table."""
    with StoreWriter(folder, IDENTITY, judge, fold) as writer:
        return [writer.append(table) for table in tables]


def finished(folder: Path, *tables: pl.DataFrame, seen: tuple[int, ...] = ()) -> Path:
    filled(folder, *tables)
    write_seen(folder, 0, Learned(frozenset(seen)))
    Artefact(folder, "teacher", {}, [], folder.parent).finish()
    return folder


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def cli(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "distill.store", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "200"},
    )


def test_what_was_written_is_read_and_known_to_the_next_writer(tmp_path: Path) -> None:
    filled(tmp_path, scored("2", "1"), scored("3"))
    filled(tmp_path, scored("1", fold=NO_FOLD), fold=NO_FOLD, judge="another")
    with StoreWriter(tmp_path, IDENTITY, "j", 0) as writer:
        assert writer.append(scored("5")).name == "part-00-00002.parquet"
        expected = pl.concat([scored("2", "1"), scored("3"), scored("5")])
        assert_frame_equal(writer.done, expected.select("id", "order", "judge_fold", "fingerprint"))
    assert_frame_equal(read_parts(tmp_path), pl.concat([scored("1", fold=NO_FOLD), expected]))
    assert_frame_equal(pl.read_parquet(tmp_path / "part-00-*.parquet"), expected)  # other readers need nothing of ours
    assert sorted(p.name for p in tmp_path.glob("part-x*")) == ["part-x-00000.parquet"]
    assert hidden(tmp_path) == []
    assert verify(tmp_path)[0].endswith("run the teacher stage again with overwrite=true")  # seen-00 is not there


def test_rewards_of_any_width_are_stored_too(tmp_path: Path) -> None:
    rewards = pl.DataFrame(
        [("1", r, [0.5, float("inf"), -0.0, 1e-40], 9, False, NO_FOLD, 2**64 - 1) for r in "ab"],
        schema=REWARDS,
        orient="row",
    )
    with StoreWriter(tmp_path, IDENTITY, "rm", schema=REWARDS) as writer:
        writer.append(rewards)
        assert writer.done.columns == ["id", "response", "judge_fold", "fingerprint"]
    assert_frame_equal(read_parts(tmp_path), rewards)
    assert ["not finite" in problem for problem in verify(tmp_path)] == [True]
    assert "rewards a response" in cli("inspect", tmp_path).stdout
    with pytest.raises(ValueError, match=r"columns\.in_sample: there None, now 'Boolean'"):
        StoreWriter(tmp_path, IDENTITY, "rm").__enter__()


def test_a_digest_tells_values_apart_and_not_layouts() -> None:
    rows = scored("1", "2", "3")
    whole = rows_hash(rows)
    assert rows_hash(pl.concat([rows[:1], rows[1:4], rows[4:]], rechunk=False)) == whole
    flat = pl.Series(rows["logits"].to_numpy() * np.float32(1 + 1e-6), dtype=LOGITS["logits"])
    others = [
        rows[::-1],
        rows[:5],
        rows.with_columns(id=pl.Series(["12", "", *rows["id"][2:]])),
        rows.with_columns(id=pl.Series(["1", "12", *rows["id"][2:]])),
        rows.with_columns(outside=pl.Series([0.25, None, *rows["outside"][2:]], dtype=pl.Float32)),
        rows.with_columns(pl.col("outside").fill_null(0.0)),
        rows.with_columns(~pl.col("truncated")),
        rows.with_columns(logits=flat),
        rows.rename({"truncated": "cut"}),
    ]
    assert len({whole, *map(rows_hash, others)}) == len(others) + 1


@pytest.mark.parametrize(
    ("identity", "judge", "fold", "message"),
    [
        ({**IDENTITY, "prompt": "p2"}, "j", 0, "prompt: there 'p1', now 'p2'"),
        ({**IDENTITY, "prompt": "p2"}, "other", 1, "prompt: there 'p1', now 'p2'"),
        ({**IDENTITY, "quantised": "int8"}, "j", 0, "quantised: there None, now 'int8'"),
        (IDENTITY, "other", 0, "judge: there 'j', now 'other'"),
    ],
)
def test_parts_of_another_making_are_refused_and_kept(
    tmp_path: Path, identity: dict[str, str], judge: str, fold: int, message: str
) -> None:
    (part,) = filled(tmp_path, scored("1"))
    before = part.read_bytes()
    with pytest.raises(ValueError, match=f"part-00-00000.parquet was made differently:\n.*{message}") as refused:
        StoreWriter(tmp_path, identity, judge, fold).__enter__()
    assert "another teacher.name" in str(refused.value) and "overwrite=true" in str(refused.value)
    assert part.read_bytes() == before and hidden(tmp_path) == []
    filled(tmp_path, scored("1", fold=1), fold=1, judge="other")  # each fold has a judge of its own


def test_foreign_parquet_files_are_refused(tmp_path: Path) -> None:
    (part,) = filled(tmp_path, scored("1"))
    for name in ("train-00000-of-00002.parquet", "part-00000.parquet", "part-00-00007.parquet"):
        scored("1").write_parquet(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is not a part of this store: move it"):
            filled(tmp_path)
        (tmp_path / name).unlink()
    shutil.copy(part, tmp_path / "part-01-00000.parquet")
    with pytest.raises(ValueError, match=r"part-01-00000\.parquet is not a part of this store"):
        read_parts(tmp_path)


def test_a_copied_part_gives_double_keys(tmp_path: Path) -> None:
    (part,) = filled(tmp_path, scored("1", "2"))
    shutil.copy(part, tmp_path / "part-00-00009.parquet")
    with pytest.raises(
        ValueError, match=r"4 keys \(id, order, judge_fold\) have more than one row, such as \[\('1', 'ab'"
    ):
        read_parts(tmp_path)


@pytest.mark.parametrize("kept", [0, 3, 40, 0.5, -1])
def test_a_part_that_was_cut_short_is_named_with_its_remedy(tmp_path: Path, kept: float) -> None:
    part, _ = filled(tmp_path, scored("1"), scored("2"))
    content = part.read_bytes()
    part.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"part-00-00000.parquet is cut short or damaged .*delete it .*again"):
        filled(tmp_path)
    part.unlink()
    with StoreWriter(tmp_path, IDENTITY, "j", 0) as writer:
        assert writer.done["id"].to_list() == ["2", "2"]


def test_no_flipped_byte_goes_unnoticed(tmp_path: Path) -> None:
    (part,) = filled(tmp_path, scored(*map(str, range(40))))
    content, rows = part.read_bytes(), read_parts(tmp_path)
    chunks = pq.read_metadata(part).row_group(0)
    logits = next(c for i in range(len(rows.columns)) if (c := chunks.column(i)).path_in_schema.startswith("logits"))
    crucial = logits.data_page_offset + logits.total_compressed_size - 1
    harmless = 0
    for position in [crucial, *range(0, len(content), 5)]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        part.write_bytes(damaged)
        try:
            assert_frame_equal(read_parts(tmp_path), rows)  # a byte that means nothing, such as a version's letter
            harmless += 1
        except ValueError as error:
            assert part.name in str(error)
        assert harmless == 0 or position != crucial
    assert harmless < len(content) / 5 / 2


def test_a_full_disk_leaves_the_finished_parts_and_the_next_run_goes_on(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, IDENTITY, "j", 0) as writer:
        writer.append(scored("1"))
        (tmp_path / ".part-00-00001.parquet.partial").symlink_to("/dev/full")
        with pytest.raises(
            ValueError,
            match="No space left on device; the 1 finished parts stay: free space, then rerun",
        ) as refused:
            writer.append(scored("2"))
        assert isinstance(refused.value.__cause__, OSError) and refused.value.__cause__.errno == errno.ENOSPC
        assert hidden(tmp_path) == [".lock-00"]
        assert writer.append(scored("2")).name == "part-00-00001.parquet"
    assert_frame_equal(read_parts(tmp_path), scored("1").vstack(scored("2")))


@contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """`folder` cannot be written to, not even by root, who becomes nobody for the time."""
    folder.chmod(0o555)
    if root := os.geteuid() == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def test_a_read_only_folder_is_named_with_its_remedy() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to nobody
        folder = Path(name)
        remedy = "Permission denied; the 1 finished parts stay: give this user permission, then rerun the same"
        with StoreWriter(folder, IDENTITY, "j", 0) as writer:
            writer.append(scored("1"))
            with unwritable(folder), pytest.raises(ValueError, match=remedy):
                writer.append(scored("2"))
        with unwritable(folder), pytest.raises(ValueError, match=remedy):
            filled(folder)
        with unwritable(folder):
            assert len(read_parts(folder)) == 2


def test_one_process_writes_a_fold_at_a_time(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, IDENTITY, "j", 0) as writer:
        writer.append(scored("1"))
        with pytest.raises(ValueError, match=rf"another process \(pid {os.getpid()} on .*\) is writing fold 00"):
            StoreWriter(tmp_path, IDENTITY, "j", 0).__enter__()
        with pytest.raises(ValueError, match="is writing fold 00"):
            compact(tmp_path)
        filled(tmp_path, scored("1", fold=1), fold=1)
        assert hidden(tmp_path) == [".lock-00"]
    filled(tmp_path, scored("2"))
    assert hidden(tmp_path) == []


CHILD = """
import subprocess, sys
from pathlib import Path
from core.store.compaction import compact
from core.store.writing import StoreWriter
from tests.core.store.test_store import IDENTITY, scored
folder = Path(sys.argv[1])
while True:
    with StoreWriter(folder, IDENTITY, "j", 0) as writer:
        for _ in range(6):
            i = len(writer.done) // 2
            writer.append(scored(str(i)))
            print(i, flush=True)
    compact(folder, rows_per_part=50)
"""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("times", [4, pytest.param(20, marks=pytest.mark.long)])
def test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path: Path, times: int) -> None:
    rng, acknowledged = random.Random(0), -1
    for _ in range(times):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None and child.stdout.readline()
        time.sleep(rng.uniform(0, 0.2))
        child.send_signal(signal.SIGKILL)
        said = child.communicate()[0].splitlines()
        acknowledged = max(acknowledged, *map(int, said or ["-1"]))
        written = read_parts(tmp_path)["id"].n_unique()  # readable before anybody tidies up
        assert written - 1 >= acknowledged
    with StoreWriter(tmp_path, IDENTITY, "j", 0) as writer:
        assert hidden(tmp_path) == [".lock-00"]
        count = len(writer.done) // 2
        assert sorted(map(int, writer.done["id"])) == [i for i in range(count) for _ in range(2)]
    write_seen(tmp_path, 0, Learned())
    assert count > times and verify(tmp_path) == []
    assert_frame_equal(
        read_parts(tmp_path).sort("fingerprint", "order"), pl.concat(scored(str(i)) for i in range(count))
    )


def test_a_forked_child_does_not_hold_the_lock_of_its_killed_parent(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys, time
from pathlib import Path
from core.store.parts import locked
with locked(Path({str(tmp_path)!r}), 0):
    child = os.fork()
    if child == 0:
        os.close(1)
        time.sleep(60)
        os._exit(0)
    time.sleep(0.3)
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60)
    orphan = int(killed.stdout)
    try:
        assert killed.returncode == -signal.SIGKILL and hidden(tmp_path) == [".lock-00"]
        filled(tmp_path, scored("1"))
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_compaction_keeps_the_rows_and_renews_the_manifest(tmp_path: Path) -> None:
    store = finished(tmp_path / "s", scored("3"), scored("1", "2"), scored("5", "4"))
    before = read_logits(store, "")
    assert [path.name for path in compact(store, rows_per_part=6)] == ["part-00-00003.parquet"]
    assert [p.name for p in sorted(store.glob("part-*"))] == ["part-00-00002.parquet", "part-00-00003.parquet"]
    assert_frame_equal(read_logits(store, "").sort("id", "order"), before.sort("id", "order"))
    assert read_parts(store)["id"].to_list() == ["5", "5", "4", "4", "1", "1", "2", "2", "3", "3"]
    assert read_manifest(store).content == content_hash(store) and verify(store) == []
    assert compact(store, rows_per_part=6) == []
    assert [path.name for path in compact(store)] == ["part-00-00004.parquet"]
    assert filled(store, scored("6"))[0].name == "part-00-00005.parquet"


def test_compaction_killed_before_publishing(tmp_path: Path) -> None:
    store = finished(tmp_path / "s", scored("1"), scored("2"))
    (store / ".part-00-00002.parquet.partial").write_bytes((store / "part-00-00000.parquet").read_bytes()[:300])
    (store / ".lock-00").write_text("pid 1")
    assert len(read_logits(store, "")) == 4
    compact(store)
    assert verify(store) == [] and hidden(store) == []


@pytest.mark.parametrize("left", [("part-00-00000.parquet", "part-00-00001.parquet"), ("part-00-00001.parquet",), ()])
def test_compaction_killed_after_publishing(
    tmp_path: Path, left: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = finished(tmp_path / "s", scored("1"), scored("2"))
    shutil.copytree(store, tmp_path / "before")

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compaction, "file_digests", killed)  # the last it does before it writes the manifest
    with pytest.raises(KeyboardInterrupt):
        compact(store)
    monkeypatch.undo()
    for name in left:
        shutil.copy(tmp_path / "before" / name, store)
    assert ["a compaction was interrupted" in problem for problem in verify(store)] == [True]
    assert_frame_equal(read_logits(store, ""), read_logits(tmp_path / "before", ""))
    shutil.copytree(store, tmp_path / "resumed")
    with StoreWriter(tmp_path / "resumed", IDENTITY, "j", 0) as writer:
        assert len(writer.done) == 4
    assert [p.name for p in (tmp_path / "resumed").glob("part-*")] == ["part-00-00002.parquet"]
    assert compact(store) == []
    assert [p.name for p in store.glob("part-*")] == ["part-00-00002.parquet"] and verify(store) == []


def test_compaction_does_not_cover_up_what_changed_since_the_end(tmp_path: Path) -> None:
    store = finished(tmp_path / "s", scored("1"), scored("2"), scored("3"))
    (store / "part-00-00001.parquet").unlink()
    assert ["something was changed" in problem for problem in verify(store)] == [True]
    with pytest.raises(ValueError, match=r"does not hold the files that its manifest\.json was written for"):
        compact(store)
    assert len(list(store.glob("part-*"))) == 2


def test_a_leak_is_found_by_what_the_judge_saw(tmp_path: Path) -> None:
    honest = finished(tmp_path / "honest", scored("1"), scored("2", in_sample=True), seen=(2, 3))
    assert len(read_logits(honest, "")) == 4 and verify(honest) == []
    leaking = finished(tmp_path / "leaking", scored("1"), scored("2", in_sample=True), seen=(1, 2))
    message = r"1 judgements .*1 of them are leaks: '1' by the judge of fold 00 \(trained on it: a leak\)"
    with pytest.raises(ValueError, match=message):
        read_logits(leaking, "")
    assert cli("verify", honest).returncode == 0
    told = cli("verify", leaking)
    assert told.returncode == 2 and "'1' by the judge of fold 00 (trained on it: a leak)" in told.stderr
    with pytest.raises(ValueError, match=r"'2' by the judge of fold 00 \(in_sample=true, but it was not trained on it"):
        check_leaks(scored("2", in_sample=True), saw(1, 2))
    check_leaks(scored("2"), saw(1, 2))  # another judge saw it
    check_leaks(scored("2"), saw(0, 2, directly=False))  # its teacher saw it
    with pytest.raises(ValueError, match="trained on it: a leak"):  # it saw the responses the other way round
        check_leaks(scored("2"), saw(0, 3))


def saw(judge_fold: int, fingerprint: int, directly: bool = True) -> pl.DataFrame:
    return pl.DataFrame({"judge_fold": [judge_fold], "fingerprint": [fingerprint], "directly": [directly]})


def test_what_a_judge_saw_must_be_known_and_whole(tmp_path: Path) -> None:
    store = finished(tmp_path / "s", scored("1"), seen=tuple(range(2, 100)))
    seen = store / "seen-00.parquet"
    content = seen.read_bytes()
    write_seen(store, 0, Learned(frozenset(range(2, 100))))
    assert seen.read_bytes() == content
    seen.write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
    with pytest.raises(ValueError, match=r"seen-00.parquet (is cut short or damaged|does not hold what was written)"):
        read_seen(store, [0])
    with pytest.raises(ValueError, match=r"has changed .*seen-00\.parquet has other bytes"):
        read_logits(store, "")
    seen.unlink()
    with pytest.raises(ValueError, match=r"seen-00\.parquet is missing"):
        read_seen(store, [0])


def test_an_unfinished_store_is_not_read(tmp_path: Path) -> None:
    filled(tmp_path, scored("1", fold=NO_FOLD), fold=NO_FOLD)
    with pytest.raises(ValueError, match=r"is not finished .*make teacher-logits"):
        read_logits(tmp_path, "make teacher-logits")
    write_seen(tmp_path, NO_FOLD, Learned())
    Artefact(tmp_path, "teacher", {}, [], tmp_path.parent).finish()
    assert read_logits(tmp_path, "").schema == LOGITS
    (tmp_path / "seen-x.parquet").unlink()  # a judge of no fold, too, says what it learned from
    with pytest.raises(ValueError, match=r"seen-x\.parquet is gone"):
        read_logits(tmp_path, "")


def test_verify_reports_every_problem(tmp_path: Path) -> None:
    store = finished(tmp_path / "s", scored("1"), scored("2"), scored("3"), scored("4"), seen=(4,))
    broken = scored("5").with_columns(logits=pl.Series([[0, 0, float("nan")], [0, 0, 0]], dtype=LOGITS["logits"]))
    filled(store, broken, scored("6")[:1], scored("7").with_columns(fingerprint=pl.Series([7, 8], dtype=pl.UInt64)))
    cut = store / "part-00-00000.parquet"
    cut.write_bytes(cut.read_bytes()[:-9])
    shutil.copy(store / "part-00-00001.parquet", store / "part-00-00011.parquet")
    with StoreWriter(tmp_path / "t", {**IDENTITY, "dtype": "bf16"}, "k", 0) as writer:
        shutil.copy(writer.append(scored("9")), store / "part-00-00012.parquet")
    scored("8").write_parquet(store / "train.parquet")
    problems = verify(store)
    for what in (
        "train.parquet is not a part of this store",
        "part-00-00000.parquet is cut short",
        "part-00-00012.parquet was made differently from part-00-00001.parquet (dtype: 'bf16' here, 'fp32' there;",
        "2 keys (id, order, judge_fold) have more than one row",
        "1 rows have logits that are not finite, such as [('5', 'ab', 0)]",
        "1 judgements lack one order of the two, such as [('6', 0)]",
        "1 ids were scored for two different texts, such as [('7', 0)]",
        "'4' by the judge of fold 00 (trained on it: a leak)",
        "does not hold the files that its manifest.json was written for",
    ):
        assert [what in problem for problem in problems].count(True) == 1, (what, problems)
    assert len(problems) == 9
    told = cli("verify", store)
    assert told.returncode == 2 and told.stderr.startswith("error: 9 problems") and "Traceback" not in told.stderr


def test_inspect_leaves_the_tie_of_judges_without_ties_out(tmp_path: Path) -> None:
    rows = scored("1", "2").with_columns(logits=pl.Series([[0, 0, 9], [0, 0, -9]] * 2, dtype=LOGITS["logits"]))
    filled(tmp_path / "two", rows)
    write_seen(tmp_path / "two", 0, Learned())
    Artefact(tmp_path / "two", "teacher", {}, [], tmp_path).finish(extra=noted(WITHOUT_TIES))
    told = " ".join(cli("inspect", tmp_path / "two").stdout.replace("│", " ").split())
    assert f"mean entropy {math.log(2):.3f} nats" in told and "changes with the order 0.00%" in told


def test_inspect_tells_what_is_in_a_store(tmp_path: Path) -> None:
    logits = [[2, 0, 0], [2, 0, 0], [0, 0, 0], [0, 1, 0]]
    filled(tmp_path, scored("1", "2").with_columns(logits=pl.Series(logits, dtype=LOGITS["logits"])))
    filled(tmp_path, scored("1", fold=3, in_sample=True), fold=3, judge="k")
    told = cli("inspect", tmp_path)
    assert told.returncode == 0, told.stderr
    lines = {" ".join(line.replace("│", " ").split()) for line in told.stdout.splitlines()}
    part_bytes = sum(p.stat().st_size for p in tmp_path.glob("*.parquet"))
    logits_nats = np.array([*logits, *scored("1")["logits"].to_list()], dtype=float)
    p = np.exp(logits_nats) / np.exp(logits_nats).sum(axis=1, keepdims=True)
    turned = len(set(scored("1")["logits"].to_numpy().argmax(axis=1))) > 1  # "2" changes by the logits given above
    assert lines >= {
        "dtype fp32",
        "prompt p1",
        "judge of fold 00 j",
        "judge of fold 03 k",
        "finished no: it has no manifest.json",
        f"bytes {part_bytes:,}, {part_bytes / 6:.1f} a row",
        "parts 2",
        "ids 2",
        "prompt tokens 62; median 10, most 11",
        "truncated 50.00%",
        "in sample 33.33%",
        f"mean entropy {-(p * np.log(p)).sum(axis=1).mean():.3f} nats",
        f"verdict changes with the order {100 if turned else 50}.00% of ids",
        "mass outside the labels median 0.25, most 0.25",
        "03 ba 1",
        "00 ab 2",
    }, lines
    assert cli("inspect", tmp_path / "missing").returncode == 2
    finish = cli("compact", tmp_path)
    assert finish.returncode == 0 and "0 merged parts" in finish.stdout
    assert json.loads(pq.read_schema(tmp_path / "part-03-00000.parquet").metadata[b"distill.identity"]) == IDENTITY
