"""DeepSpeed, set up so that the training loop alone decides what a step is.

With `managed_gradient_accumulation` off, `backward` only accumulates and `step` reduces and updates. The engine
averages over ranks, so the loop scales its loss by the number of ranks to get the sum it means.
"""

import math
from pathlib import Path
from typing import Any

import torch

from core.errors import UserError
from students.training.config import EngineConfig, OptimizerConfig
from students.training.model import JudgeModel


def open_deepspeed(judge: JudgeModel, optimizer: OptimizerConfig, engine: EngineConfig) -> Any:
    """A DeepSpeed engine over `judge`; gradients are clipped at `optimizer.clip`, 0 leaves them as they are."""
    import deepspeed

    bf16 = in_bf16(judge)
    kept_in_bf16 = bf16 and optimizer.master_weights != "fp32"
    if optimizer.master_weights != "fp32" and (not bf16 or engine.zero_stage == 0):
        raise UserError(
            f"optimizer.master_weights={optimizer.master_weights} is for a full tuning in bf16 (model=full "
            "model.dtype=bf16) with engine=zero1 or higher: LoRA matrices and fp32 weights lose no small steps"
        )
    settings = {
        "train_micro_batch_size_per_gpu": 1,  # nominal: micro-batches are cut by tokens
        "managed_gradient_accumulation": False,
        "gradient_clipping": optimizer.clip,
        # LoRA matrices and their head stay in fp32 over a base in bf16, which DeepSpeed's bf16 would round down.
        "bf16": {
            "enabled": bf16,
            "bf16_master_weights_and_grads": kept_in_bf16,
            "bf16_optimizer_states": kept_in_bf16,
        },
        "zero_optimization": {
            "stage": engine.zero_stage,
            "overlap_comm": False,
            **offloading(engine),
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    opened, *_ = deepspeed.initialize(model=judge, optimizer=open_optimizer(judge, optimizer), config=settings)
    if engine.zero_stage == 0 and not bf16:
        tell_norm(opened, optimizer.clip or math.inf)
    return opened


def tell_norm(engine: Any, clip: float) -> None:
    """Have an engine that clips fp32 gradients keep their global norm, which DeepSpeed computes and throws away."""

    def clip_gradients() -> None:
        engine._global_grad_norm = float(torch.nn.utils.clip_grad_norm_(engine.module.parameters(), clip))

    engine.clip_fp32_gradients, engine._config.gradient_clipping = clip_gradients, clip


def open_optimizer(judge: JudgeModel, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over (LoRA matrices or all weights, score head), each at its own rate.

    With Kahan's compensated summation, what rounding took off a bf16 weight is kept beside it and added at the next
    step (Zamirai et al. 2020, arXiv 2010.06192), through torch-optimi.
    """
    weights, head = judge.trainable()
    groups = [{"params": weights, "lr": config.lr}, {"params": head, "lr": config.head_lr}]
    first, second = config.betas
    settings: dict[str, Any] = {
        "betas": (first, second),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    if config.master_weights == "kahan":
        return kahan_adamw(groups, lr=config.lr, kahan_sum=True, triton=False, **settings)
    return torch.optim.AdamW(groups, **settings)


def kahan_adamw(groups: list[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
    """torch-optimi's AdamW, which counts the steps of each tensor, as PyTorch's does, and not those of a group.

    ZeRO-3 updates one part of the weights after another, each in a call of its own, and the group would count them all:
    the later a part, the smaller its first steps.
    """
    from optimi import AdamW

    class Counting(AdamW):
        def step(self, *given: Any, **named: Any) -> Any:
            updated = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
            for group, parameters in updated:
                if parameters:  # optimi counts on from here
                    group["step"] = torch.tensor(int(self.state[parameters[0]].get("step", 0)), dtype=torch.int32)
            loss = super().step(*given, **named)
            for group, parameters in updated:
                for parameter in parameters:
                    self.state[parameter]["step"] = group["step"].clone()
            return loss

    return Counting(groups, **settings)


def in_bf16(judge: JudgeModel) -> bool:
    """Whether trained weights are in bf16."""
    return any(p.dtype == torch.bfloat16 for part in judge.trainable() for p in part)


def offloading(config: EngineConfig) -> dict[str, Any]:
    """DeepSpeed's offload settings. Raises `UserError` for a folder without ZeRO-3, or for anything else."""
    if config.offload == "none":
        return {}
    device = {"device": "cpu"}
    if config.offload != "cpu":
        if config.zero_stage < 3 or not Path(config.offload).is_absolute():
            raise UserError(
                f"engine.offload={config.offload}: give none, cpu, or with engine=zero3 (now zero_stage "
                f"{config.zero_stage}) the absolute path of a folder on a fast local disk"
            )
        device = {"device": "nvme", "nvme_path": config.offload}
    return {"offload_optimizer": device, **({"offload_param": device} if config.zero_stage == 3 else {})}
