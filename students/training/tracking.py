"""Where a run's curve and sample predictions go while it trains: wandb, TensorBoard, or its own folder alone.

`history.parquet` and `samples.parquet` are written in any case, and a tracker shows what they hold. A resumed run takes
the steps after its checkpoint again. So its tracker first gets the curve up to there, and shows each step once.
"""

import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch

from core.artefacts.contents import MANIFEST
from core.errors import UserError
from core.json_files import write_json
from core.labels import Labels
from core.records import LABELS, Conversation
from core.tables import read_parquet
from students.training.outcome import METRICS
from students.training.recipe import TrainingRun
from students.training.samples import markdown, sample_table, samples_schema, shortened

log = logging.getLogger(__name__)
NAME = 128  # characters that wandb's server takes
Record = Mapping[str, Any]


class Tracker:
    """What a trainer calls. This one does nothing: it is the tracker of all ranks but the first."""

    def start(self, history: Sequence[Record]) -> None:
        """Before the first step: `history` holds a record for each step up to the checkpoint, if there is one."""

    def sample(self, logits: torch.Tensor, step: int) -> None:
        """At a validation: the logits [conversations, 3] of all validation conversations, before `log` of that step."""

    def log(self, record: Record) -> None:
        """After each step."""

    def finish(self) -> None:
        """Once the folder is finished: its manifest and its metrics are there to be shown."""


class OwnFolder(Tracker):
    """`tracker=none`, and what every other does too: `samples.parquet` keeps the samples of each validation."""

    def __init__(self, run: TrainingRun, conversations: Sequence[Conversation], labels: Labels):
        self.run, self.folder, self.conversations, self.labels = run, run.folder, conversations, labels
        self.samples = pl.DataFrame(schema=samples_schema(labels))

    def start(self, history: Sequence[Record]) -> None:
        self.done = history[-1]["step"] if history else 0
        path = self.folder / "samples.parquet"
        if path.exists():
            self.samples = read_parquet(path).filter(pl.col("step") <= self.done)

    def sample(self, logits: torch.Tensor, step: int) -> None:
        if not self.run.tracker.samples:
            return
        count, seed = self.run.tracker.samples, self.run.recipe.seed
        table = sample_table(self.conversations, logits, step, count, seed, self.labels)
        self.samples = pl.concat([self.samples, table])
        partial = self.folder / ".samples.parquet.partial"
        self.samples.write_parquet(partial)
        partial.replace(self.folder / "samples.parquet")

    def samples_at(self, step: int) -> pl.DataFrame:
        return self.samples.filter(pl.col("step") == step)


class Wandb(OwnFolder):
    """One wandb run for a folder, whose id is in `wandb/id.json`; offline unless WANDB_API_KEY or WANDB_MODE says not.

    Each process that resumes an offline run writes a new offline folder. It gets the whole curve, and older folders
    that were never uploaded are removed: `wandb sync` (0.31) cannot merge folders whose steps overlap.
    """

    def __init__(self, run: TrainingRun, conversations: Sequence[Conversation], labels: Labels):
        """Raises `UserError` where wandb does not start."""
        import wandb

        super().__init__(run, conversations, labels)
        wandb.finish()  # the run that an error left open in this process
        home = self.folder / "wandb"
        identifier = run_id(home)
        earlier = list(home.glob(f"*run-*-{identifier}"))
        try:
            self.wandb = wandb.init(
                project=run.tracker.project,
                id=identifier,
                resume="allow",
                name=shortened(f"{run.role}/{run.name}/fold={run.fold}", NAME),
                group=shortened(f"{run.role}/{run.name}", NAME),
                job_type=run.role,
                config=dict(run.configuration),
                dir=self.folder,
                mode=wandb_mode(),
                # False: an offline run reads its tables from its own folder, not from a copy in the home directory.
                settings=wandb.Settings(silent=True, console="off", allow_offline_artifacts=False),
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"wandb does not start ({error}): see to WANDB_API_KEY and the network, "
                "or set WANDB_MODE=offline or tracker=none"
            ) from error
        self.wandb.define_metric("*", step_metric="step")
        never_uploaded = [old for old in earlier if old.name.startswith("offline-") and not any(old.glob("*.synced"))]
        self.server_knows_it = len(earlier) > len(never_uploaded)
        for old in never_uploaded:
            shutil.rmtree(old)
        if not (self.wandb.offline or self.wandb.disabled):
            log.info("wandb: %s", self.wandb.url)

    def start(self, history: Sequence[Record]) -> None:
        super().start(history)
        # The first step to send. Online, wandb's server says how far it got.
        after_upload = self.wandb.offline and self.server_knows_it
        self.first = self.done + 1 if after_upload else self.wandb.starting_step
        for record in history:
            self.log(record)

    def log(self, record: Record) -> None:
        import wandb

        if record["step"] < self.first:
            return
        values = {name: value for name, value in record.items() if value is not None}
        if len(samples := self.samples_at(record["step"])):
            values["samples"] = wandb.Table(columns=[*samples.columns], data=[list(row) for row in samples.iter_rows()])
        self.wandb.log(values, step=record["step"])

    def finish(self) -> None:
        manifest = json.loads((self.folder / MANIFEST).read_text())
        self.wandb.config.update(
            {"manifest": {k: v for k, v in manifest.items() if k != "config"}}, allow_val_change=True
        )
        # Under a name of their own: wandb's summary holds the last step's values under the same names.
        self.wandb.summary.update({"final": json.loads((self.folder / METRICS).read_text())})
        for name in (MANIFEST, METRICS):
            self.wandb.save(
                shutil.copy(self.folder / name, self.wandb.dir), base_path=self.wandb.dir, policy="now", glob=False
            )
        offline, files = self.wandb.offline, Path(self.wandb.dir).parent
        self.wandb.finish()
        if offline:
            log.info("wandb sync %s uploads what wandb recorded", files)


