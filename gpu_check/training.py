"""Two optimiser steps on the device against the same two in fp32 on the CPU."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.records import ORDERS
from distill.config import Config
from distill.training_run import recipe
from gpu_check.judges import TINY, WIDTHS, Family, configured, conversations, device, random_judge, working_dtype
from gpu_check.results import EXACT, LOSS, Failed, Figures, name_of, same
from students.training.collectives import process_group
from students.training.config import OptimizerConfig
from students.training.data import Example, collate
from students.training.engine import open_optimizer
from students.training.losses import Objective
from students.training.model import JudgeModel, build_judge
from students.training.validation import score, validation

METHODS: dict[str, tuple[str, ...]] = {
    "lora": (),
    "qlora": ("model.load_in_4bit=true", "engine.gradient_checkpointing=true"),
    "full": ("model=full", "model.dtype=bf16", "optimizer.master_weights=kahan"),
}
CPU = torch.device("cpu")
ROUNDED = 0.15  # of a weight, by nf4, root mean square


class PlainEngine:
    """A training engine in plain PyTorch: the reference's, and that of machines without DeepSpeed.

    `rounded`: trained weights and their gradients are what bf16 holds of them, whatever type the judge computes in.
    """

    def __init__(self, judge: JudgeModel, config: OptimizerConfig, where: torch.device, rounded: bool = False):
        self.module, self.device, self.clip = judge.to(where), where, config.clip
        self.optimizer = open_optimizer(judge, config)
        self.rounded: list[tuple[nn.Parameter, nn.Parameter]] = []
        for group in self.optimizer.param_groups if rounded else ():
            wide = group["params"]
            group["params"] = [nn.Parameter(p.detach().bfloat16()) for p in wide]
            self.rounded += zip(wide, group["params"], strict=True)

    def __call__(self, *inputs: Any) -> torch.Tensor:
        return self.module(*inputs)

    def train(self) -> None:
        self.module.train()

    def eval(self) -> None:
        self.module.eval()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        if self.clip:
            torch.nn.utils.clip_grad_norm_([p for part in self.module.trainable() for p in part], self.clip)
        for wide, narrow in self.rounded:
            assert wide.grad is not None
            narrow.grad = wide.grad.bfloat16()
        self.optimizer.step()
        self.module.zero_grad()
        with torch.no_grad():
            for wide, narrow in self.rounded:
                wide.copy_(narrow)


def two_steps(folder: Path, dry: bool, family: Family, method: str, zero: int | None) -> Figures:
    """Train a judge by `method` under DeepSpeed's ZeRO stage `zero`, None: without DeepSpeed; compare with the CPU."""
    dtype = torch.bfloat16 if method == "full" else working_dtype()
    base = random_judge(folder / "base", family, dry, dtype)
    config = configured(base, *METHODS[method], *rates(family, dry), f"engine=zero{zero or 0}")
    examples = conversations()
    judge, precision = prepared(base, config), torch.get_float32_matmul_precision()
    reference = reference_of(judge, base, config)
    torch.set_float32_matmul_precision(precision)  # the training's own, TF32 with bf16: the reference is exact
    if zero is None:
        taken = in_plain(PlainEngine(judge, config.optimizer, device()), config, examples)
    else:
        taken = in_trainer(judge, config, examples, folder)
    expected = in_plain(PlainEngine(reference, config.optimizer, CPU, method == "full"), in_fp32(config), examples)
    tolerance = EXACT if device().type == "cpu" and dtype == torch.float32 else LOSS[name_of(dtype)]
    same("loss", taken, expected, tolerance)
    if not min(abs(a - b) for a, b in pairwise(expected)) > tolerance:
        raise Failed(f"losses {expected} do not move: an optimiser that does nothing would pass")
    return {
        "losses": [round(loss, 5) for loss in taken],
        "off_by": max(abs(a - b) for a, b in zip(taken, expected, strict=True)),
        "tolerance": tolerance,
        "dtype": name_of(dtype),
    }


