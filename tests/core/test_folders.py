"""A new folder appears whole, in the place of an older one, or not at all."""

from pathlib import Path

import pytest

from core.folders import new_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_that_is_a_link_is_filled_where_it_points_to(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "model").symlink_to(disk)
    with new_folder(tmp_path / "model") as partial:
        (partial / "file").touch()
    assert (tmp_path / "model").is_symlink() and (disk / "file").exists()


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_what_fails_halfway_leaves_the_older_folder_and_is_made_anew(
    failure: type[BaseException], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(failure), new_folder(folder) as partial:
        (partial / "half").touch()
        raise failure
    assert names(folder) == ["old"]
    with new_folder(folder) as partial:
        assert names(partial) == [] and names(folder) == ["old"]
        (partial / "new").touch()
    assert names(folder) == ["new"] and names(tmp_path) == ["model"]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_kill_while_the_folder_is_replaced_leaves_nothing_behind(replaced: bool, tmp_path: Path) -> None:
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old" / "older").touch()
    if replaced:  # the kill came when the new folder was in place
        (tmp_path / "model").mkdir()
    with pytest.raises(ValueError), new_folder(tmp_path / "model"):
        raise ValueError
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ([] if replaced else ["older"])