def run_id(home: Path) -> str:
    """The id of the wandb run below `home`, drawn once."""
    path = home / "id.json"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True)
        write_json(path, {"id": secrets.token_hex(4)})
    return str(json.loads(path.read_text())["id"])


def wandb_mode() -> Any:
    """WANDB_MODE, or online where there is a key to log in with."""
    return os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")


class TensorBoard(OwnFolder):
    """Event files in `tensorboard/`: scalars, samples, configuration and manifest as text, peak GPU memory (GB).

    A resumed run writes a further file, whose first event makes readers drop the steps after the checkpoint.
    """

    def __init__(self, run: TrainingRun, conversations: Sequence[Conversation], labels: Labels):
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(run, conversations, labels)
        self.open = SummaryWriter

    def start(self, history: Sequence[Record]) -> None:
        super().start(history)
        home = self.folder / "tensorboard"
        earlier = [int(path.name.split(".")[3]) for path in home.glob("events.out.tfevents.*")]
        if earlier:  # readers sort files by name, which begins with the second: be in a later one
            time.sleep(max(0.0, max(earlier) + 1 - time.time()))
        self.writer = self.open(str(home), purge_step=self.done + 1 if earlier else None)
        if not earlier:
            self.writer.add_text("config", _code(self.run.configuration), 0)
            for record in history:
                self.log(record)

    def log(self, record: Record) -> None:
        step = record["step"]
        for name, value in record.items():
            if value is not None and name != "step":
                self.writer.add_scalar(name, value, step)
        if torch.cuda.is_available():
            self.writer.add_scalar("gpu_memory_gb", torch.cuda.max_memory_allocated() / 1e9, step)
        if len(samples := self.samples_at(step)):
            self.writer.add_text("samples", markdown(samples.drop("step")), step)
        self.writer.flush()  # whatever happens next, the steps of a checkpoint are on disk

    def finish(self) -> None:
        for name in (MANIFEST, METRICS):
            self.writer.add_text(name, _code(json.loads((self.folder / name).read_text())))
        self.writer.close()


def _code(value: Any) -> str:
    """JSON as a code block of Markdown, in which no markup counts."""
    return "\n".join(f"    {line}" for line in json.dumps(value, indent=1).splitlines())


def open_tracker(run: TrainingRun, rank: int, validation: Sequence[Conversation], labels: Labels = LABELS) -> Tracker:
    """The tracker of `run`, on the first rank only. Raises `UserError` where it does not start."""
    kinds: dict[str, type[OwnFolder]] = {"wandb": Wandb, "tensorboard": TensorBoard, "none": OwnFolder}
    if rank:
        return Tracker()
    backend = run.tracker.backend
    try:
        return kinds[backend](run, validation, labels)
    except ModuleNotFoundError as error:
        raise UserError(f"tracker={backend} needs {error.name}: install it or set tracker=none") from error
