"""How a training survives a kill: checkpoints that are whole or absent, and signals that ask it to stop.

A checkpoint is a folder of DeepSpeed's. `latest.json` names the one that counts. It is replaced atomically once the
folder is complete, so a kill at any instant leaves the checkpoint before.
"""

import json
import logging
import shutil
import signal
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

from core.json_files import write_json
from core.naming import inert
from students.training.collectives import barrier, largest, rank
from students.training.ranks import fail_together, same_on_all_ranks

log = logging.getLogger(__name__)
LATEST = "latest.json"


@dataclass
class RunState:
    """What a checkpoint restores beside the engine's state.

    `lowest` is the lowest objective of all validations so far, by prompt group; None before the first.
    """

    step: int
    lowest: list[float] | None
    history: list[dict[str, Any]]

    @property
    def kept(self) -> dict[str, Any]:
        """The history's record of the step whose judge is kept."""
        return next(record for record in reversed(self.history) if record["validation_kept"])


def save_checkpoint(engine: Any, folder: Path, state: RunState, steps: int) -> None:
    """Save all that a resumed run of so many `steps` needs, in place of the checkpoint before. All ranks call it."""
    tag = f"step-{state.step}"
    saved = {"progress": json.dumps(asdict(state))}
    engine.save_checkpoint(str(folder), tag=tag, client_state=saved, exclude_frozen_parameters=True, save_latest=False)
    barrier()  # every rank's part is there
    with fail_together():
        if rank() == 0:
            write_json(folder / LATEST, {"tag": tag, "step": state.step, "steps": steps})
            for old in folder.glob("step-*"):
                if old.name != tag:
                    shutil.rmtree(old)


def load_checkpoint(engine: Any, folder: Path) -> RunState:
    """The newest checkpoint's state, its weights loaded into `engine`; step 0 where there is none. All ranks call it.

    Raises `UserError` on all ranks where they see different checkpoints: each would resume from another step.
    """
    latest = folder / LATEST
    own = json.loads(latest.read_text())["tag"] if latest.exists() else None
    same_on_all_ranks(own, f"different checkpoints in {folder}")
    if own is None:
        return RunState(0, None, [])
    with inert(folder) as path:  # DeepSpeed globs for its files
        _, saved = engine.load_checkpoint(str(path), tag=own, load_module_strict=False)
    state = RunState(**json.loads(saved["progress"]))
    log.info("resuming from step %d (%s)", state.step, folder / own)
    return state


class StopRequest:
    """Within it, SIGTERM (which Slurm and rented machines send) and Ctrl-C are noted until the step has ended."""

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> Self:
        main = threading.current_thread() is threading.main_thread()
        self._before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)} if main else {}
        for number in self._before:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.number = number

    def anywhere(self) -> int:
        """The signal that any rank got, or 0; the same on all ranks, which call it together."""
        return largest(self.number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
