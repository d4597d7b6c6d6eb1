"""A tiny judge as `distill.export` leaves one: what serving, predicting and evaluating open."""

from pathlib import Path

from distill import runs
from distill.config import PromptConfig, from_mapping, to_mapping
from distill.prompts import Renderer
from distill.provenance import Learned, write_learned
from tests.composing import composed
from tests.tiny_models import Family, tiny_judge


def tiny_export(folder: Path, family: Family = "llama", max_tokens: int = 256) -> Path:
    """A finished export in `folder`: a judge with random weights that renders prompts of at most `max_tokens`."""
    tiny_judge(folder, family)
    prompt = from_mapping(PromptConfig, {**composed("prompt=compact")["prompt"], "max_tokens": max_tokens})
    settings = {"prompt": to_mapping(prompt)}
    hashes = Renderer(prompt, folder).hashes
    write_learned(folder, Learned())
    runs.write_manifest(folder, "export", settings, [], folder, prompt=hashes, extra={"failed": []})
    return folder
