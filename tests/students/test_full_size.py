"""Students at their full size, as they are computed on a GPU: with tensors that have a device and a shape, no values.

PyTorch's fake tensors take no memory and no GPU, and an operation on tensors of two devices raises as it would there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from transformers import AutoModelForSequenceClassification

from distill.config import Config
from distill.records import LABELS, ORDERS
from distill.shapes import model_config
from students.dataset import Batch, collate
from students.losses import Objective
from students.model import Head, Judge, with_lora
from tests.composing import configured
from tests.students.single_steps import make_conversations

pytestmark = pytest.mark.timeout(600)
CONVERSATIONS = make_conversations(2)
ROWS = [(i, order) for i in range(len(CONVERSATIONS)) for order in range(len(ORDERS))]
ALL_TERMS = ("kl", "reverse_kl", "jensen_shannon", "skew_kl", "cosine", "squared_error", "swap_consistency")
PRESETS = {"gemma9b": 9.2e9, "teacher_llama70b": 70e9}


def judge_of(config: Config, layers: int | None = None) -> Judge:
    """As `build_judge` makes it of a base's weights, which nobody needs here; on the current device."""
    settings = model_config(str(config.student.base), Path("nowhere"))
    settings.num_labels, settings.num_hidden_layers = len(LABELS), layers or settings.num_hidden_layers
    model: Any = AutoModelForSequenceClassification.from_config(
        settings, dtype=torch.bfloat16, attn_implementation="eager" if settings.model_type == "gemma2" else "sdpa"
    )
    model.score = Head(settings.hidden_size, len(LABELS), bias=False)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return Judge(with_lora(model, config.student), Path("nowhere")).train()


@contextmanager
def on_a_gpu() -> Iterator[Batch]:
    """A batch on the GPU; within, tensors are fakes, on the GPU unless they say otherwise."""
    batch = collate(ROWS, CONVERSATIONS, torch.device("cpu"))  # reads values
    with FakeTensorMode() as mode, torch.device("cuda"):
        named = {field.name: getattr(batch, field.name) for field in fields(batch)}
        moved = {name: mode.from_tensor(tensor).to("cuda") for name, tensor in named.items() if tensor is not None}
        yield replace(batch, **moved)


@pytest.mark.parametrize("preset", PRESETS)
def test_forward_loss_and_gradients_stay_on_the_gpu(preset: str) -> None:
    terms = [f"loss.{name}.weight=0.1" for name in ALL_TERMS]
    config = configured(f"+exp={preset}", *terms)
    objective = Objective(config.loss)
    with on_a_gpu() as batch:
        judge = judge_of(config)
        assert sum(p.numel() for p in judge.parameters()) == pytest.approx(PRESETS[preset], rel=0.05)
        factors = (objective.weights(0.5) / objective.normalisers(8, 8, 2)).to("cuda")
        logits = judge(batch.input_ids, batch.positions, batch.ends)
        loss = (factors * objective.sums(logits, batch, 0.5)).sum()
        loss.backward()
        assert logits.shape == (len(ROWS), len(LABELS)) and logits.dtype == torch.float32
        assert {tensor.device.type for tensor in (logits, loss)} == {"cuda"}
        weights, head = judge.trainable()
        assert all(p.grad is not None and p.grad.device.type == "cuda" for p in [*weights, *head])


@pytest.mark.parametrize("left", ["input_ids", "ends", "votes", "teacher_weights"])
def test_a_tensor_that_was_left_on_the_cpu_is_noticed(left: str) -> None:
    """Which is what makes the test above worth something."""
    config = configured("+exp=gemma9b")
    objective = Objective(config.loss)
    with on_a_gpu() as batch:
        judge = judge_of(config, layers=1)
        broken = replace(batch, **{left: getattr(batch, left).to("cpu")})
        with pytest.raises(RuntimeError, match=r"(?i)device"):
            objective.sums(judge(broken.input_ids, broken.positions, broken.ends), broken, 0.5)
