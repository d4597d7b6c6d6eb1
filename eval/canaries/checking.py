"""Whether an engine computes the judge that was exported: asked on the machine at hand, before it judges anything.

An export carries `canaries.parquet`: training conversations, the token ids that they became, and the logits that the
exported model gave them in floating point, as its fidelity was measured (`eval.canaries.making` writes it). Whoever
opens an export scores them first, with the very engine that is about to judge. Raw logits of whole prompts depend on
all that lies between a text and a verdict: renderer, tokenizer, padding, pooling, the order of the labels, types,
kernels.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl

from core.errors import UserError
from core.prompts import Rendered, Renderer
from core.records import LABELS, Conversation
from core.scoring import Scorer, score
from core.tables import parquet_metadata, read_parquet
from eval.config import CanaryMode

log = logging.getLogger(__name__)
CANARIES = "canaries.parquet"
TEXTS = {name: pl.List(pl.String) for name in ("prompt", "response_a", "response_b")}
SCHEMA = pl.Schema(
    {
        **{"id": pl.String(), **TEXTS, "model_a": pl.String(), "model_b": pl.String(), "order": pl.String()},
        **{"ids": pl.List(pl.Int32), "logits": pl.Array(pl.Float32, len(LABELS))},
    }
)


@dataclass(frozen=True)
class Differences:
    """How far two sets of logits are apart, or may be: `rms` over all, the `largest`, and `shift`, that of a label's
    mean. Kernels that round differently scatter about the same mean; one that computes something else moves it.
    """

    rms: float
    largest: float
    shift: float

    @classmethod
    def between(cls, found: np.ndarray, expected: np.ndarray) -> Self:
        """Of logits [n, 3]; NaN where one is."""
        apart = found.astype(np.float64) - expected
        return cls(np.sqrt(np.mean(apart**2)), np.abs(apart).max(), np.abs(apart.mean(axis=0)).max())

    def within(self, tolerated: Self) -> bool:
        """Whether none is larger than tolerated; NaN is."""
        return all(getattr(self, f.name) <= getattr(tolerated, f.name) for f in fields(self))

    def __str__(self) -> str:
        return f"{self.rms:.2g} rms, {self.largest:.2g} at most, {self.shift:.2g} in a label's mean"


def write_canaries(
    folder: Path,
    shown: Sequence[tuple[Conversation, Rendered]],
    logits: np.ndarray,
    tolerated: Differences,
) -> None:
    """Write `canaries.parquet`: conversations, each with its prompt and the logits [n, 3] as shown."""
    rows = [
        {name: getattr(c, name) for name in ("id", *TEXTS, "model_a", "model_b")} | {"order": p.order, "ids": [*p.ids]}
        for c, p in shown
    ]
    table = pl.DataFrame([{**row, "logits": answer} for row, answer in zip(rows, logits, strict=True)], schema=SCHEMA)
    table.write_parquet(folder / CANARIES, metadata={name: repr(float(x)) for name, x in asdict(tolerated).items()})


def check_canaries(folder: Path, renderer: Renderer, scorer: Scorer, canaries: CanaryMode) -> str | None:
    """Have `scorer` score the canaries of the export in `folder`; None where it computes what was exported.

    Where it does not, a sentence says by how much: raised as `UserError`, or with "warn" logged and returned,
    for the output to be marked with.
    """
    problem = _problem(folder, renderer, scorer)
    if problem is None:
        return None
    if canaries == "refuse":
        raise UserError(f"{problem}. canaries.on_failure=warn continues and marks what it writes")
    log.warning("%s", problem)
    return problem


def _problem(folder: Path, renderer: Renderer, scorer: Scorer) -> str | None:
    path = folder / CANARIES
    if not path.exists():
        return (
            f"{folder} has no {CANARIES}, so nobody can tell whether this machine computes what was exported: an "
            "older version made it; export it again with overwrite=true"
        )
    table, metadata = read_parquet(path), parquet_metadata(path)
    tolerated = Differences(**{f.name: float(metadata[f.name]) for f in fields(Differences)})
    expected = table["logits"].to_numpy()
    prompts = [_rendered(row, renderer) for row in table.iter_rows(named=True)]
    if other := [
        name for name, ids, prompt in zip(table["id"], table["ids"], prompts, strict=True) if [*ids] != prompt
    ]:
        return (
            f"{folder}: {len(other)} of {len(table)} canaries become other tokens here than at the export, such as "
            f"{other[0]!r}: install the version of tokenizers that its manifest.json was made with, or export it again"
        )
    found = score(scorer, prompts)
    if broken := int((~np.isfinite(found)).any(axis=1).sum()):
        return (
            f"{folder}: {broken} of {len(table)} canaries have logits here that are not finite: fp16 overflows, or the "
            "engine is broken; take the scorer's dtype=fp32 or bf16, or another backend"
        )
    differences = Differences.between(found, expected)
    if differences.within(tolerated):
        log.info("%d canaries: logits differ from the export's by %s (up to %s)", len(table), differences, tolerated)
        return None
    return (
        f"{folder} computes something else here than was exported: logits of its {len(table)} canaries differ by "
        f"{differences}; tolerated are {tolerated}. Take another engine (the scorer's backend=transformers, or its "
        "dtype) or another export.format: docs/export.md"
    )


def _rendered(row: dict[str, object], renderer: Renderer) -> list[int]:
    """A canary's prompt, made anew from its texts."""
    order = row["order"]
    texts = {name: row[name] for name in SCHEMA if name not in ("order", "ids", "logits")}
    (prompt,) = renderer.render([Conversation(**texts)], [order])  # type: ignore[arg-type, list-item]
    return prompt.ids
