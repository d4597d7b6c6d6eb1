"""The formats of an export, one row each: how it is written, what reads it, how large it is, what reports call it.

A new format is a row here and the module that writes it; its name joins `students.export.config.FormatName`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from core.errors import UserError
from core.exported import GGUF_BACKBONE
from core.renamed import removed
from students.export.config import FormatName, QuantisationConfig

Prompts = Sequence[Sequence[int]]  # token ids
# Writes a merged model into another folder; the prompts are what quantisation is calibrated on.
Writer = Callable[[Path, Path, QuantisationConfig, Prompts], None]
Runtime = Literal["vllm", "transformers", "llama.cpp"]
FP16_SCALES = 2 / 128  # bytes a weight, of one scale for 128 of them


@dataclass(frozen=True)
class Format:
    """A row of the table.

    `label`: what reports say of it. `weight_bytes`: of a weight of a linear layer, scales included. `write`: None where
    the merged model is the export. `runtimes`: what reads it on a T4, the one it is meant for first; whether it can is
    decided by that one's rules in `students.export.t4`. `int8_activations`: whether T4s compute it in their int8 cores.
    `vllm_on_cpus`: whether vLLM reads it without a GPU, too. `file`: one that no other format has.
    """

    name: FormatName
    label: str
    weight_bytes: float
    write: Writer | None
    runtimes: tuple[Runtime, ...] = ("vllm", "transformers")
    int8_activations: bool = False
    vllm_on_cpus: bool = False
    file: str | None = None


def _quantised(name: FormatName, model: Path, out: Path, settings: QuantisationConfig, prompts: Prompts) -> None:
    from students.export.quantising import quantise

    quantise(model, out, name, settings, prompts)


def _gguf(model: Path, out: Path, settings: QuantisationConfig, prompts: Prompts) -> None:
    from students.export.gguf import write_gguf

    write_gguf(model, out)


ROWS = (
    Format("merged", "the student in fp16", 2.0, write=None),
    Format(
        "w8a8",
        "int8 weights and activations",
        1.0,
        write=partial(_quantised, "w8a8"),
        int8_activations=True,
        vllm_on_cpus=True,
    ),
    Format("w8a16", "int8 weights", 1.0 + FP16_SCALES, write=partial(_quantised, "w8a16")),
    Format("w4a16", "int4 weights", 0.5 + FP16_SCALES, write=partial(_quantised, "w4a16")),
    Format(
        "gguf",
        "int8 weights, llama.cpp",
        1.0 + 2 / 32,  # Q8_0: one scale for 32 weights
        write=_gguf,
        runtimes=("llama.cpp",),
        file=GGUF_BACKBONE,
    ),
)
FORMATS: dict[str, Format] = {row.name: row for row in ROWS}


def format_named(name: str) -> Format:
    """The row of a name that a manifest holds. Raises `UserError` for a format of an earlier version."""
    if name not in FORMATS:
        raise UserError(
            f"export.format={name}: {removed('export.format', name) or 'give one of ' + ', '.join(FORMATS)}"
        )
    return FORMATS[name]


def format_in(folder: Path) -> Format:
    """A row whose runtimes read the model in `folder`, told from its files: not every model has a manifest."""
    return next((row for row in ROWS if row.file and (folder / row.file).exists()), FORMATS["merged"])
