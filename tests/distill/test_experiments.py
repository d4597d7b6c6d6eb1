"""Every experiment composes at every entry point, and the models that presets name load and train on tiny stand-ins."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.command_line import CONF
from distill.config import Config
from students.training.model import build_judge
from tests.composing import configured

EXPERIMENTS = sorted(path.stem for path in Path(CONF, "exp").glob("*.yaml"))
DATA = sorted(path.stem for path in Path(CONF, "data").glob("*.yaml"))
FAMILY = {
    **dict.fromkeys(["gemma9b", "gemma27b", "blackpearl"], "tiny_gemma2"),
    **dict.fromkeys(["qwen14b", "wsdm3", "teacher_qwen72b"], "tiny_qwen2"),
    **dict.fromkeys(["llama8b", "armorm8b", "teacher_llama70b"], "tiny_llama"),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_composes(name: str) -> None:
    config = configured(f"+exp={name}")  # all doors read this one configuration
    assert config.name == config.run == name
    assert config.model.base


@pytest.mark.parametrize("name", DATA)
def test_data_set_composes_and_has_one_source(name: str) -> None:
    data = configured(f"data={name}").data
    assert data.name == name
    assert sum(source is not None for source in (data.files, data.hub, data.simulate)) == 1


@pytest.mark.parametrize(
    ("group", "option"),
    [("tracker", "none"), ("engine", "zero3"), ("prompt", "compact"), ("scorer@scorers.teacher", "transformers")],
)
def test_alternative_composes(group: str, option: str) -> None:
    assert isinstance(configured(f"{group}={option}"), Config)


def test_experiment_files_hold_deltas_and_their_command() -> None:
    for name in EXPERIMENTS:
        text = Path(CONF, "exp", f"{name}.yaml").read_text()
        assert text.startswith("# @package _global_\n#"), name
        assert "make " in text or "python -m distill." in text, f"{name}: no command in its header"
        assert len(text.splitlines()) <= 30, name


@pytest.mark.parametrize(("name", "family"), FAMILY.items())
def test_preset_builds_on_a_tiny_stand_in(name: str, family: str, request: pytest.FixtureRequest) -> None:
    config = configured(f"+exp={name}")
    preset = config.model
    model = replace(preset, dtype="fp32")  # most CPUs only emulate bf16
    judge = build_judge(request.getfixturevalue(family), model, config.engine, seed=0)
    logits = judge(torch.tensor([[5, 6, 7, 0], [5, 6, 7, 8]]), None, torch.tensor([2, 7]))
    logits.sum().backward()
    weights, head = judge.trainable()
    assert logits.shape == (2, 3) and logits.dtype == torch.float32
    assert head[0].shape[0] == 3 and head[0].dtype == torch.float32 and head[0].grad is not None
    adapted = any("lora_" in name for name, p in judge.named_parameters() if p.requires_grad)
    assert adapted == (preset.tuning == "lora") and any(p.grad is not None for p in weights)
    assert not adapted or preset.lora.rank in {p.shape[0] for p in weights}
