"""A tiny judge as `distill.export` leaves one: what serving, predicting and evaluating open."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from core.artefacts.building import Artefact
from core.artefacts.contents import MANIFEST
from core.config import from_mapping, to_mapping
from core.data.arena_sim import simulate
from core.data.config import SimulateConfig
from core.json_files import write_json
from core.pointwise import JUDGE, Choice, noted
from core.prompts import PromptConfig, Renderer
from core.provenance import Learned, write_learned
from eval.canaries.making import make_canaries
from tests.artefacts import finish_again
from tests.composing import composed, configured, scorer
from tests.tiny_models import Family, tiny_judge


def tiny_export(folder: Path, family: Family = "llama", max_tokens: int = 256, *, pointwise: bool = False) -> Path:
    """A finished export in `folder`: a judge with random weights that renders prompts of at most `max_tokens`."""
    tiny_judge(folder, family)
    if pointwise:
        one_output(folder)
    named = "prompt=pointwise_compact" if pointwise else "prompt=compact"
    prompt = from_mapping(PromptConfig, {**composed(named)["prompt"], "max_tokens": max_tokens})
    settings = {"prompt": to_mapping(prompt)}
    renderer = Renderer(prompt, folder)
    with_canaries(folder, renderer)
    write_learned(folder, Learned())
    Artefact(folder, "export", settings, [], folder).finish(prompt=renderer.hashes, extra={"failed": []})
    return folder


def one_output(folder: Path) -> None:
    """Turn the judge in `folder` into a pointwise one, whose reward is what speaks for a and not for b."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    weight = model.score.weight.detach()
    model.score = torch.nn.Linear(weight.shape[1], 1, bias=False)
    model.score.weight.data = weight[:1] - weight[1:2]
    noted_choice = noted(Choice(1.5, -0.5))
    model.config.update({"id2label": {0: "reward"}, "label2id": {"reward": 0}, **noted_choice})
    model.save_pretrained(folder)
    write_json(folder / JUDGE, noted_choice)


def with_canaries(folder: Path, renderer: Renderer, conversations: int = 12, repeats: int = 2) -> None:
    """Add canaries to the judge in `folder`, as `distill.export` does; of an int8 judge, `repeats` tell its scatter."""
    rows = simulate(SimulateConfig(conversations, seed=1))[0]
    canaries = replace(configured("+exp=smoke").canaries, repeats=repeats)
    make_canaries(folder, folder, renderer, scorer("transformers"), "fp16", canaries, rows, seed=0)


def with_swapped_labels(source: Path, folder: Path) -> Path:
    """A copy whose head gives b for a."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"] = tensors["score.weight"][[1, 0, 2]].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if (folder / MANIFEST).exists():
        finish_again(folder)
    return folder
