"""The ways to tune a judge and the models to start from, each through the real stage and back from its folder."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.data.table import load_conversations
from core.errors import UserError
from core.models.shards import locate
from core.records import LABELS
from core.scoring import logits_by_order, score_conversations
from distill import prepare, student
from distill.config import Config
from distill.training_run import run_folder
from eval.metrics import log_loss_rows, predict
from students.trained import open_trained
from students.training.collectives import process_group
from students.training.data import split
from students.training.engine import open_deepspeed
from students.training.model import JudgeModel, build_judge
from teachers.scorers.transformers import TransformersScorer
from tests.composing import configured, scorer
from tests.students.training.gpus import Loaded, PretendedGpus

pytestmark = pytest.mark.timeout(300)
Configure = Callable[..., Config]
REFERENCE = scorer("transformers", batch_tokens=512)
IDS, ENDS = torch.tensor([[5, 6, 7, 2, 9], [5, 6, 7, 8, 0]]), torch.tensor([4, 8])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("artifacts")
    prepare.main(configured("+exp=smoke", f"paths.root={root}", "data.test_share=0"))
    return root


@pytest.fixture
def configure(root: Path, tiny_llama: Path) -> Configure:
    def build(name: str, *overrides: str, base: Path = tiny_llama) -> Config:
        fixed = ["+exp=smoke", f"paths.root={root}", "model.layers=null", "loss=votes", "model.lora.dropout=0"]
        config = configured(*fixed, *overrides)
        return replace(config, run=name, model=replace(config.model, base=str(base)))

    return build


@pytest.fixture
def judge_of(configure: Configure) -> Callable[..., JudgeModel]:
    def build(*overrides: str, base: Path | None = None) -> JudgeModel:
        config = configure("unused", *overrides, **({} if base is None else {"base": base}))
        return build_judge(Path(str(config.model.base)), config.model, config.engine, config.seed)

    return build


def losses(config: Config) -> np.ndarray:
    return pl.read_parquet(run_folder(config) / "history.parquet")["loss"].to_numpy()


def served_log_loss(config: Config) -> float:
    """The validation log loss of what the run left behind, merged, in an engine that did not train it."""
    trained = open_trained(run_folder(config), config.root, "train it")
    rows = load_conversations(config.root / "data" / config.data.name)
    _, validation = split(rows, config.fold, config.train.validation_share)
    scores = score_conversations(
        TransformersScorer(trained.merged(config.root), REFERENCE), trained.renderer, validation
    )
    probabilities = predict(*logits_by_order(scores, [c.id for c in validation]))
    return float(log_loss_rows(probabilities, np.array([c.votes for c in validation])).mean())


TUNINGS = {
    "lora": (),
    "rslora": ("model.lora.method=rslora",),
    "dora": ("model.lora.method=dora",),
    "full": ("model=full", "model.lora.rank=4"),
    "frozen": ("model.freeze_layers=1",),
    "uncapped": ("model.softcapping=false",),
}


@pytest.mark.parametrize(
    ("family", "tuning"),
    [
        *(("tiny_gemma2", tuning) for tuning in TUNINGS),
        ("tiny_llama", "dora"),
        ("tiny_llama", "full"),
        ("tiny_qwen2", "full"),
    ],
)
def test_what_was_trained_is_what_is_served(
    configure: Configure, family: str, tuning: str, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(family)
    config = configure(f"{family}-{tuning}", "optimizer.lr=0.01", *TUNINGS[tuning], base=base)
    assert student.main(config) == pytest.approx(served_log_loss(config), abs=1e-5)


def test_full_tuning_is_the_same_on_all_stages_of_zero(configure: Configure) -> None:
    configs = [configure(f"full-{stage}", "model=full", f"engine={stage}") for stage in ("zero0", "zero2", "zero3")]
    for config in configs:
        student.main(config)
    first, *others = (load_file(run_folder(c) / "model" / "model.safetensors") for c in configs)
    for config, other in zip(configs[1:], others, strict=True):
        np.testing.assert_allclose(losses(configs[0]), losses(config), atol=1e-5)
        assert first.keys() == other.keys()
        for name, tensor in first.items():
            torch.testing.assert_close(tensor, other[name], atol=1e-5, rtol=0)


def test_frozen_layers_stay_and_the_others_learn(judge_of: Callable[..., JudgeModel], tiny_llama: Path) -> None:
    for overrides in (("model=full", "model.freeze_layers=1"), ("model.freeze_layers=1",)):
        names = {name for name, p in judge_of(*overrides).named_parameters() if p.requires_grad}
        assert any("layers.1." in name for name in names) and any("score" in name for name in names)
        assert not any("layers.0." in name or "embed_tokens" in name for name in names)
    with pytest.raises(ValueError, match=r"model.freeze_layers=2: the base has 2 layers"):
        judge_of("model.freeze_layers=2")


def test_gradient_checkpointing_changes_no_gradient(judge_of: Callable[..., JudgeModel]) -> None:
    gradients = []
    for flag in ("false", "true"):
        judge = judge_of(f"engine.gradient_checkpointing={flag}").train()
        torch.manual_seed(0)
        for name, parameter in judge.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        judge(IDS, None, ENDS).square().sum().backward()
        gradients.append([p.grad for part in judge.trainable() for p in part])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.fixture
def own_judge(tiny_judge_llama: Path, tmp_path: Path) -> Callable[[list[str]], Path]:
    """A classifier of the tiny Llama whose outputs bear the given names."""

    def build(names: list[str]) -> Path:
        folder = tmp_path / "-".join(names)
        shutil.copytree(tiny_judge_llama, folder)
        config = json.loads((folder / "config.json").read_text())
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
        (folder / "config.json").write_text(json.dumps(config))
        tensors = load_file(folder / "model.safetensors")
        tensors["score.weight"] = tensors["score.weight"][: len(names)].clone()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return build


class TestStart:
    def test_a_judge_keeps_its_head_in_our_order_of_labels(
        self,
        judge_of: Callable[..., JudgeModel],
        own_judge: Callable[[list[str]], Path],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO)
        base = own_judge(["winner_tie", "winner_model_a", "winner_model_b"])
        stored = load_file(base / "model.safetensors")["score.weight"]
        assert torch.equal(judge_of(base=base).trainable()[1][0], stored[[1, 2, 0]])
        assert "the score head is the base's" in caplog.text
        fresh = judge_of("model.head=new", base=base).trainable()[1][0]
        assert not torch.isclose(fresh, stored).any() and "drawn anew: model.head=new" in caplog.text

    @pytest.mark.parametrize("names", [["LABEL_0"], ["x", "y", "z"]])
    def test_a_reward_model_and_another_classifier_get_a_new_head(
        self,
        configure: Configure,
        own_judge: Callable[[list[str]], Path],
        names: list[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO)
        config = configure(f"from-{len(names)}", base=own_judge(names))
        assert student.main(config) == pytest.approx(served_log_loss(config), abs=1e-5)
        assert f"drawn anew: that of {config.model.base} has {len(names)} outputs, named {names}" in caplog.text

    def test_armorm_leaves_its_own_outputs_behind(
        self, configure: Configure, own_judge: Callable[[list[str]], Path]
    ) -> None:
        base = own_judge(["LABEL_0"])
        tensors = load_file(base / "model.safetensors")
        tensors |= {"regression_layer.weight": torch.ones(19, 64), "gating.layers.0.weight": torch.ones(64, 64)}
        del tensors["score.weight"]
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
        settings = json.loads((base / "config.json").read_text())
        own = {"architectures": ["LlamaForRewardModelWithGating"], "auto_map": {"AutoModel": "modeling_custom.ArmoRM"}}
        (base / "config.json").write_text(json.dumps(settings | own))
        config = configure("from-armorm", base=base)
        assert student.main(config) == pytest.approx(served_log_loss(config), abs=1e-5)
        merged = open_trained(run_folder(config), config.root, "").merged(config.root)
        assert not any("gating" in name or "regression" in name for name in locate(merged))


class TestSoftcapping:
    def test_training_applies_the_cap_that_serving_applies(
        self, judge_of: Callable[..., JudgeModel], tiny_gemma2: Path
    ) -> None:
        capped = judge_of(base=tiny_gemma2)(IDS, None, ENDS)
        eager = judge_of("engine.attention=eager", base=tiny_gemma2)(IDS, None, ENDS)
        uncapped = judge_of("model.softcapping=false", base=tiny_gemma2)(IDS, None, ENDS)
        torch.testing.assert_close(capped, eager)
        assert (capped - uncapped).abs().max() > 1e-3
        with pytest.raises(ValueError, match=r"engine.attention=sdpa leaves out the softcapping"):
            judge_of("engine.attention=sdpa", base=tiny_gemma2)

    @pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is installed")
    def test_flash_attention_that_is_not_there_is_told(self, judge_of: Callable[..., JudgeModel]) -> None:
        with pytest.raises(UserError, match=r"engine\.attention=flash_attention_2 needs flash-attn: pip install"):
            judge_of("engine.attention=flash_attention_2")

    def test_an_uncapped_judge_says_so_to_whoever_loads_it(self, configure: Configure, tiny_gemma2: Path) -> None:
        config = configure("said", "model.softcapping=false", base=tiny_gemma2)
        student.main(config)
        trained = open_trained(run_folder(config), config.root, "")
        for folder in (trained.merged(config.root), trained.unmerged(config.root)[0]):
            assert json.loads((folder / "config.json").read_text())["attn_logit_softcapping"] is None


class TestLowPrecision:
    def test_what_lora_trains_stays_in_fp32_over_a_base_in_bf16(self, configure: Configure) -> None:
        config = configure("bf16", "model.dtype=bf16", "optimizer.lr=0.01")
        student.main(config)
        adapter = load_file(run_folder(config) / "adapter" / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
        assert losses(config)[-1] < losses(config)[0]

    @pytest.mark.parametrize(
        ("dtype", "in_bf16", "loaded", "precision"),
        [
            ("auto", True, torch.bfloat16, "high"),
            ("auto", False, torch.float32, "highest"),  # as a T4, which emulates bf16
            ("fp32", True, torch.float32, "highest"),
        ],
    )
    def test_gpus_train_in_bf16_where_they_compute_in_it_and_round_to_tf32_beside_it(
        self,
        judge_of: Callable[..., JudgeModel],
        dtype: str,
        in_bf16: bool,
        loaded: torch.dtype,
        precision: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        gpus = PretendedGpus(monkeypatch, in_bf16=in_bf16)
        gpus.note_loading(monkeypatch)
        with pytest.raises(Loaded):
            judge_of(f"model.dtype={dtype}")
        assert (gpus.events[-1]["dtype"], gpus.precision) == (loaded, precision)

    @pytest.mark.long
    def test_kahan_learns_where_plain_bf16_stalls(self, configure: Configure) -> None:
        """Steps of 2e-5 on weights of 0.1, whose neighbours in bf16 are 4e-4 away: rounded to nearest, all are lost."""
        common = ("model=full", "optimizer.lr=2e-5", "optimizer.head_lr=2e-5", "optimizer.decay=constant")
        common += ("train.epochs=12", "model.head=new", "engine=zero1")
        common += ("train.batch_conversations=2", "limit=12")  # a CPU emulates bf16, slowly
        exact = configure("exact", *common)
        student.main(exact)
        ends = {}
        for kind in ("fp32", "kahan", "none"):
            config = configure(f"master-{kind}", *common, "model.dtype=bf16", f"optimizer.master_weights={kind}")
            student.main(config)
            ends[kind] = losses(config)[-5:].mean()
        learnt = losses(exact)[:5].mean() - losses(exact)[-5:].mean()
        assert abs(ends["fp32"] - losses(exact)[-5:].mean()) < 0.2 * learnt
        assert abs(ends["kahan"] - losses(exact)[-5:].mean()) < 0.2 * learnt
        assert ends["none"] - losses(exact)[-5:].mean() > 0.5 * learnt

    def test_kahan_is_refused_where_it_does_nothing(self, configure: Configure) -> None:
        for overrides in ((), ("model=full",), ("model=full", "model.dtype=bf16", "engine=zero0")):
            config = configure("refused", "optimizer.master_weights=kahan", *overrides)
            judge = build_judge(Path(str(config.model.base)), config.model, config.engine, 0)
            with process_group(), pytest.raises(ValueError, match="master_weights=kahan is for a full tuning in bf16"):
                open_deepspeed(judge, config.optimizer, config.engine)


def test_a_full_tuning_has_no_adapter_to_serve(configure: Configure) -> None:
    config = configure("whole", "model=full")
    student.main(config)
    trained = open_trained(run_folder(config), config.root, "")
    with pytest.raises(ValueError, match="is a full tuning and has no adapter"):
        trained.unmerged(config.root)
    assert [*json.loads((trained.merged(config.root) / "config.json").read_text())["id2label"].values()] == [*LABELS]
