"""What one of two real ranks finds wrong ends both at once, with one message."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.artefacts.building import STARTED, Artefact
from distill import prepare, student
from distill.config import Config
from students.training.loop import Trainer
from students.training.tracking import Tracker
from tests.composing import configured
from tests.running import free_port, own_process

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
Said = list[str]  # by rank: the kind of error that ended it, and its message


def config_of(base: Path, root: Path, *overrides: str) -> Config:
    fixed = ["+exp=smoke", f"paths.root={root}", "model.layers=null", "loss=votes", "train.validate_every=2"]
    return replace(configured(*fixed, f"model.base={base}", *overrides), run="run")


def without_data(base: Path, folder: Path, rank: int) -> None:
    student.main(config_of(base, folder / ("elsewhere" if rank else "here")))


def claimed_by_another(base: Path, folder: Path, rank: int) -> None:
    root = folder / "here" / "students" / "run" / "fold=0"
    if rank == 0:
        (root / STARTED).parent.mkdir(parents=True)
        (root / STARTED).write_text(json.dumps({"seed": 7}))
    student.main(config_of(base, folder / "here"))


def loss_of_one(base: Path, folder: Path, rank: int) -> None:
    forward = Trainer.forward

    def poisoned(self: Trainer, rows: list[tuple[int, int]]) -> torch.Tensor:
        terms = forward(self, rows)
        return terms * float("nan") if rank == 1 and self.state.step == 3 else terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "forward", poisoned)
        student.main(config_of(base, folder / "here", "overwrite=true"))


def disk_of_its_own(base: Path, folder: Path, rank: int) -> None:
    """After `loss_of_one` there is a checkpoint; rank 1 has the same data and sees none."""
    root = folder / "here"
    if rank == 1:
        root = folder / "copy"
        root.mkdir()
        (root / "data").symlink_to(folder / "here" / "data")
    student.main(config_of(base, root))


def full_disk_of_first(base: Path, folder: Path, rank: int) -> None:
    """What the first rank alone writes fails, while the others go on to the next step."""

    def log(self: Tracker, record: dict[str, object]) -> None:
        if rank == 0 and record["step"] == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "history")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracker, "log", log)
        student.main(config_of(base, folder / "here", "overwrite=true"))


def finished_on_one(base: Path, folder: Path, rank: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Artefact, "is_finished", lambda _: rank == 1)
        student.main(config_of(base, folder / "here"))


SCENES = (without_data, claimed_by_another, loss_of_one, disk_of_its_own, full_disk_of_first, finished_on_one)


def play(rank: int, ports: list[int], base: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    for scene, port in zip(SCENES, ports, strict=True):
        who = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in who.items()}
        try:
            scene(base, folder, rank)
        except (ValueError, OSError) as error:
            (folder / f"{scene.__name__}-{rank}").write_text(f"{type(error).__name__}: {error}")


@pytest.fixture(scope="module")
def said(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[..., None]], Said]:
    """Plays all scenes on two processes: imports, which take longest, are paid once."""
    folder = tmp_path_factory.mktemp("ranks")
    prepare.main(config_of(tiny_llama, folder / "here"))
    ports = [free_port() for _ in SCENES]
    processes = [own_process(play, rank, ports, tiny_llama, folder) for rank in range(2)]
    try:
        for process in processes:
            process.join(120)
            assert process.exitcode == 0, f"a rank ended with {process.exitcode}"  # None: it waits for the other
    finally:
        for process in processes:
            process.kill()
    return lambda scene: [(folder / f"{scene.__name__}-{rank}").read_text() for rank in range(2)]


@pytest.mark.parametrize(
    ("scene", "first", "message"),
    [
        (without_data, 1, "elsewhere/data/smoke"),
        (claimed_by_another, 0, "started differently"),
        (loss_of_one, 1, "loss is nan at step 4 on conversations ["),
        (disk_of_its_own, 0, "(rank 0: step-2, rank 1: None): give all nodes the same files"),
        (full_disk_of_first, 0, "No space left on device"),
        (finished_on_one, 0, "(rank 0: False, rank 1: True): give all nodes the same files"),
    ],
)
def test_all_ranks_end_with_what_one_found(
    said: Callable[[Callable[..., None]], Said], scene: Callable[..., None], first: int, message: str
) -> None:
    """The rank that found it tells; the other raises what is not shown again."""
    texts = said(scene)
    kinds = [text.split(": ", 1)[0] for text in texts]
    assert kinds[first] in ("UserError", "OSError") and kinds[1 - first] == "OtherRankError"
    assert all(message in text for text in texts) and texts[0].split(": ", 1)[1] == texts[1].split(": ", 1)[1]
