"""Artefacts describe themselves: finished is what has a manifest, and a difference is named."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core.artefacts import manifest
from core.artefacts.building import Artefact
from core.artefacts.contents import MANIFEST, content_hash, file_digests
from core.artefacts.manifest import read_manifest
from core.errors import UserError


def artefact(
    root: Path, name: str, config: dict[str, object], parents: list[Path] | None = None, text: str = "x"
) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "file").write_text(text)
    Artefact(folder, "stage", config, parents or [], root).finish()
    return folder


def test_same_configuration_is_finished_another_is_refused_by_field(tmp_path: Path) -> None:
    folder = artefact(tmp_path, "a", {"loss": {"weight": 1.0}, "seed": 0})
    assert Artefact(folder, "stage", {"loss": {"weight": 1.0}, "seed": 0}, [], tmp_path).is_finished()
    with pytest.raises(ValueError, match=r"loss.weight: there 1.0, now 2.0"):
        Artefact(folder, "stage", {"loss": {"weight": 2.0}, "seed": 0}, [], tmp_path).is_finished()
    with Artefact(folder, "stage", {"loss": {"weight": 2.0}}, [], tmp_path).building(overwrite=True) as lacking:
        assert lacking and not folder.exists()


def test_a_changed_parent_is_noticed(tmp_path: Path) -> None:
    parent = artefact(tmp_path, "parent", {})
    child = artefact(tmp_path, "child", {}, [parent])
    assert Artefact(child, "stage", {}, [parent], tmp_path).is_finished()
    (parent / "file").write_text("y")
    Artefact(parent, "stage", {}, [], tmp_path).finish()
    with pytest.raises(ValueError, match="parent: there"):
        Artefact(child, "stage", {}, [parent], tmp_path).is_finished()


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


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: (folder / "file").unlink(), "file is gone"),
        (lambda folder: (folder / "file").write_text("longer"), "file has 6 bytes, not 1"),
        (lambda folder: (folder / "file").write_text("y"), "file has other bytes"),
        (lambda folder: (folder / "new").write_text("y"), "new was not there"),
    ],
)
def test_an_artefact_that_changed_after_its_end_is_refused_wherever_it_is_opened(
    tmp_path: Path, change: Callable[[Path], object], told: str
) -> None:
    parent = artefact(tmp_path, "parent", {})
    child = artefact(tmp_path, "child", {}, [parent])
    # Both are verified here, and the change is noticed all the same.
    assert Artefact(child, "stage", {}, [parent], tmp_path).is_finished()
    time.sleep(0.02)  # file systems tell times apart that lie this far from each other
    change(parent)
    message = (
        rf"parent has changed since its manifest was written \({told}\): restore it, or remove it and make it again"
    )
    for open_it in (
        lambda: read_manifest(parent),
        lambda: Artefact(parent, "stage", {}, [], tmp_path).is_finished(),
        lambda: Artefact(child, "stage", {}, [parent], tmp_path).is_finished(),
    ):
        with pytest.raises(UserError, match=message):
            open_it()
    assert read_manifest(parent, verify=False).stage == "stage"
    with Artefact(parent, "stage", {}, [], tmp_path).building(overwrite=True) as needed:
        assert needed


def test_an_artefact_is_read_once_to_be_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = artefact(tmp_path, "a", {})
    read = []
    monkeypatch.setattr(manifest, "file_digests", lambda folder: read.append(folder) or file_digests(folder))
    for _ in range(3):
        read_manifest(folder)
    assert read == [folder]
    os.utime(folder / "file", ns=(0, 0))
    read_manifest(folder)
    assert read == [folder, folder]


def test_of_what_takes_minutes_to_read_names_and_sizes_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = artefact(tmp_path, "weights", {})
    monkeypatch.setattr(manifest, "WHOLE", 0)
    (folder / "file").write_text("y")
    read_manifest(folder)
    (folder / "file").write_text("cut")
    with pytest.raises(UserError, match="file has 3 bytes, not 1"):
        read_manifest(folder)


def test_artefacts_of_versions_that_told_no_sizes_are_verified_by_their_hash(tmp_path: Path) -> None:
    folder = artefact(tmp_path, "a", {})
    values = json.loads((folder / MANIFEST).read_text())
    del values["files"]
    (folder / MANIFEST).write_text(json.dumps(values))
    read_manifest(folder)
    (folder / "file").write_text("longer")
    with pytest.raises(UserError, match="other files, or other bytes in them"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ('{"stage": "st', "is damaged, it is not JSON"),
        ("\ud800", "is damaged"),
        ("[]", r"missing keys \['stage', 'config', 'parents', 'content'\]"),
        ('{"stage": "stage", "config": {}, "parents": {}, "content": null}', r"missing keys \['content'\]"),
        ('{"stage": "stage", "config": {}, "parents": {}, "content": "0", "later": 1}', r"unknown keys \['later'\]"),
    ],
)
def test_a_manifest_that_cannot_be_understood_is_refused_in_one_sentence(tmp_path: Path, text: str, told: str) -> None:
    folder = artefact(tmp_path, "a", {})
    (folder / MANIFEST).write_text(text, errors="surrogatepass")
    for open_it in (lambda: read_manifest(folder), lambda: Artefact(folder, "stage", {}, [], tmp_path).is_finished()):
        with pytest.raises(UserError, match=rf"{MANIFEST} .*{told}.*remove {folder} and make it again") as error:
            open_it()
        assert "\n" not in str(error.value)


def make(folder: Path, root: Path, **options: bool) -> bool:
    """Make an artefact as a stage does; whether it was still to be made."""
    with Artefact(folder, "stage", {}, [], root).building(**options) as lacking:  # type: ignore[arg-type]
        if lacking:
            folder.mkdir(exist_ok=True)
            (folder / "file").write_text("new")
            Artefact(folder, "stage", {}, [], root).finish()
    return lacking


OTHER = """
import sys
from pathlib import Path
from core.artefacts.building import Artefact
root, wait = Path(sys.argv[1]), sys.argv[2] == "wait"
with Artefact(root / "a", "stage", {}, [], root).building(wait=wait) as lacking:
    print("lacking" if lacking else "finished", flush=True)
    if lacking:
        sys.stdin.readline()
        (root / "a").mkdir()
        Artefact(root / "a", "stage", {}, [], root).finish()
