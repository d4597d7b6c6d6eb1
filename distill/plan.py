"""What scoring with a teacher takes, before anything is rented: python -m distill.plan +exp=gemma9b plan=h100

    FLOPs of a row = 2 x parameters x computed tokens + attention, 2 x 2 x layers x width x tokens^2 / 2
    rows/s         = GPUs x peak x utilisation / FLOPs of a row

The first term is every weight's multiplication and addition for each token (Kaplan et al. 2020, "Scaling laws for
neural language models", section 2.1), the second the scores and sums of causal attention. Tokens from the prefix cache
are not computed. `utilisation` is an assumption until `python -m bench.teacher` has run on the machine.
"""

from pathlib import Path
from typing import Any

from distill.config import Config, PlanConfig
from distill.door import door

ORDERS = 2  # each conversation is scored with either response first


def main(config: Config) -> None:
    """Print the plan of the configured teacher."""
    from rich.console import Console
    from rich.table import Table

    plan = config.plan
    model = teacher_shape(config)
    rows = (plan.conversations or count_conversations(config)) * ORDERS
    rate = rows_per_second(plan, **model)
    hours = rows / rate / 3600
    table = Table(title=f"scoring with {config.teacher.name}: not measured, computed", show_header=False)
    table.add_row("parameters", f"{model['parameters'] / 1e9:.1f} billion")
    table.add_row("GPUs", f"{plan.gpus} x {plan.gpu}, {plan.utilisation:.0%} of {plan.peak_tflops:g} TFLOPS")
    table.add_row("a row", f"{plan.tokens} tokens, {plan.cached:.0%} cached")
    table.add_row("rows", f"{rows:,} ({rows // ORDERS:,} conversations, both orders)")
    table.add_row("rate", f"{rate:.1f} rows/s")
    table.add_row("time", f"{hours:.1f} h")
    if plan.price_per_gpu_hour is not None:
        table.add_row("cost", f"{hours * plan.gpus * plan.price_per_gpu_hour:,.0f}")
    Console().print(table)


def rows_per_second(plan: PlanConfig, parameters: float, layers: int, width: int) -> float:
    """Prompts a second on all of the plan's GPUs together."""
    computed = plan.tokens * (1 - plan.cached)
    flops = 2 * parameters * computed + 2 * layers * width * plan.tokens * computed
    return plan.gpus * plan.peak_tflops * 1e12 * plan.utilisation / flops


def teacher_shape(config: Config) -> dict[str, Any]:
    """`parameters`, `layers` and `width` of the teacher's model, from its configuration alone: no weights are read."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    base = config.teacher.model or config.student.base
    if base is None:
        raise ValueError("teacher.model=null and student.base=null: name the model that scores")
    try:
        shape: Any = AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the configuration of {base!r} is neither here nor to be had from the hub: {error}"
        ) from error
    if config.plan.parameters is None:
        with torch.device("meta"):
            parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(shape).parameters())
    else:
        parameters = config.plan.parameters
    return {"parameters": parameters, "layers": shape.num_hidden_layers, "width": shape.hidden_size}


def count_conversations(config: Config) -> int:
    """How many conversations the prepared data hold. Raises `ValueError` where they are not prepared."""
    from distill.runs import read_manifest

    data: Path = config.root / "data" / config.data.name
    return read_manifest(data, "prepare", "prepare the data, or give plan.conversations=57477").rows["kept"]


if __name__ == "__main__":
    door(main)()