def rates(family: Family, dry: bool) -> tuple[str, str]:
    """Learning rates at which two steps move the loss by some hundredths at any width.

    AdamW moves each weight by its rate, and so an output by up to rate x width: the rates of conf/ would be leaps here.
    They fall less than the width grows, since weights in bf16 do not move by less than half of their last digit.
    """
    width = (TINY if dry else WIDTHS[family])["hidden_size"]
    factor = (TINY["hidden_size"] / width) ** 0.75
    return f"optimizer.lr={1e-4 * factor:.2e}", f"optimizer.head_lr={1e-3 * factor:.2e}"


def prepared(base: Path, config: Config) -> JudgeModel:
    """The judge as the student stage builds it, its LoRA matrices drawn by name: the same on any device."""
    judge = build_judge(base, config.model, config.engine, config.seed)
    with torch.no_grad():
        for i, (name, parameter) in enumerate(judge.named_parameters()):
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
                parameter.copy_(noise * (0.02 if "lora_B" in name else parameter.shape[1] ** -0.5))
    return judge


def in_fp32(config: Config) -> Config:
    """The same training without what is there for the sake of speed or memory."""
    return replace(
        config,
        model=replace(config.model, dtype="fp32", load_in_4bit=False),
        engine=replace(config.engine, zero_stage=0, attention="eager"),
    )


def reference_of(judge: JudgeModel, base: Path, config: Config) -> JudgeModel:
    """The same judge in fp32 on the CPU. Raises `Failed` where 4-bit weights are further from those in the file than
    nf4's rounding.
    """
    reference = prepared(base, in_fp32(config)).to("cpu")
    if config.model.load_in_4bit:
        from bitsandbytes.functional import dequantize_4bit
        from bitsandbytes.nn import Linear4bit

        exact: dict[str, Any] = dict(reference.named_modules())
        in_4_bits: dict[str, Any] = {name: m for name, m in judge.named_modules() if isinstance(m, Linear4bit)}
        for name, module in in_4_bits.items():
            module.to(device())  # where they are rounded, should they not be there yet
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state).float().cpu()
            expected = exact[name].weight
            error = ((weight - expected).square().mean() / expected.square().mean()).sqrt().item()
            if not 0 < error < ROUNDED:
                raise Failed(f"{name} in 4 bits is off by {error:.3g} of its weights, not by 0 to {ROUNDED}")
            expected.data.copy_(weight)
    return reference


def in_plain(engine: PlainEngine, config: Config, examples: list[Example]) -> list[float]:
    """The losses of two steps over all `examples`, and the objective after them."""
    objective, where = Objective(config.loss), engine.device
    rows = [(i, order) for i in range(len(examples)) for order in range(len(ORDERS))]
    weight = float(len(rows))  # each example counts one, in both orders
    factors = (objective.weights / objective.normalisers(weight, weight)).to(where)
    losses = []
    engine.train()
    for _ in range(2):
        batch = collate(rows, examples, where, config.engine.padding_free)
        loss = (factors * objective.sums(engine(batch.input_ids, batch.positions, batch.ends), batch)).sum()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    engine.eval()
    logits = score(engine, examples, [rows], where, config.engine.padding_free)
    return [*losses, float(validation(objective, logits, examples).objective.mean())]


def in_trainer(judge: JudgeModel, config: Config, examples: list[Example], folder: Path) -> list[float]:
    """The same through the student stage's own trainer and DeepSpeed, on one rank."""
    from students.training.loop import Trainer
    from students.training.tracking import Tracker

    with process_group():
        trainer = Trainer(recipe(config), judge, examples, examples, folder / "run", Tracker())
        steps = [trainer.take_step(list(range(len(examples))), epoch) for epoch in range(2)]
        return [*(step["loss"] for step in steps), float(trainer.validate().objective.mean())]
