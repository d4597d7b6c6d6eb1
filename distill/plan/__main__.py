"""What every stage takes, before anything is rented: python -m distill.plan +exp=gemma9b plan=h100

Parameters are counted, without weights; memory, time and cost follow from the formulas of `core/models/memory.py` and
`throughput.py`. The rates are assumptions of `conf/plan` until `python -m bench.gpu_speed` has measured them
(`plan.measured=FILE`). No weights are read. Nothing is downloaded but a config.json that is not here.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from distill.config import Config
from distill.entry_point import entry_point
from distill.plan.config import PlanConfig

if TYPE_CHECKING:
    from rich.console import Console

    from distill.plan.stage import Stage

READS = (
    "name role fold seed data prompt model train engine optimizer loss teacher scorers.teacher export.format "
    "eval.truth plan t4 paths"
)


def main(config: Config) -> None:
    """Print the plan of the configured experiment."""
    from rich.console import Console

    from distill.plan.experiment import stages_of
    from distill.plan.measured import with_measured

    console, plan = Console(), with_measured(config.plan)
    stages = list(stages_of(replace(config, plan=plan)))
    for stage in stages:
        print_stage(console, stage, plan)
    console.print(summary(stages, plan))


def print_stage(console: "Console", stage: "Stage", plan: PlanConfig) -> None:
    """Its lines, and its memory by ZeRO stage where it trains."""
    from rich.table import Table

    table = Table(title=stage.title, show_header=False, title_justify="left")
    for line in stage.lines:
        table.add_row(*line)
    console.print(table)
    if stage.memory:
        header, *rows = stage.memory
        title = f"GB on each GPU; {plan.gpu} has {plan.memory_gb:g}, (more) does not fit"
        memory = Table(*header, title=title, title_justify="left")
        for row in rows:
            memory.add_row(*row)
        console.print(memory)


def summary(stages: list["Stage"], plan: PlanConfig) -> str:
    """Hours and cost of all stages, and where the rates are from."""
    from distill.plan.stage import as_text, total

    rates = "assumed" if plan.measured is None else f"measured by {plan.measured}"
    hours, costs = total(stage.hours for stage in stages), total(stage.cost for stage in stages)
    cost = "for the cost, give plan.price_per_gpu_hour, t4.price_per_hour"
    if any(stage.cost is not None for stage in stages):
        cost = f"cost {as_text(costs, 0)}"
    return f"Computed, not measured; rates {rates}. All stages: {as_text(hours)} h; {cost}."


if __name__ == "__main__":
    entry_point(main, READS)()
