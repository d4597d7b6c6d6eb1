"""Training with the real DeepSpeed engine on tiny models: the result depends on data and seed, on nothing else."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from safetensors.torch import load_file

from core.artefacts.building import Artefact
from core.data.table import load_conversations
from core.errors import UserError
from core.prompts import Renderer
from core.provenance import Learned
from core.records import ORDERS
from core.store.parts import NO_FOLD
from core.store.rows import LOGITS
from core.store.seen import write_seen
from core.store.writing import StoreWriter
from distill import prepare, student
from distill.config import Config
from distill.training_run import run_folder
from students.training.loop import Trainer, rate_factor
from tests.composing import configured
from tests.grids import grid
from tests.running import free_port, succeeds

pytestmark = pytest.mark.timeout(300)
Configure = Callable[..., Config]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared smoke arena with a store of teacher logits that are the simulated law itself."""
    root = tmp_path_factory.mktemp("artifacts")
    config = configured("+exp=smoke", f"paths.root={root}", "data.test_share=0")
    prepare.main(config)
    law = dict(pl.read_parquet(root / "data" / "smoke" / "law.parquet").rows())
    rows = [
        {
            "id": c.id,
            "order": order,
            "logits": [math.log(x) for x in law[c.id]],
            "prompt_tokens": 1,
            "truncated": False,
            "judge_fold": NO_FOLD,
            "in_sample": False,
            "fingerprint": c.sided_fingerprint(),
        }
        for c in load_conversations(root / "data" / "smoke")
        for order in ORDERS
    ]
    store = root / "logits" / "smoke"
    with StoreWriter(store, {}, "the law") as writer:
        writer.append(pl.DataFrame(rows, schema=LOGITS))
    write_seen(store, NO_FOLD, Learned())
    (root / "template").write_text(Renderer(config.prompt, Path(_tokenizer(tmp_path_factory))).hashes["template"])
    Artefact(store, "teacher", {}, [], root).finish(prompt={"template": (root / "template").read_text()})
    return root


