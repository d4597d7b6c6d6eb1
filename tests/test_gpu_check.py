"""The command that a GPU is checked with: its runner, and its steps as far as a CPU goes."""

import inspect
import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from distill.training_run import recipe
from gpu_check import inference, training
from gpu_check.attention import attention, liger
from gpu_check.bare import composed
from gpu_check.judges import configured, conversations, random_judge
from gpu_check.machine import Machine
from gpu_check.processes import Processes
from gpu_check.results import Failed, Skip, relative
from gpu_check.runner import Record, Step, run_all, table
from gpu_check.steps import STEPS
from students.training.collectives import process_group
from students.training.loop import Trainer
from students.training.tracking import Tracker
from teachers.scorers.transformers import TransformersScorer, int8_linears
from tests.composing import plain

ROOT = Path(__file__).resolve().parent.parent
HERE = Machine("CPU", 0, "venv", {"torch": "1"}, "code")
# What a machine with torch, transformers and peft alone does not have.
ABSENT = ("hydra", "omegaconf", "polars", "deepspeed", "bitsandbytes", "optimi", "vllm", "llmcompressor", "datasets")
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {absent!r} else PathFinder.find_spec(name, path, target)

sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""


def step(name: str, limit_s: int = 60, needs: tuple[str, ...] = (), gpu_only: str = "", **arguments: Any) -> Step:
    return Step(name, f"tests.gpu_check_steps:{name}", limit_s, needs, arguments, gpu_only)


def run(steps: list[Step], folder: Path, machine: Machine = HERE, seconds: float = 600) -> Record:
    record = Record(folder / "cpu.json", machine)
    with patch.dict(os.environ):
        run_all(steps, record, Processes(dry=False), True, time.monotonic() + seconds, again=False)
    return record


def results(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("cpu-*-dry.json")
    return dict(json.loads(path.read_text())["steps"])


@pytest.mark.long
def test_a_step_that_fails_in_any_way_ends_alone(tmp_path: Path) -> None:
    count, child = tmp_path / "count", tmp_path / "child"
    steps = [
        *(step("aborts"), step("breaks"), step("fails"), step("hangs", limit_s=2, child=str(child)), step("skips")),
        step("passes", count=str(count)),
    ]
    found = run(steps, tmp_path)
    reasons = {name: (o.status, o.reason) for name, o in found.outcomes.items()}
    assert reasons["fails"] == ("FAIL", "3 is not 4") and reasons["skips"][0] == "SKIP"
    assert reasons["breaks"] == ("FAIL", "KeyError: 'nothing there'") and reasons["passes"] == ("PASS", "")
    status, reason = reasons["aborts"]
    assert status == "FAIL" and "SIGABRT" in reason and "about to abort" in reason
    assert reasons["hangs"][0] == "FAIL" and "took longer than 20 s" in reasons["hangs"][1]
    assert not _alive(int(child.read_text())), "what a step has started outlives it"
    rows = table(steps, found).splitlines()[2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [s.name for s in steps]
    assert "off_by 0.125" in rows[-1] and all(row.count("|") == 5 for row in rows)


def _alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().split()[2] != "Z"


@pytest.mark.long
def test_only_what_has_passed_here_is_not_run_again(tmp_path: Path) -> None:
    count = tmp_path / "count"
    steps = [step("passes", count=str(count)), step("fails")]
    later = Machine("CPU", 0, "venv", {"torch": "2"}, "code")
    runs = []
    for machine in (HERE, HERE, later, HERE):
        record = run(steps, tmp_path, machine)
        runs.append(len(count.read_text()))
        assert record.outcomes["fails"].status == "FAIL"
    assert runs == [1, 1, 2, 3]
    assert json.loads((tmp_path / "cpu.json").read_text())["steps"]["passes"]["figures"] == {"off_by": 0.125}


def test_a_step_without_its_packages_its_gpu_or_time_says_so_and_does_not_start(tmp_path: Path) -> None:
    count = str(tmp_path / "count")
    lacking, on_gpus = (
        step("passes", needs=("torch", "no_such_package"), count=count),
        step("skips", gpu_only="a kernel"),
    )
    found = run([lacking, on_gpus], tmp_path).outcomes
    assert (found["passes"].status, found["passes"].reason) == ("SKIP", "needs no_such_package, not installed here")
    assert (found["skips"].status, found["skips"].reason) == ("SKIP", "a kernel")
    late = run([step("passes", count=count)], tmp_path, seconds=-1).outcomes["passes"]
    assert late.status == "SKIP" and "rerun the same command to resume" in late.reason and not Path(count).exists()


@pytest.mark.parametrize("one", STEPS, ids=lambda one: one.name)
def test_every_step_is_a_function_that_takes_its_arguments(one: Step) -> None:
    module, _, name = one.function.partition(":")
    inspect.signature(getattr(import_module(module), name)).bind(Path(), dry=True, **one.arguments)


def test_names_are_unique() -> None:
    assert len({one.name for one in STEPS}) == len(STEPS)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model=full", "optimizer.master_weights=kahan", "engine=zero3_cpu"),
        ("loss=wsdm3", "plan=h100", "tracker=none", "model.lora.dropout=0", "optimizer.lr=1.0e-3"),
    ],
)
def test_conf_is_composed_as_hydra_composes_it(overrides: tuple[str, ...]) -> None:
    assert composed(*overrides) == plain(*overrides)


