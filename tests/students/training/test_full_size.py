"""Students at their full size, as they are computed on a GPU: with tensors that have a device and a shape, no values.

PyTorch's fake tensors take no memory and no GPU, and an operation on tensors of two devices raises as it would there.
There are no gradients: autograd asks for CUDA's streams, which a build of PyTorch for CPUs lacks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForSequenceClassification

from core.models.shapes import model_config
from core.records import LABELS, ORDERS
from distill.config import Config
from students.training.data import Batch, collate
from students.training.heads import Head
from students.training.losses import Objective
from students.training.model import JudgeModel, with_lora
from tests.composing import configured
from tests.grids import grid
from tests.students.training.single_steps import make_conversations

pytestmark = pytest.mark.timeout(600)
CONVERSATIONS = make_conversations(2)
GPU = torch.device("cuda", 0)
ROWS = [(i, order) for i in range(len(CONVERSATIONS)) for order in range(len(ORDERS))]
ALL_TERMS = ("kl", "cosine")
PRESETS = {"gemma9b": 9.2e9, "teacher_llama70b": 70e9}


def judge_of(config: Config, layers: int | None = None) -> JudgeModel:
    """As `build_judge` makes it of a base's weights, which nobody needs here."""
    settings = model_config(str(config.model.base), Path("nowhere"))
    settings.num_labels, settings.num_hidden_layers = len(LABELS), layers or settings.num_hidden_layers
    attention = "eager" if settings.model_type == "gemma2" else "sdpa"
    with torch.device("meta"):
        model: Any = AutoModelForSequenceClassification.from_config(
            settings, dtype=torch.bfloat16, attn_implementation=attention
        )
        model.score = Head(settings.hidden_size, len(LABELS), bias=False)
        return JudgeModel(with_lora(model, config.model), Path("nowhere")).train()


def put_on_gpu(judge: JudgeModel) -> None:
    for module in judge.modules():
        for name, old in module.named_parameters(recurse=False):
            new = torch.empty(old.shape, dtype=old.dtype, device=GPU)
            module.register_parameter(name, torch.nn.Parameter(new, old.requires_grad))
        for name, old in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty(old.shape, dtype=old.dtype, device=GPU), persistent=False)


class WithoutGuards(TorchFunctionMode):
    """Two methods ask for the current GPU, which PyTorch's build for CPUs cannot tell; the operations behind do not."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__getitem__ and args[0].device.type == "cuda":
            return indexed(*args)
        if func is torch.Tensor.contiguous:
            return args[0].clone(memory_format=torch.contiguous_format)
        return func(*args, **(kwargs or {}))


def indexed(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    index = index if isinstance(index, tuple) else (index,)
    rest = tensor.dim() - sum(i is not None and i is not Ellipsis for i in index)
    place = next((k for k, i in enumerate(index) if i is Ellipsis), len(index))
    index = (*index[:place], *(slice(None),) * rest, *index[place + 1 :])
    dim, aten, chosen = 0, torch.ops.aten, {}
    for i in index:
        if i is None:
            tensor = aten.unsqueeze(tensor, dim)
        elif isinstance(i, slice):
            tensor = aten.slice(tensor, dim, i.start, i.stop, i.step or 1)
        elif isinstance(i, torch.Tensor | list):
            chosen[dim] = torch.as_tensor(i)
        else:
            tensor, dim = aten.select(tensor, dim, i), dim - 1
        dim += 1
    return aten.index(tensor, [chosen.get(d) for d in range(max(chosen) + 1)]) if chosen else tensor


@contextmanager
def on_a_gpu() -> Iterator[Batch]:
    """A batch on the GPU; within, tensors are fakes."""
    batch = collate(ROWS, CONVERSATIONS, torch.device("cpu"))  # reads values
    with FakeTensorMode() as mode, WithoutGuards(), torch.no_grad():
        named = {field.name: getattr(batch, field.name) for field in fields(batch)}
        moved = {name: mode.from_tensor(tensor).to(GPU) for name, tensor in named.items() if tensor is not None}
        yield replace(batch, **moved)


@pytest.mark.parametrize("preset", grid(PRESETS, short=["gemma9b"]))
@pytest.mark.long
def test_forward_and_loss_stay_on_the_gpu(preset: str) -> None:
    terms = [f"loss.{name}.weight=0.1" for name in ALL_TERMS]
    config = configured(f"+exp={preset}", *terms)
    objective = Objective(config.loss)
    judge = judge_of(config)
    with on_a_gpu() as batch:
        put_on_gpu(judge)
        assert sum(p.numel() for p in judge.parameters()) == pytest.approx(PRESETS[preset], rel=0.05)
        factors = (objective.weights / objective.normalisers(8, 8)).to(GPU)
        logits = judge(batch.input_ids, batch.positions, batch.ends)
        loss = (factors * objective.sums(logits, batch)).sum()
        assert logits.shape == (len(ROWS), len(LABELS)) and logits.dtype == torch.float32
        assert {tensor.device.type for tensor in (logits, loss)} == {"cuda"}


@pytest.mark.parametrize("left", ["input_ids", "votes", "teacher_weights"])
def test_a_tensor_that_was_left_on_the_cpu_is_noticed(left: str) -> None:
    """Which is what makes the test above worth something."""
    config = configured("+exp=gemma9b")
    objective = Objective(config.loss)
    judge = judge_of(config, layers=1)
    with on_a_gpu() as batch:
        put_on_gpu(judge)
        broken = replace(batch, **{left: getattr(batch, left).to("cpu")})
        with pytest.raises(RuntimeError, match=r"(?i)device"):
            objective.sums(judge(broken.input_ids, broken.positions, broken.ends), broken)