def _tokenizer(factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_models import tiny_tokenizer

    folder = factory.mktemp("any_tokenizer")
    tiny_tokenizer(folder)
    return folder


@pytest.fixture
def configure(root: Path, tiny_llama: Path) -> Configure:
    def build(name: str, *overrides: str, base: Path = tiny_llama) -> Config:
        config = configured("+exp=smoke", f"name={name}", f"paths.root={root}", "model.layers=null", *overrides)
        return replace(config, run=name, model=replace(config.model, base=str(base)))

    return build


def history(config: Config) -> pl.DataFrame:
    return pl.read_parquet(run_folder(config) / "history.parquet")


def losses(config: Config) -> torch.Tensor:
    return torch.tensor(history(config)["loss"].to_list(), dtype=torch.float64)


@pytest.fixture
def straight(configure: Configure) -> Config:
    config = configure("straight", "train.epochs=2", "loss.kl.temperature=2")
    student.main(config)
    return config


def test_a_run_writes_what_the_contract_says(straight: Config, configure: Configure) -> None:
    folder = run_folder(straight)
    assert {p.name for p in folder.iterdir()} >= {
        "adapter",
        "history.parquet",
        "metrics.json",
        "learned_from.parquet",
        "manifest.json",
    }
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert any("score" in name for name in adapter) and all("lora_" in name or "score" in name for name in adapter)
    metrics = json.loads((folder / "metrics.json").read_text())
    curve = history(straight)
    assert metrics["steps"] == len(curve) == 10
    kept = curve.filter("validation_kept").row(-1, named=True)
    assert metrics["best_step"] == kept["step"]
    for name in ("validation_log_loss", "validation_objective", "validation_standard_error"):
        assert metrics[name] == kept[name] > 0
    assert student.main(straight) == metrics["validation_log_loss"]  # finished: nothing is trained again
    with pytest.raises(ValueError, match=r"loss.kl.temperature: there 2.0, now 3.0"):
        student.main(configure("straight", "train.epochs=2", "loss.kl.temperature=3"))


@pytest.mark.parametrize("family", grid(["tiny_llama", "tiny_qwen2", "tiny_gemma2"], short=["tiny_gemma2"]))
def test_micro_batches_do_not_change_the_result(
    configure: Configure, family: str, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(family)
    large, small = (
        configure(f"{family}-{tokens}", "model.lora.dropout=0", f"engine.micro_batch_tokens={tokens}", base=base)
        for tokens in (8192, 100)
    )
    for config in (large, small):
        student.main(config)
    torch.testing.assert_close(losses(large), losses(small), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", grid(["tiny_llama", "tiny_qwen2", "tiny_gemma2"], short=["tiny_gemma2"]))
def test_padding_free_equals_padded(configure: Configure, family: str, request: pytest.FixtureRequest) -> None:
    base = request.getfixturevalue(family)
    padded, free = (
        configure(f"{family}-{flag}", "model.lora.dropout=0", f"engine.padding_free={flag}", base=base)
        for flag in ("false", "true")
    )
    for config in (padded, free):
        student.main(config)
    torch.testing.assert_close(losses(padded), losses(free), atol=1e-4, rtol=0)
    assert history(free)["padding"].eq(0).all() and history(padded)["padding"].gt(0).any()
    ends = [history(config)["validation_log_loss"][-1] for config in (free, padded)]
    assert ends[0] == pytest.approx(ends[1], abs=1e-4)


@pytest.mark.parametrize(
    "overrides",
    [
        ("loss=blackpearl",),
        ("loss=wsdm3", "model.lora.method=rslora", "optimizer.decay=linear"),
        pytest.param(("loss.cosine.weight=0.5", "loss.rows.confidence=1", "optimizer.clip=0"), marks=pytest.mark.long),
        pytest.param(("loss=kl", "loss.kl.temperature=5", "optimizer.decay=constant"), marks=pytest.mark.long),
    ],
)
def test_recipes_train(configure: Configure, overrides: tuple[str, ...]) -> None:
    config = configure(f"recipe-{abs(hash(overrides))}", "train.epochs=2", *overrides)
    student.main(config)
    curve = losses(config)
    assert torch.isfinite(curve).all() and curve[-3:].mean() < curve[:3].mean()


@pytest.mark.long
def test_zero_stages_agree(configure: Configure) -> None:
    engines = ["zero0", "zero1", "zero2", "zero3", "zero3_cpu"]
    configs = [configure(engine, "model.lora.dropout=0", f"engine={engine}") for engine in engines]
    for config in configs:
        student.main(config)
    for config in configs[1:]:
        torch.testing.assert_close(losses(configs[0]), losses(config), atol=1e-5, rtol=0)
    first, *others = (load_file(run_folder(c) / "adapter" / "adapter_model.safetensors") for c in configs)
    for other in others:
        assert first.keys() == other.keys()
        for name, tensor in first.items():
            torch.testing.assert_close(tensor, other[name], atol=1e-4, rtol=0)


@pytest.mark.long
def test_two_ranks_train_as_one(configure: Configure, root: Path, tiny_llama: Path) -> None:
    one = configure("one-rank", "model.lora.dropout=0")
    student.main(one)
    overrides = [
        "+exp=smoke",
        "name=two-ranks",
        f"paths.root={root}",
        "model.layers=null",
        f"model.base={tiny_llama}",
        "model.lora.dropout=0",
    ]
    ranks = ("--num_accelerators", "2", "--master_port", str(free_port()))
    launcher = ("-m", "deepspeed.launcher.runner", *ranks, "--module", "--no_local_rank")
    succeeds("distill.student", *overrides, launcher=launcher)
    (folder,) = root.glob("students/two-ranks*/fold=0")
    both = pl.read_parquet(folder / "history.parquet")
    assert json.loads((folder / "manifest.json").read_text())["extra"]["ranks"] == 2
    torch.testing.assert_close(
        losses(one), torch.tensor(both["loss"].to_list(), dtype=torch.float64), atol=1e-4, rtol=0
    )
    assert history(one)["validation_log_loss"][-1] == pytest.approx(both["validation_log_loss"][-1], abs=1e-4)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    configure: Configure, straight: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = configure("killed", "train.epochs=2", "loss.kl.temperature=2")
    steps_taken, take_step = 0, Trainer.take_step

    def dies_at_step_eight(self: Trainer, step: list[int], epoch: int) -> dict[str, object]:
        nonlocal steps_taken
        steps_taken += 1
        if steps_taken == 8:
            raise KeyboardInterrupt
        return take_step(self, step, epoch)

    monkeypatch.setattr(Trainer, "take_step", dies_at_step_eight)
    with pytest.raises(KeyboardInterrupt):
        student.main(killed)
    assert not (run_folder(killed) / "manifest.json").exists()
    with pytest.raises(
        ValueError, match=r"started differently:\n  - loss.kl.temperature: there 2.0, now 3.0\n.*overwrite=true"
    ):
        student.main(configure("killed", "train.epochs=2", "loss.kl.temperature=3"))
    student.main(killed)
    assert steps_taken == 8 + 5  # it went on from the checkpoint after the first epoch
    assert history(killed).drop("seconds").equals(history(straight).drop("seconds"))


@pytest.mark.parametrize("place", ["forward", "backward", "step"])
def test_running_out_of_memory_says_what_to_change(
    configure: Configure, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DeepSpeedEngine, place, full)
    with pytest.raises(UserError, match=r"out of memory at step 0: lower engine.micro_batch_tokens=\d+"):
        student.main(configure(f"full-{place}"))


def test_without_a_teacher_the_loss_is_cross_entropy_alone(configure: Configure) -> None:
    config = configure("votes", "loss=votes")
    student.main(config)
    curve = history(config)
    assert curve["loss"].equals(curve["cross_entropy"]) and curve["kl"].null_count() == len(curve)
    validated = curve.drop_nulls("validation_objective")
    assert validated["validation_objective"][0] >= validated["validation_log_loss"][0]  # that of the mean of two orders
    teacher = configure("votes", "role=teacher")  # whatever the loss says
    student.main(teacher)
    assert history(teacher)["loss"].equals(curve["loss"])


def test_a_teacher_of_another_template_is_refused(configure: Configure) -> None:
    with pytest.raises(
        ValueError, match=r"was made with prompt template \w+, this run renders \w+: .*same_prompt=false"
    ):
        student.main(configure("other-template", "prompt.template.verdict=?"))
    student.main(configure("allowed-template", "prompt.template.verdict=?", "teacher.same_prompt=false"))


@pytest.mark.long
def test_a_sweep_trains_each_job_with_a_fresh_engine(root: Path, tiny_llama: Path) -> None:
    output = succeeds(
        "distill.student",
        "-m",
        "+exp=smoke",
        "name=sweep",
        f"paths.root={root}",
        f"model.base={tiny_llama}",
        "model.layers=null",
        "loss=votes,distill,wsdm3",
    )
    assert len(list(root.glob("students/sweep,*loss=*/fold=0/manifest.json"))) == 3, output


def test_rates_warm_up_and_fall() -> None:
    adamw = configured().optimizer
    for decay, last in (("cosine", 0.001), ("linear", 0.02)):
        factors = [rate_factor(step, 100, replace(adamw, decay=decay)) for step in range(100)]
        assert factors[0] == 0.1 and factors[9] == 1.0 and factors[-1] < last
        assert factors == sorted(factors[:10]) + sorted(factors[10:], reverse=True)
        least = replace(adamw, decay=decay, min_lr_ratio=0.2)
        assert [rate_factor(step, 100, least) for step in (9, 99)] == pytest.approx([1.0, 0.2 + 0.8 * factors[-1]])
    assert rate_factor(99, 100, replace(adamw, decay="constant")) == 1.0
    assert [rate_factor(step, 100, replace(adamw, warmup=4.0)) for step in (0, 3)] == [0.25, 1.0]


@pytest.mark.long
def test_a_training_may_end_before_its_schedule(configure: Configure) -> None:
    """As the LMSYS winner's teacher: one epoch of a cosine over two."""
    whole, half = configure("whole", "train.epochs=2"), configure("half", "train.schedule_epochs=2")
    for config in (whole, half):
        student.main(config)
    assert history(half)["lr"].equals(history(whole)["lr"].head(len(history(half))))
    with pytest.raises(ValueError, match=r"train.schedule_epochs=1 ends before train.epochs=2"):
        student.main(configure("short", "train.epochs=2", "train.schedule_epochs=1"))
