"""A pointwise judge through the entry points, as teacher, student and export: no verdict depends on an order."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from core.data.table import load_conversations
from core.exported import open_exported
from core.pointwise import choice_in, choice_of
from core.scoring import logits_by_order
from tests.running import refuses, succeeds
from tests.serving import PAIR, serving

pytestmark = [pytest.mark.long, pytest.mark.timeout(580)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> tuple[Path, list[str]]:
    """(root, overrides) after every stage has run once."""
    root = tmp_path_factory.mktemp("pointwise")
    experiment = root / "pipeline.yaml"
    experiment.write_text(
        "# @package _global_\n"
        "defaults: [smoke, override /prompt: pointwise, override /scorer@scorers.teacher: transformers, "
        "override /scorer@scorers.exported: transformers]\n"
        "name: tiny\n"
        f"model: {{kind: pointwise, base: {tiny_llama}, layers: null}}\n"
        "prompt: {max_tokens: 160}\n"
        "teacher: {name: tiny}\n"
    )
    common = [f"hydra.searchpath=[file://{root}/conf]", "+exp=pipeline", f"paths.root={root}/artifacts"]
    (root / "conf" / "exp").mkdir(parents=True)
    experiment.rename(root / "conf" / "exp" / "pipeline.yaml")
    for stage, *overrides in (
        ("prepare",),
        ("student", "role=teacher"),
        ("teacher",),
        ("student",),
        ("student", "loss=votes"),
        ("export",),
        ("export", "export.format=merged"),
        ("export", "export.format=gguf"),
        ("student", "loss=votes", "fold=1"),
        ("export", "loss=votes", "export.folds=[0,1]", "export.format=merged", "export.dtype=fp32"),
    ):
        succeeds(f"distill.{stage}", *common, *overrides)
    succeeds("eval", *common)
    return root / "artifacts", common


def test_no_verdict_flips(finished: tuple[Path, list[str]]) -> None:
    root, _ = finished
    metrics = json.loads((root / "eval/tiny/metrics.json").read_text())
    judges = ("teacher", "student", "student_no_teacher", "student_w8a8", "student_merged", "student_gguf")
    assert {judge: metrics["judges"][judge]["flip_rate"] for judge in judges} == dict.fromkeys(judges, 0.0)
    scores = pl.read_parquet(root / "eval/tiny/predictions.parquet").filter(judge="student_w8a8")
    first, second = logits_by_order(scores, scores["id"].unique(maintain_order=True).to_list())
    assert np.array_equal(first, second)
    assert json.loads((root / "exports/tiny/w8a8/fidelity.json").read_text())["flip_rate"] == 0


def test_a_store_holds_both_orders_of_each_conversation(finished: tuple[Path, list[str]]) -> None:
    root, _ = finished
    logits = pl.read_parquet(root / "logits/tiny/part-*.parquet")
    assert len(logits) == 120 == logits.select("id", "order").n_unique()
    assert logits.group_by("id").agg(pl.col("logits").n_unique())["logits"].to_list() == [1] * 60


def test_an_export_is_a_plain_classifier_with_one_output(finished: tuple[Path, list[str]]) -> None:
    root, _ = finished
    folder = root / "exports/tiny/merged"
    exported, config = open_exported(folder), json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"] and config["id2label"] == {"0": "reward"}
    choice = choice_in(folder)
    assert choice is not None and choice == choice_of(json.loads((folder / "judge.json").read_text()))
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    assert model.config.num_labels == 1
    model.config.pad_token_id = -1
    rows = load_conversations(root / "data/smoke")[:8]
    scores = pl.read_parquet(root / "eval/tiny/predictions.parquet").filter(judge="student_merged")
    for c in rows:
        own = scores.filter(id=c.id, order="ab")["logits"].to_list()
        if own:
            pair = list(exported.renderer.render([c]))
            with torch.inference_mode():
                a, b = (model(torch.tensor([[*p.ids]])).logits.item() for p in pair)
            half, level = choice.scale * (a - b) / 2, choice.height * choice.scale * (a + b) / 2
            assert own[0] == pytest.approx([half, -half, choice.log_tie - level], abs=1e-3)


def test_an_average_gives_the_mean_of_what_its_folds_rewards_amount_to(finished: tuple[Path, list[str]]) -> None:
    root, _ = finished
    (export,) = (root / "exports/tiny,loss=votes").glob("merged*/judge.json")
    folds = [root / f"students/tiny,loss=votes/fold={fold}/adapter" for fold in (0, 1)]
    learnt = [choice_of(json.loads((fold / "judge.json").read_text())) for fold in folds]
    found = choice_in(export.parent)
    assert found is not None and all(learnt)
    heads = [load_file(f / "adapter_model.safetensors")["base_model.model.score.weight"] for f in folds]
    expected = sum(of.scale * head for of, head in zip(learnt, heads, strict=True) if of) / 2
    head = load_file(export.parent / "model.safetensors")["score.weight"]
    torch.testing.assert_close(found.scale * head, expected)
    assert found.log_tie == pytest.approx(np.mean([of.log_tie for of in learnt if of]))
    assert found.height == pytest.approx(np.mean([of.height for of in learnt if of]))


def test_it_is_served(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    root, _ = finished
    swapped = {**PAIR, "response_a": PAIR["response_b"], "response_b": PAIR["response_a"]}
    equal = {**PAIR, "response_b": PAIR["response_a"]}
    with serving(root / "exports/tiny/merged", tmp_path) as server:
        one, other, level = server.judge(PAIR, swapped, equal)
    assert one["flips"] is other["flips"] is level["flips"] is False
    assert one["probabilities"]["a"] == pytest.approx(other["probabilities"]["b"], abs=1e-6)
    assert level["probabilities"]["a"] == level["probabilities"]["b"]


def test_predictions_are_the_same_whichever_response_comes_first(
    finished: tuple[Path, list[str]], tmp_path: Path
) -> None:
    root, common = finished
    rows = load_conversations(root / "data/smoke")[:20]
    tables = []
    for name, shown in (("one", rows), ("other", [c.swap() for c in rows])):
        source = tmp_path / f"{name}.csv"
        texts = {key: [json.dumps(getattr(c, key)) for c in shown] for key in ("prompt", "response_a", "response_b")}
        pl.DataFrame({"id": range(len(shown)), **texts}).write_csv(source)
        succeeds(
            "distill.predict",
            *common,
            f"input={source}",
            f"output={tmp_path}/{name}-out.csv",
            "predict.second_opinions=0.1",
        )
        assert not (tmp_path / f"{name}-out.one_order.csv").exists()
        tables.append(pl.read_csv(tmp_path / f"{name}-out.csv").drop("id").to_numpy())
    np.testing.assert_allclose(tables[0], tables[1][:, [1, 0, 2]], atol=1e-6)


def test_a_judge_of_the_other_kind_is_refused(finished: tuple[Path, list[str]]) -> None:
    root, common = finished
    merged = f"teacher.model={root}/exports/tiny/merged"
    pairwise = ("+exp=smoke", f"paths.root={root}", "teacher.name=other", "scorer@scorers.teacher=transformers")
    assert "is a pointwise judge" in refuses(
        "distill.teacher", *pairwise, "teacher=model", "teacher.method=classify", merged
    )
    assert "is a pointwise judge" in refuses("distill.teacher", *pairwise, "teacher=reward", merged)
    asked = (*common, "teacher=model", "teacher.name=other", merged, "teacher.method=label_tokens")
    assert "prompt.template shows one" in refuses("distill.teacher", *asked)
    assert "add prompt=pointwise" in refuses("distill.student", *pairwise, "model.kind=pointwise", "loss=votes")
