"""A tiny judge as `distill.export` leaves one: what serving, predicting and evaluating open."""

from pathlib import Path

from distill import runs
from distill.arena_sim import simulate
from distill.config import PromptConfig, SimulateConfig, from_mapping, to_mapping
from distill.prompts import Renderer
from distill.provenance import Learned, write_learned
from eval.canaries import make_canaries
from tests.composing import composed, configured
from tests.tiny_models import Family, tiny_judge


def tiny_export(folder: Path, family: Family = "llama", max_tokens: int = 256) -> Path:
    """A finished export in `folder`: a judge with random weights that renders prompts of at most `max_tokens`."""
    tiny_judge(folder, family)
    prompt = from_mapping(PromptConfig, {**composed("prompt=compact")["prompt"], "max_tokens": max_tokens})
    settings = {"prompt": to_mapping(prompt)}
    renderer = Renderer(prompt, folder)
    with_canaries(folder, renderer)
    write_learned(folder, Learned())
    runs.write_manifest(folder, "export", settings, [], folder, prompt=renderer.hashes, extra={"failed": []})
    return folder


def with_canaries(folder: Path, renderer: Renderer, conversations: int = 12) -> None:
    """Add canaries to the judge in `folder`, as `distill.export` does."""
    rows = simulate(SimulateConfig(conversations, seed=1))[0]
    make_canaries(folder, folder, renderer, configured("+exp=smoke").export, rows, seed=0)
