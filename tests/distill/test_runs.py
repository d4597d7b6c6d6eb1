"""Artefacts describe themselves: finished is what has a manifest, and a difference is named."""

from pathlib import Path

import pytest

from distill.runs import MANIFEST, content_hash, is_finished, read_manifest, write_manifest


def artefact(
    root: Path, name: str, config: dict[str, object], parents: list[Path] | None = None, text: str = "x"
) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "file").write_text(text)
    write_manifest(folder, "stage", config, parents or [], root)
    return folder


def test_same_configuration_is_finished_another_is_refused_by_field(tmp_path: Path) -> None:
    folder = artefact(tmp_path, "a", {"loss": {"weight": 1.0}, "seed": 0})
    assert is_finished(folder, "stage", {"loss": {"weight": 1.0}, "seed": 0}, [], tmp_path)
    with pytest.raises(ValueError, match=r"loss.weight: there 1.0, now 2.0"):
        is_finished(folder, "stage", {"loss": {"weight": 2.0}, "seed": 0}, [], tmp_path)
    assert not is_finished(folder, "stage", {"loss": {"weight": 2.0}}, [], tmp_path, overwrite=True)
    assert not folder.exists()


def test_a_changed_parent_is_noticed(tmp_path: Path) -> None:
    parent = artefact(tmp_path, "parent", {})
    child = artefact(tmp_path, "child", {}, [parent])
    assert is_finished(child, "stage", {}, [parent], tmp_path)
    (parent / "file").write_text("y")
    write_manifest(parent, "stage", {}, [], tmp_path)
    with pytest.raises(ValueError, match="parent: there"):
        is_finished(child, "stage", {}, [parent], tmp_path)


def test_content_hash_follows_names_and_bytes_but_not_checkpoints(tmp_path: Path) -> None:
    folder = artefact(tmp_path, "a", {})
    before = content_hash(folder)
    assert before == read_manifest(folder).content
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "state").write_text("z")
    assert content_hash(folder) == before
    (folder / "file").rename(folder / "renamed")
    assert content_hash(folder) != before


def test_unfinished_and_foreign_artefacts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist: make it"):
        read_manifest(tmp_path / "none", "stage", "make it")
    folder = artefact(tmp_path, "a", {})
    with pytest.raises(ValueError, match="written by stage 'stage', expected 'other'"):
        read_manifest(folder, "other")
    (folder / MANIFEST).unlink()
    with pytest.raises(ValueError, match="is not finished"):
        read_manifest(folder)
