"""Whether a T4 can run an exported model, as far as its files tell: no GPU is needed, and none is asked.

The rules are those of the runtimes on compute capability 7.5:

    vLLM 0.33   which `requirements/gpu-teacher.txt` pins: activations in fp16; int8 by CUTLASS; int8 and int4 weights
                under fp16 activations by Marlin
    llama.cpp   room and a score head
"""

import logging
from collections.abc import Callable
from pathlib import Path

from core import screen
from core.errors import UserError
from core.exported import GGUF_BACKBONE
from students.export.config import T4Config
from students.export.formats import Runtime, format_in
from students.export.t4 import rules
from students.export.t4.findings import Finding, findings_table
from students.export.t4.kernels import kernels
from students.export.t4.model_files import ModelFiles, read_model_files
from students.export.t4.quantised_layers import quantised_layers

log = logging.getLogger(__name__)


def examine(folder: Path, t4: T4Config, load_in_8bit: bool, *, whole: bool = False) -> list[Finding]:
    """What `check_t4` finds: all of it printed where a rule is broken or with `whole`, else in a line."""
    findings = check_t4(folder, t4, load_in_8bit=load_in_8bit)
    if whole or any(finding.ok is False for finding in findings):
        screen.console().print(findings_table(folder, findings))
    else:
        unknown = ", ".join(finding.rule for finding in findings if finding.ok is None) or "none"
        held = sum(finding.ok is True for finding in findings)
        log.info("%s keeps %d rules for T4s; cannot be told here: %s", folder, held, unknown)
    return findings


def check_t4(folder: Path, t4: T4Config, *, load_in_8bit: bool = False) -> list[Finding]:
    """All rules, on a folder that `distill.export` wrote; `load_in_8bit` as its scorer does (bitsandbytes).

    Raises `UserError` where it is no such folder, and where a file of weights is broken.
    """
    return RULES[format_in(folder).runtimes[0]](read_model_files(folder, load_in_8bit), t4)


def _in_vllm(model: ModelFiles, t4: T4Config) -> list[Finding]:
    return [
        rules.number_format(model),
        rules.no_bfloat16(model),
        rules.score_head(model),
        *quantised_layers(model),
        rules.fp16_range(model),
        rules.attention(model),
        rules.memory(model, t4),
        kernels(),
    ]


def _in_llama_cpp(model: ModelFiles, t4: T4Config) -> list[Finding]:
    from gguf import GGUFReader

    path = model.folder / GGUF_BACKBONE
    try:
        GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} is no whole GGUF file ({error}): copy or export it again") from error
    return [rules.score_head(model), rules.memory(model, t4)]


RULES: dict[Runtime, Callable[[ModelFiles, T4Config], list[Finding]]] = {"vllm": _in_vllm, "llama.cpp": _in_llama_cpp}
