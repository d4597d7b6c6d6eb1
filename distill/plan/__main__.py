"""What every stage takes, before anything is rented: python -m distill.plan +exp=gemma9b plan=h100

Parameters are counted on meta tensors; memory, time and money follow from the formulas of `memory.py` and
`throughput.py`. The rates are assumptions of `conf/plan` until `python -m bench.calibrate` has measured them
(`plan.calibration=FILE`). No weights are read, and nothing is fetched but a config.json that is not here.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from distill.config import Config
from distill.entry_point import CONF, entry_point, typed

if TYPE_CHECKING:
    from core.shapes import Shape
    from distill.plan.planning import Stage, Work

SAMPLE = 300  # conversations that are rendered to learn their lengths


def main(config: Config) -> None:
    """Print the plan of the configured experiment."""
    from rich.console import Console
    from rich.table import Table

    from distill.plan.measured import calibrated
    from distill.plan.planning import total, words

    console, plan = Console(), calibrated(config.plan)
    rates = "assumed" if plan.calibration is None else f"measured by {plan.calibration}"
    stages = list(stages_of(replace(config, plan=plan)))
    for stage in stages:
        table = Table(title=stage.title, show_header=False, title_justify="left")
        for line in stage.lines:
            table.add_row(*line)
        console.print(table)
        if stage.memory:
            title = f"GB on each GPU; {plan.gpu} has {plan.memory_gb:g}, (more) does not fit"
            grid = Table(*stage.memory[0], title=title, title_justify="left")
            for row in stage.memory[1:]:
                grid.add_row(*row)
            console.print(grid)
    hours, costs = (total([getattr(stage, name) for stage in stages]) for name in ("hours", "cost"))
    priced = any(stage.cost is not None for stage in stages)
    unknown = "for the cost, give plan.price_per_gpu_hour, plan.t4.price_per_hour"
    money = f"cost {words(costs, 0)}" if priced else unknown
    console.print(f"Computed, not measured; rates {rates}. All stages: {words(hours)} h; {money}.")


def stages_of(config: Config) -> Iterator["Stage"]:
    """The teacher's training and scoring, the student's training, its work on T4s, as far as there are such."""
    from distill.plan.planning import Stage, on_t4, scoring, training

    base = config.student.base
    if base is None:
        raise UserError(
            "student.base=null: name the model to train (hub id, folder, pip:PACKAGE), or give +exp=gemma9b"
        )
    teacher = config if config.role == "teacher" else None
    if teacher is None and config.loss.distils and config.teacher.kind == "folds":
        teacher = teacher_experiment(config)
    if teacher is not None and teacher.student.base is not None:
        model = teacher.student.base
        shape, work = count(teacher, model), work_of(teacher, model)
        yield training(teacher, model, shape, work)
        yield scoring(replace(teacher, teacher=config.teacher), model, shape, work)
    elif config.loss.distils and config.teacher.model is not None:
        whole = replace(config, student=replace(config.student, layers=None, freeze_layers=0))
        yield scoring(
            config, config.teacher.model, count(whole, config.teacher.model), work_of(config, config.teacher.model)
        )
    elif config.loss.distils:
        remedy = "plan each of teacher.mixture.teachers by itself"
        if config.teacher.kind != "mixture":
            remedy = f"no conf/exp/{config.teacher.name}.yaml says what it is: give teacher=model teacher.model=..."
        yield Stage(f"The teacher, {config.teacher.name}", [("not planned", remedy)])
    if config.role == "student":
        shape, work = count(config, base), work_of(config, base)
        yield training(config, base, shape, work)
        yield on_t4(config, base, shape, work)


def count(config: Config, base: str) -> "Shape":
    """What the model consists of."""
    from core.shapes import shape_of
    from students.training.model import with_lora

    return shape_of(base, config.root, config.student, with_lora)


def work_of(config: Config, base: str) -> "Work":
    """How many conversations there are, and how long their prompts: rendered where data and tokenizer are here."""
    from core.artefacts.contents import MANIFEST
    from core.artefacts.manifest import read_manifest
    from core.shapes import folder_of
    from distill.plan.planning import Work
    from distill.plan.throughput import Lengths

    plan, data = config.plan, config.root / "data" / config.data.name
    prepared, folder = (data / MANIFEST).is_file(), folder_of(base, config.root)
    kept = read_manifest(data, "prepare").rows["kept"] if prepared else plan.assumed.conversations
    rows_there = kept if plan.conversations is None else plan.conversations
    if plan.tokens is None and prepared and folder is not None and (folder / "tokenizer.json").is_file():
        from core.data import conversations
        from core.prompts import Renderer

        rows = conversations.load(data)
        sample = rows[:: -(-len(rows) // SAMPLE)]
        lengths = [len(prompt.ids) for prompt in Renderer(config.prompt, folder).render(sample)]
        mean, square = (sum(n**power for n in lengths) / len(lengths) for power in (1, 2))
        return Work(rows_there, Lengths(mean, square), f"the mean of {len(sample)} rendered conversations")
    if plan.tokens is not None:
        return Work(rows_there, Lengths.alike(min(plan.tokens, config.prompt.max_tokens)), "plan.tokens")
    return Work(rows_there, Lengths.cut(plan.assumed.tokens, config.prompt.max_tokens), "assumed")


def teacher_experiment(config: Config) -> Config | None:
    """The experiment in conf/exp that has the teacher's name, on this machine and these data."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    name = config.teacher.name
    if name is None or not Path(CONF, "exp", f"{name}.yaml").is_file():
        return None
    composing = GlobalHydra.instance().is_initialized()  # behind a door; not where a program calls this
    with nullcontext() if composing else initialize_config_dir(CONF, version_base="1.3"):
        values: Any = OmegaConf.to_container(compose("config", overrides=[f"+exp={name}"]), resolve=True)
    teacher = typed(values, [])
    return replace(teacher, plan=config.plan, paths=config.paths, data=config.data)


if __name__ == "__main__":
    entry_point(main)()
