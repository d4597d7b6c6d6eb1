"""How much of a student is luck: runs whose learning rates differ by parts in ten million, and what eval would say.

    python -m bench.steadiness [--runs 10] [--jobs N] +exp=demo tracker=none

Trains `--runs` runs `<name>_p<i>` of the experiment, `--jobs` at a time, its stages before being finished; each keeps
the judge of every validation in `at-<step>/`. Runs whose judges are there are not trained again. All judges are scored
on the validation rows and on the rows that eval measures on. Then each run's checkpoint is chosen twice: by the votes'
log loss alone, and as the training does, by its objective beyond the standard error. The figures are the standard
deviations over runs of log loss (nats) and flip rate under both rules, on the same trajectories, and their ratios.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

from bench.configuration import configured
from distill.config import Config
from distill.training_run import run_folder, training_run

TARGETS = {"log_loss_sd_ratio": ["<=", 0.33], "flip_rate_sd_ratio": ["<=", 0.33]}
APART = 5e-7  # relative difference of the learning rates of two runs


@dataclass(frozen=True)
class Checkpoint:
    """A judge of a run: what its validation said, and what it is worth on the rows that eval measures on."""

    step: int
    votes: float
    objective: np.ndarray
    log_loss: float
    flip_rate: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at a time, one core each")
    arguments, overrides = parser.parse_known_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    configs = [nudged(overrides, i) for i in range(arguments.runs)]
    missing = [config for config in configs if not list(run_folder(config).glob("at-*"))]
    with get_context("spawn").Pool(arguments.jobs, maxtasksperchild=1) as pool:
        pool.map(train_keeping_all, missing, chunksize=1)
    runs = measured(configs)
    chosen = {"votes": [by_votes(run) for run in runs], "objective": [by_objective(run) for run in runs]}
    for i, pair in enumerate(zip(*chosen.values(), strict=True)):
        print(f"run {i}: " + ", ".join(f"by {rule} {described(c)}" for rule, c in zip(chosen, pair, strict=True)))
    figures: dict[str, float] = {}
    for name in ("log_loss", "flip_rate"):
        sd = {rule: float(np.std([getattr(c, name) for c in kept], ddof=1)) for rule, kept in chosen.items()}
        figures |= {f"{name}_sd_by_{rule}": value for rule, value in sd.items()}
        if sd["votes"]:
            figures[f"{name}_sd_ratio"] = sd["objective"] / sd["votes"]
    rounded = {name: round(value, 4) for name, value in figures.items()}
    print(json.dumps({"bench": "steadiness", "figures": rounded, "targets": TARGETS}))


def nudged(overrides: Sequence[str], run: int) -> Config:
    """The configuration of a run, its learning rate a little off."""
    plain = configured(overrides)
    own = [f"name={plain.name}_p{run}", f"optimizer.lr={plain.optimizer.lr * (1 + run * APART)!r}"]
    return configured([*overrides, *own])


def train_keeping_all(config: Config) -> None:
    """Train a run on one core; the judge of each validation stays."""
    import torch

    from students.training import run
    from students.training.loop import Trainer
    from students.training.validation import Validation

    class KeepsAll(Trainer):
        def validate(self) -> Validation:
            found = super().validate()
            self.judge.save(self.folder / f"at-{self.state.step}", gathered=True, write=True)
            return found

    torch.set_num_threads(1)
    run.Trainer = KeepsAll  # type: ignore[misc]  # what the stage takes
    run.train(training_run(config))


def measured(configs: Sequence[Config]) -> list[list[Checkpoint]]:
    """[run][validation], of runs that differ in their learning rates alone."""
    import torch
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    from core.data.table import load_conversations
    from core.models.resolving import resolve
    from core.prompts import Renderer
    from core.store.targets import soft_targets
    from eval.metrics import flip_rate, log_loss_rows, predict
    from eval.scored import scored_and_training
    from students.training.data import make_examples, split
    from students.training.losses import SWAPPED, Objective
    from students.training.model import build_judge
    from students.training.steps import micro_batches
    from students.training.validation import score, validation

    config, device = configs[0], torch.device("cpu")
    rows = load_conversations(config.root / "data" / config.data.name)
    _, scored, _ = scored_and_training(rows, config.eval.split, config.fold)
    _, validating = split(rows[: config.limit], config.fold, config.train.validation_share)
    targets = None
    if config.loss.distils:
        store = config.root / "logits" / str(config.teacher.name)
        asked = (validating, config.fold, config.teacher.rows, config.teacher.max_entropy)
        targets = soft_targets(store, *asked).logits
    base = resolve(config.model.base, config.root, config.model.layers)
    renderer = Renderer(config.prompt, base)
    parts = [
        make_examples(part, renderer.render(part), theirs, config.loss.rows)
        for part, theirs in ((validating, targets), (scored, None))
    ]
    votes, objective = np.array([c.votes for c in scored]), Objective(config.loss)
    judge = build_judge(base, config.model, config.engine, config.seed).eval()
    runs = []
    for run in configs:
        checkpoints = []
        for folder in sorted(run_folder(run).glob("at-*"), key=lambda path: int(path.name[3:])):
            set_peft_model_state_dict(judge.model, load_file(folder / "adapter" / "adapter_model.safetensors"))
            logits = []
            for examples in parts:
                lengths = [e.length for e in examples]
                (batches,) = micro_batches(range(len(lengths)), lengths, 1, config.engine.micro_batch_tokens)
                logits.append(score(judge, examples, batches, device, padding_free=False))
            found = validation(objective, logits[0], parts[0])
            ab, ba = logits[1][:, 0].numpy(), logits[1][:, 1][:, SWAPPED].numpy()
            worth = float(log_loss_rows(predict(ab, ba), votes).mean()), flip_rate(ab, ba)
            checkpoints.append(Checkpoint(int(folder.name[3:]), found.log_loss, found.objective, *worth))
        runs.append(checkpoints)
    return runs


def by_votes(run: Sequence[Checkpoint]) -> Checkpoint:
    """The first with the lowest log loss of the validation's votes."""
    return min(run, key=lambda checkpoint: checkpoint.votes)


def by_objective(run: Sequence[Checkpoint]) -> Checkpoint:
    """As `Trainer.keep_best` does."""
    from students.training.validation import better

    lowest = kept = run[0]
    for checkpoint in run[1:]:
        kept = kept if better(lowest.objective, checkpoint.objective) else checkpoint
        lowest = min(lowest, checkpoint, key=lambda c: c.objective.mean())
    return kept


def described(checkpoint: Checkpoint) -> str:
    return f"step {checkpoint.step}, log loss {checkpoint.log_loss:.4f}, flips {checkpoint.flip_rate:.3f}"


if __name__ == "__main__":
    main()
