"""Where a run's curve and sample predictions go while it trains: wandb, TensorBoard, or its own folder alone.

`history.parquet` and `samples.parquet` are written in any case, and a tracker shows what they hold. A run that goes on
takes the steps after its checkpoint again, so its tracker is first told the curve up to there: each step is shown once.
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
from core.config import to_mapping
from core.errors import UserError
from core.json_files import write_json
from core.records import Conversation
from core.tables import read_parquet
from distill.config import Config
from students.training.samples import SAMPLES, markdown, sample_table, shortened

log = logging.getLogger(__name__)
METRICS = "metrics.json"
NAME = 128  # characters that wandb's server takes
Record = Mapping[str, Any]


class Tracker:
    """What a trainer tells of its run. This one is deaf: the tracker of all ranks but the first."""

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

    def __init__(self, config: Config, folder: Path, conversations: Sequence[Conversation]):
        self.config, self.folder, self.conversations = config, folder, conversations
        self.samples = pl.DataFrame(schema=SAMPLES)

    def start(self, history: Sequence[Record]) -> None:
        self.done = history[-1]["step"] if history else 0
        path = self.folder / "samples.parquet"
        if path.exists():
            self.samples = read_parquet(path).filter(pl.col("step") <= self.done)

    def sample(self, logits: torch.Tensor, step: int) -> None:
        if not self.config.tracker.samples:
            return
        table = sample_table(self.conversations, logits, step, self.config.tracker.samples, self.config.seed)
        self.samples = pl.concat([self.samples, table])
        partial = self.folder / ".samples.parquet.partial"
        self.samples.write_parquet(partial)
        partial.replace(self.folder / "samples.parquet")

    def samples_at(self, step: int) -> pl.DataFrame:
        return self.samples.filter(pl.col("step") == step)


class Wandb(OwnFolder):
    """A wandb run, always the same one for a folder: `wandb/id.json` holds its id.

    It is offline unless WANDB_API_KEY or WANDB_MODE says otherwise. Each process that goes on with an offline run makes
    another offline folder. `wandb sync` (0.31) would number repeated steps anew, and refuses all folders if one was
    killed before its first flush; so the new folder gets the whole curve, and the older ones are removed.
    Raises `UserError` where wandb does not start.
    """

    def __init__(self, config: Config, folder: Path, conversations: Sequence[Conversation]):
        import wandb

        super().__init__(config, folder, conversations)
        wandb.finish()  # the run that an error left open in this process
        home = folder / "wandb"
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "id.json").exists():
            write_json(home / "id.json", {"id": secrets.token_hex(4)})
        identifier = json.loads((home / "id.json").read_text())["id"]
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        before = list(home.glob(f"*run-*-{identifier}"))
        try:
            self.run = wandb.init(
                project=config.tracker.project,
                id=identifier,
                resume="allow",
                name=shortened(f"{config.role}/{config.run}/fold={config.fold}", NAME),
                group=shortened(f"{config.role}/{config.run}", NAME),
                job_type=config.role,
                config=to_mapping(config),
                dir=folder,
                mode=mode,
                # False: an offline run reads its tables from its own folder, not from a copy in the home directory.
                settings=wandb.Settings(silent=True, console="off", allow_offline_artifacts=False),
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"wandb does not start ({error}): see to WANDB_API_KEY and the network, "
                "or set WANDB_MODE=offline or tracker=none"
            ) from error
        self.run.define_metric("*", step_metric="step")
        unseen = [old for old in before if old.name.startswith("offline-") and not any(old.glob("*.synced"))]
        self.server_knows_it = len(before) > len(unseen)
        for old in unseen:
            shutil.rmtree(old)
        if not (self.run.offline or self.run.disabled):
            log.info("wandb: %s", self.run.url)

    def start(self, history: Sequence[Record]) -> None:
        super().start(history)
        if self.run.offline and self.server_knows_it:
            self.first = self.done + 1
        else:  # online, the server says how far it got; the steps from there are in the history or will be taken again
            self.first = self.run.starting_step
        for record in history:
            self.log(record)

    def log(self, record: Record) -> None:
        import wandb

        if record["step"] < self.first:
            return
        values = {name: value for name, value in record.items() if value is not None}
        if len(samples := self.samples_at(record["step"])):
            values["samples"] = wandb.Table(columns=[*samples.columns], data=[list(row) for row in samples.iter_rows()])
        self.run.log(values, step=record["step"])

    def finish(self) -> None:
        manifest = json.loads((self.folder / MANIFEST).read_text())
        self.run.config.update(
            {"manifest": {k: v for k, v in manifest.items() if k != "config"}}, allow_val_change=True
        )
        # Apart from the last step's values, which wandb's summary holds under the same names.
        self.run.summary.update({"final": json.loads((self.folder / METRICS).read_text())})
        for name in (MANIFEST, METRICS):
            self.run.save(
                shutil.copy(self.folder / name, self.run.dir), base_path=self.run.dir, policy="now", glob=False
            )
        offline, files = self.run.offline, Path(self.run.dir).parent
        self.run.finish()
        if offline:
            log.info("wandb sync %s uploads what wandb recorded", files)


class TensorBoard(OwnFolder):
    """Event files in `tensorboard/`: scalars, samples, configuration and manifest as text, peak GPU memory (GB).

    A run that goes on writes a further file, whose first event has readers drop the steps after the checkpoint.
    """

    def __init__(self, config: Config, folder: Path, conversations: Sequence[Conversation]):
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(config, folder, conversations)
        self.open = SummaryWriter

    def start(self, history: Sequence[Record]) -> None:
        super().start(history)
        home = self.folder / "tensorboard"
        goes_on = [int(path.name.split(".")[3]) for path in home.glob("events.out.tfevents.*")]
        if goes_on:  # readers take files by name, which is the second, then the process: be in a later second
            time.sleep(max(0.0, max(goes_on) + 1 - time.time()))
        self.writer = self.open(str(home), purge_step=self.done + 1 if goes_on else None)
        if not goes_on:
            self.writer.add_text("config", _code(to_mapping(self.config)), 0)
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


def open_tracker(config: Config, folder: Path, rank: int, validation: Sequence[Conversation]) -> Tracker:
    """The tracker that `config.tracker` names, on the first rank only. Raises `UserError` where it does not start."""
    kinds: dict[str, type[OwnFolder]] = {"wandb": Wandb, "tensorboard": TensorBoard, "none": OwnFolder}
    if rank:
        return Tracker()
    try:
        return kinds[config.tracker.backend](config, folder, validation)
    except ModuleNotFoundError as error:
        raise UserError(
            f"tracker={config.tracker.backend} needs {error.name}: install it or set tracker=none"
        ) from error
