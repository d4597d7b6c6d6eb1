"""Attention under softcapping: which implementation trains, and that flex_attention computes what eager does."""

import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo import config as dynamo
from torch.nn.attention import flex_attention
from transformers import AutoConfig
from transformers.integrations.flex_attention import WrappedFlexAttention

from core.errors import UserError
from students.training import attention
from students.training.attention import choose_attention
from students.training.data import collate
from students.training.model import JudgeModel
from students.training.steps import BatchRow
from tests.students.training.gpus import PretendedGpus
from tests.students.training.single_steps import (
    Step,
    assert_same_gradients,
    make_conversations,
    make_judge,
    name_in_file,
    step_config,
)

pytestmark = pytest.mark.timeout(600)
CONVERSATIONS = make_conversations(6)  # up to 80 tokens, more than the window of tiny Gemma's first layer
CPU = torch.device("cpu")


@pytest.fixture
def capped(tiny_gemma2: Path) -> Any:
    return AutoConfig.from_pretrained(tiny_gemma2)


class TestChoice:
    def test_auto_trains_a_capped_model_by_flex_attention_on_a_gpu(
        self, capped: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert choose_attention(capped, "auto", torch.float32) == "eager"
        PretendedGpus(monkeypatch)
        monkeypatch.setattr(attention, "find_spec", lambda _: None)
        monkeypatch.setattr(attention, "triton_compiles", lambda: True)
        with dynamo.patch(recompile_limit=8):
            assert choose_attention(capped, "auto", torch.bfloat16) == "flex_attention"
        assert choose_attention(capped, "auto", torch.float32) == "eager"
        monkeypatch.setattr(attention, "find_spec", lambda name: name == "flash_attn")
        assert choose_attention(capped, "auto", torch.bfloat16) == "flash_attention_2"
        capped.attn_logit_softcapping = None
        monkeypatch.setattr(attention, "find_spec", lambda _: None)
        assert choose_attention(capped, "auto", torch.bfloat16) == "sdpa"

    def test_auto_says_what_flex_attention_lacks(
        self, capped: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        PretendedGpus(monkeypatch)
        monkeypatch.setattr(attention, "find_spec", lambda _: None)
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setenv("PATH", "/nowhere")
        assert choose_attention(capped, "auto", torch.bfloat16) == "eager"
        assert "needs a C compiler and Python's headers" in caplog.text

    def test_what_cannot_train_is_refused(self, capped: Any) -> None:
        with pytest.raises(UserError, match=r"engine\.attention=flex_attention trains on GPUs alone"):
            choose_attention(capped, "flex_attention", torch.float32)
        with pytest.raises(UserError, match=r"engine\.attention=sdpa leaves out the softcapping"):
            choose_attention(capped, "sdpa", torch.float32)


@pytest.fixture
def flex(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """flex_attention as it is traced for a GPU, its operations run one by one: needs no compiler.

    `aot_eager` traces the backward pass as well. PyTorch refuses that to CPUs, whose kernels have none; traced
    operations do.
    """

    def on_a_gpu(*arguments: Any) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            return choose_attention(*arguments)

    monkeypatch.setattr("students.training.model.choose_attention", on_a_gpu)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=request.param))
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex_attention, "_WARNINGS_SHOWN", set())
    monkeypatch.setattr(WrappedFlexAttention, "_instance", None)
    with dynamo.patch(recompile_limit=8):
        torch._dynamo.reset()
        yield


def judge_with(attention: str, gemma: Path, *overrides: str) -> JudgeModel:
    return make_judge(step_config(gemma, f"engine.attention={attention}", *overrides))


def logits_of(judge: JudgeModel, conversations: list[int], padding_free: bool = False) -> torch.Tensor:
    rows: list[BatchRow] = [(i, order) for i in conversations for order in range(2)]
    batch = collate(rows, CONVERSATIONS, CPU, padding_free)
    return judge(batch.input_ids, batch.positions, batch.ends)


@pytest.mark.long
class TestFlex:
    @pytest.mark.parametrize("flex", ["eager"], indirect=True)
    @pytest.mark.usefixtures("flex")
    def test_it_computes_what_eager_computes_and_stays_compiled(self, tiny_gemma2: Path) -> None:
        """In more kinds of shapes than torch compiles by default, after which it would store every score."""
        by_flex, eager = (judge_with(name, tiny_gemma2) for name in ("flex_attention", "eager"))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for training in (True, False):
                for judge in (by_flex, eager):
                    judge.train(training)
                for conversations, padding_free in (([5], False), ([0, 1], False), ([1, 3], True)):
                    with torch.set_grad_enabled(training):
                        found = logits_of(by_flex, conversations, padding_free)
                        expected = logits_of(eager, conversations)
                    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
        assert not [str(w.message) for w in told if "without torch.compile" in str(w.message)]

    @pytest.mark.parametrize("flex", ["aot_eager"], indirect=True)
    @pytest.mark.usefixtures("flex")
    def test_gradients_are_those_of_eager_when_activations_are_checkpointed(self, tiny_gemma2: Path) -> None:
        steps = []
        for name, padding_free in (("eager", False), ("flex_attention", False), ("flex_attention", True)):
            judge = judge_with(name, tiny_gemma2, "engine.gradient_checkpointing=true").train()
            logits_of(judge, [1, 3], padding_free).square().sum().backward()
            gradients = {name_in_file(n): p.grad for n, p in judge.named_parameters() if p.grad is not None}
            steps.append(Step({}, gradients))
        for step in steps[1:]:
            assert_same_gradients(step, steps[0])
