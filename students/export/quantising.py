"""Quantising a merged judge for serving, through llm-compressor, in the compressed-tensors layouts that vLLM reads.

    w8a8    int8 weights with one scale an output channel; activations are rounded at run time with one scale a token
    w8a16   int8 weights with one scale a group of a row's weights
    w4a16   int4 weights, likewise

w8a8 rounds to the nearest and needs no data, unless it is smoothed (`students.export.smoothing`). The others are by
GPTQ (Frantar et al. 2022, arXiv 2210.17323): it rounds column by column, and the columns to come make up for the error
on the activations that prompts give. Embeddings, norms, biases and the score head are never rounded.
"""

import io
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from core.artefacts.contents import MANIFEST
from core.errors import UserError
from core.folders import new_folder
from core.models.architecture import head_of, layer_of
from core.models.folders import copy_tokenizer
from core.models.shards import rewrite, stored
from students.export.config import QuantisationConfig
from students.export.smoothing import load_judge, smooth

log = logging.getLogger(__name__)
# In llm-compressor's notation. Biases, and decoders' norms, are left alone anyway; vLLM's pooler is a plain layer.
UNTOUCHED = ("score", "classifier", "re:.*embed_tokens$", "re:.*embeddings$", "re:.*LayerNorm$", "re:.*pooler.dense$")
DAMPING = 0.01  # added to the Hessian's diagonal, as a share of its mean: GPTQ's own default
BITS = {"w8a16": 8, "w4a16": 4}
GROUPS, WHOLE_ROW = (128, 64, 32), -1  # what Marlin, the kernel for T4s, knows
PACKED = ("weight_packed", "weight_scale", "weight_shape")


def quantise(
    model: Path, out: Path, format: str, settings: QuantisationConfig, prompts: Sequence[Sequence[int]]
) -> None:
    """Write `out`: the judge in `model` in one of the three formats above, as transformers and vLLM load it.

    `prompts` are token ids of training conversations; w8a8 needs none unless it is smoothed. What is not rounded keeps
    its every bit, but for norms that are smoothed. `out` appears at once and complete, in the place of an older one.
    Raises `UserError` where `model` is quantised already, and for settings that do not fit it or the format.
    """
    _check_settings(model, format, settings)
    with new_folder(out) as partial:
        if format in BITS:
            group = choose_group(model, settings.group)
            log.info(
                "%s: GPTQ on %d prompts, one scale for %s",
                format,
                len(prompts),
                "an output channel" if group == WHOLE_ROW else f"{group} weights",
            )
            with _quiet():
                _gptq(model, partial, BITS[format], group, prompts)
        elif settings.smoothing is None:
            with _quiet():
                _round(model, partial)
        else:
            log.info("%s: SmoothQuant on %d prompts", format, len(prompts))
            with _quiet():
                smoothed = smooth(model, out.with_name(f".{out.name}-smoothed"), settings.smoothing, prompts)
                _round(smoothed, partial)
            shutil.rmtree(smoothed)
        check_quantised(model, partial)


def choose_group(model: Path, group: int | None) -> int:
    """How many of a row's weights share a scale: `group`, or the largest of 128, 64, 32 that fits; -1 for all.

    It fits where it divides the width of every layer to be quantised. Raises `UserError` for a `group` that does not.
    """
    widths = {name: shape[1] for name, shape in _linears(model).items()}
    if group is None:
        return next((g for g in GROUPS if all(width % g == 0 for width in widths.values())), WHOLE_ROW)
    if odd := [name for name, width in widths.items() if width % group]:
        raise UserError(
            f"export.quantisation.group={group} does not divide the {widths[odd[0]]} inputs of {odd[0]} "
            f"({len(odd)} such layers): set it to null for one that does"
        )
    return group


