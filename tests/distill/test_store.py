"""The logits store: parts are whole or absent, say what made them, and are never mixed."""

from pathlib import Path

import polars as pl
import pytest

from distill.runs import read_manifest, write_manifest
from distill.store import STORE, LogitsWriter, part_identity, read_logits, training_targets

IDENTITY = {"prompt": "p1", "dtype": "fp32"}


def scored(*ids: str, fold: int = 0, in_sample: bool = False) -> pl.DataFrame:
    rows = [
        {
            "id": i,
            "order": order,
            "logits": logits,
            "prompt_tokens": 9,
            "truncated": False,
            "judge_fold": fold,
            "in_sample": in_sample,
        }
        for i in ids
        for order, logits in (("ab", [1.0, 0.0, -1.0]), ("ba", [3.0, 0.0, 1.0]))
    ]
    return pl.DataFrame(rows, schema=STORE)


def test_a_second_writer_goes_on_where_the_first_stopped(tmp_path: Path) -> None:
    LogitsWriter(tmp_path, IDENTITY).append(scored("x"))
    (tmp_path / ".part-00001.parquet.partial").write_bytes(b"half a part of a killed run")
    second = LogitsWriter(tmp_path, IDENTITY)
    assert second.done == {("x", "ab", 0), ("x", "ba", 0)}
    second.append(scored("y"))
    assert [p.name for p in sorted(tmp_path.glob("part-*"))] == ["part-00000.parquet", "part-00001.parquet"]
    assert part_identity(second.parts[1]) == IDENTITY


def test_parts_of_another_prompt_are_refused_and_kept(tmp_path: Path) -> None:
    part = LogitsWriter(tmp_path, IDENTITY).append(scored("x"))
    before = part.read_bytes()
    with pytest.raises(ValueError, match="prompt: there 'p1', now 'p2'"):
        LogitsWriter(tmp_path, IDENTITY | {"prompt": "p2"})
    assert part.read_bytes() == before


def test_a_damaged_part_is_named_with_its_remedy(tmp_path: Path) -> None:
    part = LogitsWriter(tmp_path, IDENTITY).append(scored("x"))
    part.write_bytes(part.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"part-00000.parquet is not a readable parquet file .* delete it"):
        LogitsWriter(tmp_path, IDENTITY)


def test_an_unfinished_store_is_not_read(tmp_path: Path) -> None:
    LogitsWriter(tmp_path, IDENTITY).append(scored("x"))
    with pytest.raises(ValueError, match=r"is not finished .*make teacher-logits"):
        read_logits(tmp_path, "make teacher-logits")
    write_manifest(tmp_path, "teacher", {}, [], tmp_path.parent)
    assert read_logits(tmp_path, "").schema == STORE
    assert read_manifest(tmp_path, "teacher").stage == "teacher"


def test_targets_are_the_mean_over_orders_and_judges_of_out_of_fold_rows() -> None:
    logits = pl.concat(
        [
            scored("x"),
            scored("x", fold=1).with_columns(logits=pl.Series([[5.0, 4.0, 4.0]] * 2, dtype=STORE["logits"])),
            scored("y", in_sample=True),
        ]
    )
    assert training_targets(logits, in_fold=False) == {"x": [3.5, 2.0, 2.0]}
    assert set(training_targets(logits, in_fold=True)) == {"x", "y"}
