"""What to do next."""

import shlex
from collections.abc import Sequence

from distill.config import Config
from distill.status.stages import Stage

REPLACED = ("distill.prepare", "distill.student", "distill.export", "eval")  # distill.teacher goes on where it can


def following(config: Config, stages: Sequence[Stage], overrides: Sequence[str]) -> str:
    """The command for the first stage that lacks something, or what can be done once nothing does.

    `overrides`: those that the experiment was given here; each command takes them, too, and one of another experiment
    the same data and the same place.
    """
    given = " ".join(map(shlex.quote, overrides))
    places = [override for override in overrides if override.split("=")[0].split(".")[0] == "paths"]
    for stage in stages:
        if not stage.command or stage.state.name in ("done", "failed"):
            continue
        if stage.state.name == "running":
            return f"next: {stage.name} is being made; look again when it is done"
        module, *own = stage.command
        stale = stage.state.name == "stale" and not stage.state.unsure
        replaced = ["overwrite=true"] if stale and module in REPLACED else []
        said = given
        if stage.experiment is not None:
            said = shlex.join([stage.experiment, f"data.name={config.data.name}", *places])
        return f"next: {' '.join(['python -m', module, *filter(None, [said]), *own, *replaced])}"
    if config.role == "teacher":
        return "all done: its logits are for the experiments of students to ask for, with distill.teacher"
    return f"all done: python -m distill.predict {given} input=test.csv output=submission.csv, or distill.serve {given}"
