"""What other frameworks got silently wrong in validation and serving, planted here and told apart.

| plant               | the bug, and who reported it                                                              |
|---------------------|-------------------------------------------------------------------------------------------|
| summed_validation   | an evaluation loss that is a sum: axolotl #3271                                           |
| unturned_validation | an evaluation that does not turn order ba back                                            |
| head_left_out       | a file without the head, which is drawn anew at loading: peft #577, ms-swift #8477        |
| head_drawn_anew     | a head in the file that loading passes over: sentence-transformers #3980                  |
| activated_serving   | probabilities served in the place of logits: vLLM #11881 #18727                           |
| served_by_pad_id    | the pooled token sought by the id of pads: transformers #35352, peft #3620                |
| softcap_not_served  | trained under Gemma-2's softcap, served without: vLLM #7464                               |

vLLM beside transformers (vLLM #11568 #12910, LLaMA-Factory #7403): teachers/test_vllm.py; adapters that do not fit:
test_merging.py; a quantised score head (vLLM #35849): test_quantising.py.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from core.scoring import score
from distill.training_run import recipe
from students import merging
from students.merging import merge_adapter
from students.training import validation
from students.training.collectives import process_group
from students.training.loop import Trainer
from students.training.losses import SWAPPED
from students.training.tracking import Tracker
from teachers.scorers.transformers import TransformersScorer
from tests.composing import scorer
from tests.students.training.short_runs import CONVERSATIONS, PROMPTS, Run, train
from tests.students.training.single_steps import HEAD, Plant, make_judge, step_config, with_small_cap

pytestmark = pytest.mark.timeout(300)


def summed_validation(patch: pytest.MonkeyPatch) -> None:
    right = validation.cross_entropy_sum
    patch.setattr(validation, "cross_entropy_sum", lambda logits, *targets: right(logits, *targets) * len(logits))


def unturned_validation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(validation, "SWAPPED", [0, 1, 2])


@pytest.mark.parametrize("plant", [None, summed_validation, unturned_validation])
def test_validation_is_the_mean_log_loss_of_swap_averaged_logits(
    plant: Plant | None, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = step_config(tiny_llama, "engine.micro_batch_tokens=200")
    judge, voted = make_judge(config), [c for c in CONVERSATIONS if c.votes]
    with torch.no_grad():
        alone = [[judge(torch.tensor([x]), None, torch.tensor([len(x) - 1]))[0] for x in c.ids] for c in voted]
    means = torch.stack([(ab + ba[SWAPPED]) / 2 for ab, ba in alone])
    loss = functional.cross_entropy(means, torch.tensor([c.votes for c in voted])).item()
    if plant:
        plant(monkeypatch)
    with process_group():
        found = Trainer(recipe(config), judge, CONVERSATIONS, CONVERSATIONS, tmp_path, Tracker()).validate().log_loss
    assert (found == pytest.approx(loss, abs=1e-5)) == (plant is None)


def serve(base: Path, adapter: Path, out: Path) -> np.ndarray:
    """Logits [prompts, 3] of the merged judge, read from its files."""
    merge_adapter(base, adapter, out, torch.float32)
    return score(TransformersScorer(out, scorer("transformers", dtype="fp32")), PROMPTS)


def assert_served_as_trained(served: np.ndarray, run: Run) -> None:
    assert np.ptp(run.logits, axis=0).min() > 0.1
    np.testing.assert_allclose(served, run.logits, atol=1e-4, rtol=0)


def head_drawn_anew(patch: pytest.MonkeyPatch) -> None:
    read = merging.read_adapter
    rng = torch.Generator().manual_seed(0)

    def without(folder: Path) -> merging.Adapter:
        adapter = read(folder)
        return replace(adapter, score=torch.randn(adapter.score.shape, generator=rng) * adapter.score.std())

    patch.setattr(merging, "read_adapter", without)


def activated_serving(patch: pytest.MonkeyPatch) -> None:
    outputs = TransformersScorer._outputs
    patch.setattr(
        TransformersScorer, "_outputs", lambda self, prompts: torch.tensor(outputs(self, prompts)).softmax(-1).numpy()
    )


def served_by_pad_id(patch: pytest.MonkeyPatch) -> None:
    @torch.no_grad()
    def outputs(self: TransformersScorer, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
        hidden = self.model.base_model(input_ids=ids).last_hidden_state
        return self.model.score(hidden[range(len(ids)), ids.eq(0).int().argmax(-1) - 1]).numpy()

    patch.setattr(TransformersScorer, "_outputs", outputs)


def softcap_not_served(patch: pytest.MonkeyPatch) -> None:
    load = TransformersScorer.__init__

    def in_sdpa(self: TransformersScorer, *arguments: Any) -> None:
        load(self, *arguments)
        self.model.set_attn_implementation("sdpa")

    patch.setattr(TransformersScorer, "__init__", in_sdpa)


@pytest.fixture(scope="module")
def trained(
    tiny_llama: Path, tiny_gemma2: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Path, Run]]:
    """Base, adapter and run of tiny Llama and of tiny Gemma-2 with a small softcap."""
    folder = tmp_path_factory.mktemp("trained")
    bases = {"llama": tiny_llama, "gemma2": with_small_cap(tiny_gemma2, folder / "capped")}
    return {name: (base, folder / name / "adapter", train(base, 0, folder / name)) for name, base in bases.items()}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_merged_judge_answers_as_the_trained_one(
    family: str, trained: dict[str, tuple[Path, Path, Run]], tmp_path: Path
) -> None:
    base, adapter, run = trained[family]
    assert_served_as_trained(serve(base, adapter, tmp_path / "merged"), run)


@pytest.mark.parametrize(
    ("family", "plant"),
    [
        ("llama", head_drawn_anew),
        ("llama", activated_serving),
        ("llama", served_by_pad_id),
        ("gemma2", softcap_not_served),
    ],
)
def test_what_is_served_otherwise_is_seen(
    family: str,
    plant: Plant,
    trained: dict[str, tuple[Path, Path, Run]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, adapter, run = trained[family]
    plant(monkeypatch)
    served = serve(base, adapter, tmp_path / "merged")
    with pytest.raises(AssertionError):
        assert_served_as_trained(served, run)


def test_a_head_left_out_is_refused(trained: dict[str, tuple[Path, Path, Run]], tmp_path: Path) -> None:
    base, whole, _ = trained["llama"]
    adapter = shutil.copytree(whole, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    del tensors[HEAD]
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="no score head"):
        serve(base, adapter, tmp_path / "merged")