@pytest.mark.long
def test_a_rank_can_be_spawned_where_polars_is_not() -> None:
    """Its module is imported before anything stands in for polars."""
    blocked = "import sys; sys.modules['polars'] = None; import gpu_check.devices"
    assert subprocess.run([sys.executable, "-c", blocked], cwd=ROOT, check=False).returncode == 0


class TestSteps:
    def test_a_judge_without_liger_is_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gpu_check.attention.triton_compiles", lambda: True)
        with pytest.raises(Failed, match="no layer of the judge is Liger's"):  # on a CPU nothing puts it there
            liger(tmp_path, True, "llama")
        monkeypatch.setattr("gpu_check.attention.triton_compiles", lambda: False)
        with pytest.raises(Skip, match="needs a C compiler"):
            liger(tmp_path, True, "llama")

    def test_attention_without_the_caps_is_found(self, tmp_path: Path) -> None:
        with pytest.raises(Failed, match="logits"):  # sdpa leaves them out without a word
            attention(tmp_path, True, "gemma2", "sdpa")

    def test_steps_at_another_rate_are_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from students.training import loop

        right = loop.rate_factor
        monkeypatch.setattr(loop, "rate_factor", lambda *given: 0.9 * right(*given))
        with pytest.raises(Failed, match="loss 2 of 3"):
            training.two_steps(tmp_path, True, "llama", "lora", 2)

    @pytest.mark.long
    def test_kahan_sums_are_as_good_under_zero3(self, tmp_path: Path) -> None:
        """Off by 0.006 where each part of the weights counts as another step."""
        assert training.two_steps(tmp_path, True, "llama", "full", 3)["off_by"] < 0.002

    @pytest.mark.parametrize("zero", [1, 3])
    @pytest.mark.long
    def test_kahan_sums_go_on_after_a_checkpoint(self, tmp_path: Path, zero: int) -> None:
        base = random_judge(tmp_path / "base", "llama", True, torch.bfloat16)
        config = configured(base, *training.METHODS["full"], f"engine=zero{zero}")
        examples = conversations()

        def steps(folder: str, count: int) -> list[float]:
            with process_group():
                judge = training.prepared(base, config)
                trainer = Trainer(recipe(config), judge, examples, examples, tmp_path / folder, Tracker())
                taken = [trainer.take_step([0, 1], 0)["loss"] for _ in range(count)]
                trainer.checkpoint()
                return taken

        assert steps("resumed", 2) + steps("resumed", 2) == steps("straight", 4)

    def test_int8_is_written_as_transformers_reads_it(self, tmp_path: Path) -> None:
        judge = random_judge(tmp_path, "llama", True, torch.float16)
        plain_logits = inference.in_transformers(judge, "fp32")
        inference.write_w8a8(judge)
        scorer = TransformersScorer(judge, inference.scorer("fp32").in_transformers())
        assert len(list(int8_linears(scorer.model))) == 2 * 7
        rounded = torch.tensor(inference.in_transformers(judge, "fp32"))
        assert 1e-3 < relative(rounded, torch.tensor(plain_logits)) < 0.1


@pytest.mark.long
@pytest.mark.timeout(1800)
class TestCommand:
    def test_what_a_cpu_can_run_passes_and_the_rest_says_why_not(self, tmp_path: Path) -> None:
        done = subprocess.run(
            ["make", "gpu-check", "DRY=1", f"PY={sys.executable}", f"ARGS=--output {tmp_path} --minutes 25"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        found = results(tmp_path)
        assert list(found) == [one.name for one in STEPS]
        assert all(f["status"] == "PASS" or (f["status"] == "SKIP" and f["reason"]) for f in found.values()), found
        passed = {name for name, f in found.items() if f["status"] == "PASS"}
        assert passed >= {one.name for one in STEPS if not one.gpu_only and "liger" not in one.name}
        assert all(f"| {name} |" in done.stdout for name in found)

    def test_torch_transformers_and_peft_are_enough(self, tmp_path: Path) -> None:
        (tmp_path / "sitecustomize.py").write_text(WITHOUT.format(absent=ABSENT))
        able = ["devices", "collectives-one-rank", "train-lora-gemma2-plain", "fp16-margin", "speed"]
        lacking = ["train-lora-gemma2-zero2", "train-full-llama-zero3"]
        done = subprocess.run(
            [sys.executable, "-m", "gpu_check", "--dry", "--output", str(tmp_path), "--only", *able, *lacking],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        found = results(tmp_path)
        assert {name: f["status"] for name, f in found.items() if name in able} == dict.fromkeys(able, "PASS")
        assert {found[name]["status"] for name in lacking} == {"SKIP"}
        assert "deepspeed" in found[lacking[0]]["reason"] and "optimi" in found[lacking[1]]["reason"]

    def test_without_a_gpu_it_names_the_dry_run(self, tmp_path: Path) -> None:
        if torch.cuda.is_available():
            pytest.skip("there is a GPU here")
        done = subprocess.run(
            [sys.executable, "-m", "gpu_check", "--output", str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2 and "no GPU here: DRY=1" in done.stderr
