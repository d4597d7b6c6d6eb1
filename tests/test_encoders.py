"""An encoder as a base like any other: its files, a step, what is trained and what is served."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from core.data.table import load_conversations
from core.errors import UserError
from core.models.folders import copy_tokenizer
from core.models.resolving import resolve
from core.scoring import logits_by_order, score, score_conversations
from distill import export, prepare, student
from distill.config import Config
from distill.training_run import run_folder
from eval.metrics import log_loss_rows, predict
from students.export.t4.checking import check_t4
from students.trained import open_trained
from students.training.collectives import process_group
from students.training.data import split
from students.training.model import build_judge
from teachers.rewards import as_classifier
from teachers.scorers.int8 import multiplies_exactly
from teachers.scorers.opening import open_scorer
from tests.composing import configured, scorer
from tests.grids import grid
from tests.students.training.single_steps import (
    ONE_BATCH,
    ONE_EACH,
    Step,
    assert_same_gradients,
    assert_same_step,
    by_definition,
    make_conversations,
    step_config,
    take_step,
)

pytestmark = pytest.mark.timeout(300)
EIGHT = make_conversations(8)
TWELVE = torch.randint(5, 600, (1, 12), generator=torch.Generator().manual_seed(0))
POINTWISE = ("model.kind=pointwise", "prompt=pointwise_compact", "prompt.max_tokens=128")
Configure = Callable[..., Config]


def stored_as(base: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    shutil.copytree(base, folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def pooled(folder: Path) -> Any:
    with torch.no_grad():
        return AutoModel.from_pretrained(folder, add_pooling_layer=True).eval()(TWELVE)


@pytest.fixture(scope="module")
def base(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return resolve(str(tiny_encoder), tmp_path_factory.mktemp("models"))


class TestFiles:
    def test_the_names_of_its_classifier_are_given_once(self, tiny_encoder: Path, tmp_path: Path) -> None:
        base = resolve(str(tiny_encoder), tmp_path)
        assert resolve(str(tiny_encoder), tmp_path) == base == resolve(str(base), tmp_path)
        assert {name.split(".")[0] for name in load_file(base / "model.safetensors")} == {"bert"}
        assert torch.equal(pooled(base).pooler_output, pooled(tiny_encoder).pooler_output)
        assert (base / "tokenizer.json").read_bytes() == (tiny_encoder / "tokenizer.json").read_bytes()

    def test_older_names_and_the_head_of_a_language_model(self, tiny_encoder: Path, tmp_path: Path) -> None:
        def of_2018(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
            named = {
                n.replace(end, o) if n.endswith(end) else n: t
                for n, t in tensors.items()
                for end, o in [next(((e, o) for e, o in old.items() if n.endswith(e)), ("", ""))]
            }
            heads = {"cls.predictions.bias": torch.zeros(640), "bert.embeddings.position_ids": torch.arange(4)[None]}
            return {f"bert.{name}": tensor for name, tensor in named.items()} | heads

        base = resolve(str(stored_as(tiny_encoder, tmp_path / "old", of_2018)), tmp_path)
        assert torch.equal(pooled(base).pooler_output, pooled(tiny_encoder).pooler_output)

    @pytest.mark.parametrize("of_sentences", [False, True])
    def test_a_pooler_that_nobody_trained_starts_as_the_identity(
        self, of_sentences: bool, tiny_encoder: Path, tmp_path: Path
    ) -> None:
        folder = stored_as(
            tiny_encoder,
            tmp_path / "x",
            lambda t: t if of_sentences else {n: v for n, v in t.items() if "pool" not in n},
        )
        if of_sentences:
            (folder / "1_Pooling").mkdir()
            (folder / "1_Pooling" / "config.json").write_text("{}")
        found = pooled(resolve(str(folder), tmp_path))
        assert torch.equal(found.pooler_output, found.last_hidden_state[:, 0].tanh())

    def test_a_folder_that_changed_is_another_base(self, tiny_encoder: Path, tmp_path: Path) -> None:
        def doubled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            name = "encoder.layer.0.attention.self.query.weight"
            return tensors | {name: 2 * tensors[name]}

        first, other = (stored_as(tiny_encoder, tmp_path / side / "same-name", lambda t: t) for side in "ab")
        before = resolve(str(first), tmp_path)
        assert resolve(str(other), tmp_path) == before, "the same files"
        save_file(doubled(load_file(other / "model.safetensors")), other / "model.safetensors")
        after = resolve(str(other), tmp_path)
        assert not torch.equal(pooled(before).pooler_output, pooled(after).pooler_output)
        assert torch.equal(pooled(after).pooler_output, pooled(other).pooler_output)
        (first / "tokenizer.json").write_text((first / "tokenizer.json").read_text().replace("##", "@@"))
        assert resolve(str(first), tmp_path) != before

    def test_a_judge_in_older_names_keeps_its_head(self, base: Path, tmp_path: Path) -> None:
        def as_judge(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            old = {n.replace("LayerNorm.weight", "LayerNorm.gamma"): t for n, t in tensors.items()}
            return old | {"classifier.weight": torch.ones(3, 64), "classifier.bias": torch.zeros(3)}

        found = resolve(str(stored_as(base, tmp_path / "judge", as_judge)), tmp_path)
        assert torch.equal(load_file(found / "model.safetensors")["classifier.weight"], torch.ones(3, 64))
        assert json.loads((found / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]

    def test_first_layers(self, tiny_encoder: Path, tmp_path: Path) -> None:
        cut = AutoModel.from_pretrained(resolve(str(tiny_encoder), tmp_path, layers=1)).eval()
        whole = AutoModel.from_pretrained(tiny_encoder, output_hidden_states=True).eval()
        with torch.no_grad():
            assert torch.equal(cut(TWELVE).last_hidden_state, whole(TWELVE).hidden_states[1])


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    with process_group():
        yield


@pytest.fixture(scope="module")
def expected(base: Path) -> dict[bool, Step]:
    return {pointwise: by_definition(step_config(base, *POINTWISE * pointwise), EIGHT) for pointwise in (False, True)}


@pytest.mark.usefixtures("alone")
class TestStep:
    @pytest.mark.parametrize("way", [ONE_BATCH, ONE_EACH, "engine.gradient_checkpointing=true"])
    @pytest.mark.parametrize("pointwise", [False, True])
    def test_it_is_the_one_by_definition(
        self, pointwise: bool, way: str, base: Path, expected: dict[bool, Step], tmp_path: Path
    ) -> None:
        config = step_config(base, way, *POINTWISE * pointwise)
        assert_same_step(take_step(config, EIGHT, tmp_path), expected[pointwise])

    def test_pads_that_are_seen_are_told(
        self, base: Path, expected: dict[bool, Step], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unmasked(backbone: Any, blocks: Any, ends: torch.Tensor) -> torch.Tensor:
            (block,) = blocks
            return backbone(input_ids=block).pooler_output[ends // block.shape[1]]

        monkeypatch.setattr("students.training.model.first_tokens", unmasked)
        step = take_step(step_config(base, ONE_BATCH), EIGHT, tmp_path)
        with pytest.raises(AssertionError):
            assert_same_gradients(step, expected[False])


@pytest.fixture(scope="module")
def configure(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Configure:
    root = tmp_path_factory.mktemp("artifacts")
    fixed = ["+exp=smoke", f"paths.root={root}", "model.layers=null", "loss=votes"]
    fixed += ["train.epochs=1", "optimizer.lr=0.01", "scorer@scorers.check=transformers"]
    fixed += ["canaries.rows=8", "canaries.repeats=2"]
    prepare.main(configured(*fixed))

    def build(name: str, *overrides: str, base: Path = base) -> Config:
        config = configured(*fixed, *overrides)
        return replace(config, run=name, model=replace(config.model, base=str(base)))

    return build


def as_transformers_gives(folder: Path, prompts: list[list[int]]) -> np.ndarray:
    """One row at a time, through its own class and nothing of ours."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return np.concatenate([model(input_ids=torch.tensor([ids])).logits.numpy() for ids in prompts])