"""


def start(root: Path, wait: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", OTHER, str(root), wait]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def test_the_second_to_make_an_artefact_is_refused_or_waits_and_reuses(tmp_path: Path) -> None:
    first = start(tmp_path, "")
    assert first.stdin and first.stdout and first.stdout.readline() == "lacking\n"
    with pytest.raises(UserError, match=rf"another process \(pid {first.pid} on .*\) is writing it: wait for it"):
        make(tmp_path / "a", tmp_path)
    second = start(tmp_path, "wait")
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(timeout=1)
    first.stdin.write("\n")
    first.stdin.flush()
    assert first.wait(timeout=30) == 0
    assert second.communicate(timeout=30)[0] == "finished\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_what_a_killed_process_left_is_made_anew_and_what_nobody_began_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    killed = start(tmp_path, "")
    assert killed.stdout and killed.stdout.readline() == "lacking\n"
    killed.kill()
    killed.communicate()
    folder.mkdir()
    (folder / "half").touch()
    assert make(folder, tmp_path)
    foreign = tmp_path / "b"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("precious")
    for begin in (
        lambda: make(foreign, tmp_path),
        lambda: Artefact(foreign, "stage", {}, [], tmp_path).claim(overwrite=True),
    ):
        with pytest.raises(UserError, match=r"holds files that this command did not write, such as 'mine\.txt'"):
            begin()
    assert [path.name for path in foreign.iterdir()] == ["mine.txt"]


def test_overwriting_a_link_empties_what_it_points_to(tmp_path: Path) -> None:
    disk, folder = tmp_path / "disk", tmp_path / "a"
    artefact(tmp_path, "disk", {})
    (disk / "deep").mkdir()
    folder.symlink_to(disk)
    assert make(folder, tmp_path, overwrite=True)
    assert folder.is_symlink() and sorted(path.name for path in disk.iterdir()) == ["file", MANIFEST]
    (disk / "checkpoints").mkdir()
    Artefact(folder, "stage", {"other": 1}, [], tmp_path).claim(overwrite=True)
    assert [path.name for path in disk.iterdir()] == ["checkpoints"]


def test_overwriting_keeps_other_stages_artefacts_and_what_is_read(tmp_path: Path) -> None:
    folder = artefact(tmp_path, "a", {})
    with (
        pytest.raises(UserError, match="was written by stage 'stage', not by 'other'"),
        Artefact(folder, "other", {}, [], tmp_path).building(overwrite=True),
    ):
        pass
    with (
        pytest.raises(UserError, match=f"{folder / 'file'} is read, and overwrite=true would remove it"),
        Artefact(folder, "stage", {"new": 1}, [], tmp_path).building(inputs=[folder / "file"], overwrite=True),
    ):
        pass
    assert Artefact(folder, "stage", {}, [], tmp_path).is_finished()


def test_a_claim_that_was_killed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever in the claim the kill comes: here just before it is written down, and while an older run is removed."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "a"
    for function in ("core.artefacts.building.write_json", "core.artefacts.building.shutil.rmtree"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(function, killed)
            Artefact(folder, "stage", {"new": 1}, [], tmp_path).claim(overwrite=True)
        (folder / "checkpoints" / "started.json").unlink(missing_ok=True)
        (folder / "checkpoints" / "state").touch()
        Artefact(folder, "stage", {"new": 1}, [], tmp_path).claim(overwrite=True)
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["started.json"]


def test_a_finished_artefact_is_not_claimed_again(tmp_path: Path) -> None:
    folder = artefact(tmp_path, "a", {})
    with pytest.raises(UserError, match="was finished by another process"):
        Artefact(folder, "stage", {}, [], tmp_path).claim()
