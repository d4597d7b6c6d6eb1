"""A head of label tokens: the judge begins as the language model that it is made of, and says why where it cannot."""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from core.errors import UserError
from core.models.label_tokens import OF_ONE_RESPONSE, label_token_ids, output_rows
from core.prompts import Renderer
from core.records import Conversation
from core.renamed import with_new_names
from distill import prepare, student
from distill.training_run import run_identity
from students.training.model import JudgeModel, build_judge
from students.training.pairing import PACE
from tests.composing import configured
from tests.tiny_models import FAMILIES, Family, tiny_causal

pytestmark = pytest.mark.timeout(300)
LABEL_TOKENS = ["A", "B", "?"]
POINTWISE = ("model.kind=pointwise", "prompt=pointwise")
CONVERSATIONS = [
    Conversation(f"{n}", ["Why is the sky blue?"] * n, ["Light is scattered."] * n, ["I cannot see it."] * n)
    for n in (1, 2, 3)
]


def judge_of(base: Path, *overrides: str) -> torch.nn.Module:
    config = configured("+exp=smoke", "model.layers=null", "model.head=label_tokens", *overrides)
    return build_judge(base, config.model, config.engine, 0, LABEL_TOKENS).eval()


def shares(model: torch.nn.Module, ids: list[int], tokens: list[int]) -> torch.Tensor:
    """The language model's own softmax over three next tokens, of its logits before a final cap: [3]."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
    if cap := getattr(model.config, "final_logit_softcapping", None):
        logits = cap * torch.atanh(logits / cap)
    return logits[tokens].softmax(-1)


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_at_step_0_the_judge_is_the_language_model(family: Family, tied: bool, tuning: str, tmp_path: Path) -> None:
    base = tiny_causal(tmp_path / "base", family, tied=tied)
    judge = judge_of(base, f"model={tuning}", "model.softcapping=true")
    # sdpa leaves out Gemma-2's cap on attention scores.
    causal = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    renderer, tokens = Renderer(configured("+exp=smoke").prompt, base), label_token_ids(LABEL_TOKENS, base)
    with torch.no_grad():
        for prompt in renderer.render(CONVERSATIONS):
            ids = torch.tensor([prompt.ids])
            found = judge(ids, None, torch.tensor([len(prompt.ids) - 1]))[0].double()
            assert (found.softmax(-1) - shares(causal, prompt.ids, tokens)).abs().max() < 1e-5
            assert abs(found.sum()) < 1e-3  # the head's rows have no mean


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_at_step_0_a_pointwise_judge_is_the_language_model_s_yes_against_no(
    family: Family, tied: bool, tmp_path: Path
) -> None:
    base = tiny_causal(tmp_path / "base", family, tied=tied)
    config = configured("+exp=smoke", "model.layers=null", "model.head=label_tokens", *POINTWISE)
    judge = build_judge(base, config.model, config.engine, 0, LABEL_TOKENS[:2]).eval()
    rewards = JudgeModel(judge.model, base)
    causal = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    tokens = label_token_ids(LABEL_TOKENS[:2], base, OF_ONE_RESPONSE)
    with torch.no_grad():
        for prompt in Renderer(config.prompt, base).render(CONVERSATIONS):
            found = rewards(torch.tensor([prompt.ids]), None, torch.tensor([len(prompt.ids) - 1]))[0, 0].double()
            assert (found.sigmoid() - shares(causal, prompt.ids, tokens)[0]).abs() < 1e-5
    with pytest.raises(UserError, match=r"give one text for each of \['good', 'bad'\]"):
        build_judge(base, config.model, config.engine, 0, LABEL_TOKENS)


def test_a_base_without_the_head_that_is_asked_for_says_so(tiny_llama: Path, tiny_judge_llama: Path) -> None:
    for base, overrides, message in (
        (tiny_llama, (), "has no score head"),
        (tiny_judge_llama, POINTWISE, "has 3 outputs"),
    ):
        config = configured("+exp=smoke", "model.layers=null", "model.head=base", *overrides)
        with pytest.raises(UserError, match=rf"model\.head=base: .*{message}.*; give model\.head=new"):
            build_judge(base, config.model, config.engine, 0)


def test_a_pointwise_judge_goes_on_from_a_reward_model(tiny_llama: Path, tmp_path: Path) -> None:
    base = tmp_path / "reward"
    model = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1, dtype=torch.float32)
    model.config.update({"choice": {"scale": 2.0, "log_tie": -0.5, "height": 0.5}})
    model.save_pretrained(base)
    config = configured("+exp=smoke", "model.layers=null", *POINTWISE)
    judge = build_judge(base, config.model, config.engine, 0)
    assert torch.equal(judge.classifier.score.weight, model.score.weight) and judge.choice is not None
    assert judge.choice.log_scale.exp().item() == pytest.approx(2) and judge.choice.log_tie == -0.5
    assert judge.choice.height is not None and PACE * judge.choice.height.item() == pytest.approx(0.5)
    other = build_judge(base, replace(config.model, head="new"), config.engine, 0)
    assert other.choice is not None and other.choice.log_scale.item() == 0 == other.choice.log_tie


def test_logits_are_scaled_as_the_family_scales_them(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scaled"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"logits_scaling": 8.0}))
    assert torch.equal(output_rows(folder, [3, 4]) * 8, output_rows(tiny_llama, [3, 4]))


def test_a_configuration_that_leaves_out_what_is_usual_is_read_as_its_family_has_it(
    tiny_judge_llama: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "judge"
    shutil.copytree(tiny_judge_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]  # Llama's are not tied, so its embeddings are no output matrix
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no output matrix"):
        output_rows(folder, [3, 4])


def test_what_has_no_outputs_for_the_labels_says_so(tiny_llama: Path, tiny_judge_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no output matrix"):
        judge_of(tiny_judge_llama)
    unsaid = tmp_path / "unsaid"  # whether the embeddings are the outputs, too: in a Llama they are not
    shutil.copytree(tiny_judge_llama, unsaid)
    config = json.loads((unsaid / "config.json").read_text())
    assert not config.pop("tie_word_embeddings")
    (unsaid / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no output matrix"):
        judge_of(unsaid)
    with pytest.raises(UserError, match="must be one token each"):
        label_token_ids(["yes indeed", "B", "?"], tiny_llama)
    with_bias = tmp_path / "bias"
    shutil.copytree(tiny_llama, with_bias)
    tensors = load_file(with_bias / "model.safetensors")
    bias = torch.zeros(len(tensors["lm_head.weight"]))
    save_file({**tensors, "lm_head.bias": bias}, with_bias / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"has lm_head\.bias"):
        judge_of(with_bias)


def test_a_run_begins_from_the_prompt_s_label_tokens(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[torch.Tensor] = []

    def remember(build: Callable[..., torch.nn.Module]) -> Callable[..., torch.nn.Module]:
        def call(*arguments: object) -> torch.nn.Module:
            judge = build(*arguments)
            built.append(judge.classifier.score.weight.detach().clone())
            return judge

        return call

    monkeypatch.setattr("students.training.run.build_judge", remember(build_judge))
    fixed = ["+exp=smoke", f"paths.root={tmp_path}", "model.layers=null", "loss=votes", f"model.base={tiny_llama}"]
    config = configured(*fixed, "model.head=label_tokens", "prompt.label_tokens=[A,B,'?']")
    prepare.main(config)
    assert student.main(config) < 5
    rows = output_rows(tiny_llama, label_token_ids(LABEL_TOKENS, tiny_llama))
    assert torch.equal(built[0], rows - rows.mean(dim=0))
    other = replace(config, prompt=replace(config.prompt, label_tokens=["B", "A", "?"]))
    with pytest.raises(UserError, match=r"prompt\.label_tokens"):
        student.main(other)


@pytest.mark.parametrize("prompt", ["default", "chatml", "llama3_chat"])
def test_a_run_of_before_prompts_named_label_tokens_is_the_same_run(prompt: str) -> None:
    now = json.loads(json.dumps(run_identity(configured("+exp=smoke", f"prompt={prompt}"))))
    before = deepcopy(now)
    del before["prompt"]["label_tokens"]
    assert with_new_names(before) == now
