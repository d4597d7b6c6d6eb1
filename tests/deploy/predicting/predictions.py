"""Predictions in tests: files to predict, tiny exports to predict with, and what came of it."""

import csv
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from core.artefacts.building import Artefact
from core.config import to_mapping
from core.prompts import Renderer
from core.provenance import Learned, write_learned
from core.records import Conversation
from core.store.parts import part_files
from core.tables import read_csv
from deploy.predicting import outputs
from deploy.predicting.submission import COLUMNS
from distill import predict
from distill.config import Config
from tests.composing import configured
from tests.running import own_process
from tests.tiny_exports import with_canaries

Configure = Callable[..., Config]
FAST = ("scorer@scorers.exported=transformers", "predict.rows_per_part=3", "predict.devices=1")


def finish_export(folder: Path) -> Path:
    """Make the judge in `folder` a finished export."""
    prompt = configured("+exp=smoke", "prompt.max_tokens=300").prompt
    manifest, renderer = {"prompt": to_mapping(prompt)}, Renderer(prompt, folder)
    with_canaries(folder, renderer)
    write_learned(folder, Learned())
    Artefact(folder, "export", manifest, [], folder.parent).finish(prompt=renderer.hashes)
    return folder


def write_csv(path: Path, rows: Sequence[tuple[str, str, str, str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "prompt", "response_a", "response_b"), *rows])
    return path


def cells(c: Conversation) -> tuple[str, str, str, str]:
    return c.id, json.dumps(c.prompt), json.dumps(c.response_a), json.dumps(c.response_b)


def parts_folder(config: Config) -> Path:
    return outputs.parts_folder(Path(str(config.output)))


def answers(config: Config) -> tuple[list[str], np.ndarray]:
    found = read_csv(Path(str(config.output)), schema_overrides={"id": pl.String})
    assert found.columns == COLUMNS
    return found["id"].to_list(), found.drop("id").to_numpy()


def killed_after(
    config: Config, parts: int, number: int = signal.SIGKILL, run: Callable[[Config], None] = predict.main
) -> int | None:
    """Start predicting, signal the process once it has written `parts`; its exit code."""
    process = own_process(run, config)
    while process.is_alive() and len(part_files(parts_folder(config))) < parts:
        time.sleep(0.001)
    os.kill(process.pid or 0, number)
    process.join()
    return process.exitcode