def check_quantised(before: Path, after: Path) -> None:
    """Raise `UserError` unless `after` is the judge in `before` with its linear layers quantised and nothing else.

    A score head that is quantised with the rest, because a quantiser spares `lm_head` alone, is the usual mistake.
    """
    linears = {name.removesuffix(".weight") for name in _linears(before)}
    found = stored(after)
    quantised = {name.removesuffix(".weight_packed") for name in found if name.endswith(".weight_packed")}
    quantised |= {name.removesuffix(".weight") for name, (dtype, _) in found.items() if dtype == "I8"}
    head = head_of(json.loads((before / "config.json").read_text())["model_type"])
    problems = []
    if head in quantised:
        problems.append(f"the score head is quantised: name {head!r} among the layers that the quantiser ignores")
    if others := sorted(quantised - linears - {head}):
        problems.append(f"quantised without being a linear layer: {', '.join(others[:3])}: ignore them as well")
    if missed := sorted(linears - quantised):
        problems.append(f"{len(missed)} of {len(linears)} linear layers are not quantised: {', '.join(missed[:3])}")
    if bare := sorted(name for name in quantised if f"{name}.weight_scale" not in found):
        problems.append(f"quantised without a scale: {', '.join(bare[:3])}")
    if problems:
        raise UserError(
            f"{after} is not {before} with its linear layers quantised and nothing else; export it again:\n"
            + "\n".join(f"  - {p}" for p in problems)
        )


def _check_settings(model: Path, format: str, settings: QuantisationConfig) -> None:
    if "quantization_config" in json.loads((model / "config.json").read_text()):
        raise UserError(f"{model} is quantised already; give the merged model")
    if format not in ("w8a8", *BITS):
        raise UserError(f"export.format={format}: give w8a8, {' or '.join(BITS)}")
    if settings.smoothing is not None and format in BITS:
        raise UserError(
            f"export.quantisation.smoothing={settings.smoothing}: {format} does not round the activations that it "
            "smooths: set it to null"
        )


def _round(model: Path, out: Path) -> None:
    # Not through `oneshot`: in bf16 that returns other norms for Gemma, because it goes from w to 1 + w and back.
    from llmcompressor import model_free_ptq

    model_free_ptq(model, out, scheme="W8A8", ignore=UNTOUCHED)
    (out / MANIFEST).unlink(missing_ok=True)  # it copies every file of `model`, and that one tells of another artefact


def _gptq(model: Path, out: Path, bits: int, group: int, prompts: Sequence[Sequence[int]]) -> None:
    from compressed_tensors import ModelCompressor
    from llmcompressor import oneshot, reset_session
    from llmcompressor.modifiers.gptq import GPTQModifier

    judge = load_judge(model).cpu()  # from where its layers go to the GPU one by one
    strategy = {"strategy": "channel"} if group == WHOLE_ROW else {"strategy": "group", "group_size": group}
    weights = {"num_bits": bits, "type": "int", "symmetric": True, **strategy}
    recipe = GPTQModifier(
        config_groups={"linears": {"targets": ["Linear"], "weights": weights}},
        ignore=[*UNTOUCHED],
        actorder=None,
        dampening_frac=DAMPING,
    )
    rows: Any = [
        {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}
        for prompt in prompts
    ]
    # A loader of our own, because a data set would be shuffled, cut and batched.
    oneshot(
        model=judge, recipe=recipe, dataset=torch.utils.data.DataLoader(rows, batch_size=None), pipeline="sequential"
    )
    compressor = ModelCompressor.from_pretrained_model(judge)
    compressor.compress_model(judge)
    reset_session()  # which would keep the model in memory
    found = judge.state_dict()

    def packed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n: part for name, tensor in tensors.items() for n, part in parts_of(name, tensor).items()}

    def parts_of(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        module = name.removesuffix(".weight")
        if f"{module}.{PACKED[0]}" not in found:
            return {name: tensor}  # from the file, not from llm-compressor, which changes norms: see `_round`
        parts = {f"{module}.{part}": found[f"{module}.{part}"] for part in PACKED}
        return {n: part.to(tensor.dtype) if part.is_floating_point() else part for n, part in parts.items()}

    rewrite(model, out, packed)
    shutil.copy(model / "config.json", out)
    copy_tokenizer(model, out)
    compressor.update_config(out)


def _linears(model: Path) -> dict[str, list[int]]:
    """The weights of an unquantised judge that are to be quantised: name -> shape [out, in]."""
    return {name: shape for name, (_, shape) in stored(model).items() if len(shape) == 2 and layer_of(name) >= 0}


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it llm-compressor, its progress bars and warnings write nothing to the terminal; our own log does."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        for library in ("bitsandbytes", "torch.fx"):  # of kernels that are not there, of how models are traced
            logging.getLogger(library).setLevel(logging.ERROR)
        import llmcompressor  # noqa: F401  # turns its log on as it is imported
        from loguru import logger

        for library in ("llmcompressor", "compressed_tensors"):
            logger.disable(library)
        yield