def rendered(config: Config) -> list[list[int]]:
    trained = open_trained(run_folder(config), config.root, "")
    rows = load_conversations(config.root / "data" / config.data.name)[:12]
    return [[*prompt.ids] for prompt in trained.renderer.render(rows)]


TUNINGS = {
    "lora": (),
    "dora": ("model.lora.method=dora",),
    "frozen": ("model.freeze_layers=1",),
    "full": ("model=full", "optimizer.lr=0.001"),
    "pointwise": POINTWISE,
    "full-pointwise": ("model=full", "model.freeze_layers=1", *POINTWISE),
}


class TestJudge:
    @pytest.mark.parametrize("tuning", grid(TUNINGS, short=["lora", "full-pointwise"]))
    def test_what_was_trained_is_what_is_served(self, tuning: str, configure: Configure) -> None:
        config = configure(tuning, *TUNINGS[tuning])
        log_loss = student.main(config)
        trained = open_trained(run_folder(config), config.root, "")
        merged = trained.merged(config.root)
        assert json.loads((merged / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]
        rows = load_conversations(config.root / "data" / config.data.name)
        _, validation = split(rows, config.fold, config.train.validation_share)
        with open_scorer(merged, scorer("transformers"), trained.max_tokens) as opened:
            scores = score_conversations(opened, trained.renderer, validation)
        shares = predict(*logits_by_order(scores, [c.id for c in validation]))
        assert log_loss_rows(shares, np.array([c.votes for c in validation])).mean() == pytest.approx(
            log_loss, abs=1e-5
        )

        prompts = rendered(config)
        with open_scorer(merged, scorer("transformers"), trained.max_tokens, judges=False) as opened:
            ours = score(opened, prompts)
        np.testing.assert_allclose(ours, as_transformers_gives(merged, prompts), atol=1e-5)
        again = configure(f"{tuning}-again", *TUNINGS[tuning], "optimizer.lr=0", "optimizer.head_lr=0", base=merged)
        assert student.main(again) == pytest.approx(log_loss, abs=1e-5), "training goes on from it, its head kept"

    @pytest.mark.parametrize("format", grid(["merged", "w8a8", "w8a16"], short=["merged"]))
    def test_every_format_is_a_classifier_that_transformers_loads(self, format: str, configure: Configure) -> None:
        config = configure("lora", f"export.format={format}")
        student.main(config)
        export.main(config)
        folder, prompts = config.export_folder(), rendered(config)
        merged = open_trained(run_folder(config), config.root, "").merged(config.root)
        found, exact = as_transformers_gives(folder, prompts), as_transformers_gives(merged, prompts)
        assert np.sqrt(np.mean((found - exact) ** 2)) < (0.01 if format == "merged" else 0.3)
        findings = {finding.rule: finding.ok for finding in check_t4(folder, config.t4)}
        assert findings["score head"] and findings["fp16 range"] and findings["memory"] and findings["attention"]

    def test_gguf_is_refused(self, configure: Configure) -> None:
        config = configure("lora", "export.format=gguf")
        student.main(config)
        with pytest.raises(UserError, match="bert"):
            export.main(config)

    @pytest.mark.long
    def test_vllm_gives_the_same(self, configure: Configure) -> None:
        config = configure("lora")
        student.main(config)
        prompts, merged = rendered(config), open_trained(run_folder(config), config.root, "").merged(config.root)
        with open_scorer(merged, scorer("vllm", dtype="fp32"), max(map(len, prompts))) as opened:
            np.testing.assert_allclose(score(opened, prompts), as_transformers_gives(merged, prompts), atol=1e-3)

    @pytest.mark.long
    @pytest.mark.skipif(not multiplies_exactly(), reason="vLLM's int8 products saturate on this CPU")
    def test_vllm_reads_its_int8(self, configure: Configure) -> None:
        config = configure("lora", "export.format=w8a8")
        student.main(config)
        export.main(config)
        prompts, folder = rendered(config), config.export_folder()
        with open_scorer(folder, scorer("vllm", dtype="fp32"), max(map(len, prompts))) as opened:
            np.testing.assert_allclose(score(opened, prompts), as_transformers_gives(folder, prompts), atol=0.1)


class TestHeads:
    """What a base's own head means, and what nobody knows the meaning of."""

    def judge(self, base: Path, folder: Path, labels: Sequence[str], bias: float = 0.0) -> Path:
        rows = len(labels)
        stored_as(
            base,
            folder,
            lambda t: (
                t
                | {
                    "classifier.weight": torch.arange(rows * 64.0).reshape(rows, 64),
                    "classifier.bias": torch.full((rows,), bias),
                }
            ),
        )
        config = json.loads((folder / "config.json").read_text())
        config |= {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
        config["architectures"] = ["BertForSequenceClassification"]
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    @pytest.mark.parametrize(("labels", "bias"), [(["tie", "a", "b"], 1.0), (["no", "maybe", "yes"], 0.0)])
    def test_a_head_that_is_not_taken_over_leaves_nothing(
        self, labels: list[str], bias: float, base: Path, tmp_path: Path
    ) -> None:
        config = step_config(self.judge(base, tmp_path / "x", labels, bias))
        judge = build_judge(Path(str(config.model.base)), config.model, config.engine, config.seed)
        drawn = judge.classifier.classifier.weight
        assert not any(torch.allclose(row, torch.arange(i * 64.0, i * 64 + 64)) for row in drawn for i in range(3))

    def test_frozen_layers_leave_the_pooler_to_learn(self, base: Path) -> None:
        config = step_config(base, "model.freeze_layers=1")
        judge = build_judge(base, config.model, config.engine, config.seed)
        names = [name for name, p in judge.named_parameters() if p.requires_grad]
        assert any("pooler" in name for name in names) and any("layer.1." in name for name in names)
        assert not any("layer.0." in name for name in names)

    def test_its_single_output_is_a_reward(self, base: Path, tmp_path: Path) -> None:
        assert as_classifier(folder := self.judge(base, tmp_path / "own", ["reward"]), tmp_path / "unused") == folder
        value_head = stored_as(base, tmp_path / "trl", lambda t: t | {"v_head.summary.weight": torch.ones(1, 64)})
        linked = as_classifier(value_head, tmp_path / "linked")
        expected = pooled(base).pooler_output.sum().item()
        assert as_transformers_gives(linked, TWELVE.tolist()).item() == pytest.approx(expected, abs=1e-4)

    def test_no_adapter_beside_it(self, configure: Configure) -> None:
        config = configure("lora")
        student.main(config)
        with pytest.raises(UserError, match=r"teacher.merge=true"):
            open_trained(run_folder(config), config.root, "").unmerged(config.root)


class TestRefusals:
    def test_what_an_encoder_cannot_be(self, base: Path, configure: Configure, tmp_path: Path) -> None:
        def refused(*overrides: str) -> str:
            with pytest.raises(UserError) as caught:
                student.main(configure("refused", *overrides))
            return str(caught.value)

        assert "padding_free=true" in refused("engine.padding_free=true")
        assert "its tokenizer puts an end-of-text token after every prompt" in refused("model.head=label_tokens")
        assert "prompt.max_tokens=2048" in refused("prompt.max_tokens=2048")

    def test_other_families_are_named(self, tiny_encoder: Path, configure: Configure, tmp_path: Path) -> None:
        other = AutoConfig.for_model(
            "distilbert", vocab_size=640, dim=32, n_layers=1, n_heads=1, hidden_dim=32, pad_token_id=0
        )
        AutoModel.from_config(other).save_pretrained(tmp_path)
        copy_tokenizer(tiny_encoder, tmp_path)
        with pytest.raises(UserError, match=r"is a distilbert: give a causal language model, or an encoder .* bert"):
            student.main(configure("other", base=tmp_path))
