import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from core.errors import UserError
from core.models.label_tokens import label_token_ids
from core.prompts import Renderer
from core.records import Conversation
from core.scoring import score
from eval.canaries.checking import check_canaries
from students.merging import merge_adapter, unmerge_adapter
from teachers.scorers.int8 import multiplies_exactly
from teachers.scorers.opening import open_scorer
from teachers.scorers.transformers import TransformersScorer
from teachers.scorers.vllm import VllmScorer, check_arguments
from tests.composing import configured, scorer
from tests.engines import spawned
from tests.running import own_process
from tests.tiny_exports import with_canaries

MAX_TOKENS = 256
VLLM = scorer("vllm", engine_args={})
REFERENCE = scorer("transformers", batch_tokens=512)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Prompts of 1 to 256 tokens: families of a shared beginning, a repeated one, some ending in pad or eos."""
    rng = np.random.default_rng(0)
    stems = rng.integers(0, 560, size=(3, 128)).tolist()
    rows = [stem[: rng.integers(0, 128)] + rng.integers(0, 560, rng.integers(1, 126)).tolist() for stem in stems * 12]
    return [*rows, rows[0], [*rows[1], 2], [*rows[2], 1, 2], rng.integers(0, 560, MAX_TOKENS).tolist()]


@contextmanager
def no_process_left() -> Iterator[None]:
    """Within, an engine starts and ends, with all of its processes; zombies count."""
    before = set(psutil.Process().children(recursive=True))
    yield
    left = [p for p in psutil.Process().children(recursive=True) if p not in before]
    assert not [
        p for p in left if p.status() == psutil.STATUS_ZOMBIE or "resource_tracker" not in " ".join(p.cmdline())
    ]


@pytest.fixture(scope="class")
def engine(tiny_judge_llama: Path) -> Iterator[VllmScorer]:
    with no_process_left(), spawned(), open_scorer(tiny_judge_llama, VLLM, MAX_TOKENS) as engine:
        assert isinstance(engine, VllmScorer)
        yield engine


@pytest.mark.long
@pytest.mark.timeout(900)  # an engine takes half a minute to start, on a busy machine several
class TestFloat:
    def test_equals_transformers(self, engine: VllmScorer, tiny_judge_llama: Path, prompts: list[list[int]]) -> None:
        expected = score(TransformersScorer(tiny_judge_llama, REFERENCE), prompts)
        found = score(engine, prompts)
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < 1e-4
        before = engine.tokens_cached
        assert np.abs(score(engine, prompts) - expected).max() < 1e-4  # now out of the prefix cache
        assert engine.tokens_cached - before > sum(map(len, prompts)) / 2

    def test_order_of_prompts_is_kept(self, engine: VllmScorer, prompts: list[list[int]]) -> None:
        order = np.random.default_rng(1).permutation(len(prompts))
        assert np.abs(score(engine, [prompts[i] for i in order]) - score(engine, prompts)[order]).max() < 1e-4

    def test_refuses_prompts_of_the_wrong_length(self, engine: VllmScorer) -> None:
        with pytest.raises(ValueError, match=f"prompt 1 has 257 tokens, this scorer takes 1 to {MAX_TOKENS}"):
            score(engine, [[5], [5] * (MAX_TOKENS + 1)])
        with pytest.raises(ValueError, match="prompt 0 has 0 tokens"):
            score(engine, [[]])
        assert score(engine, []).shape == (0, 3)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_int8_engine_computes_what_was_exported_where_the_cpu_can(
    tiny_w8a8: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    folder = tmp_path / "w8a8"
    shutil.copytree(tiny_w8a8, folder)
    renderer = Renderer(configured("+exp=smoke").prompt, folder)
    with_canaries(folder, renderer, conversations=64, repeats=8)
    expected = score(TransformersScorer(folder, REFERENCE), prompts)
    environment = dict(os.environ)
    with no_process_left(), VllmScorer(folder, VLLM, MAX_TOKENS) as engine:
        found = score(engine, prompts)
        problem = check_canaries(folder, renderer, engine, "warn")
    assert os.environ == environment
    if multiplies_exactly():  # then the two agree but for a few roundings
        assert problem is None
        assert np.abs(found - expected).mean() < 0.01
    else:  # oneDNN cuts products: the canaries notice it, and nobody gets this engine unless he asks for its class
        assert problem is not None and "computes something else" in problem
        assert np.abs(found - expected).mean() > 0.01
        with open_scorer(folder, VLLM, MAX_TOKENS) as chosen:
            assert isinstance(chosen, TransformersScorer)


@pytest.mark.timeout(300)
def test_names_engine_arguments_that_vllm_does_not_have(tiny_judge_llama: Path) -> None:
    config = scorer("vllm", engine_args={"gpu_memory": 0.9})
    with pytest.raises(ValueError, match="gpu_memory"), open_scorer(tiny_judge_llama, config, MAX_TOKENS):
        pass


@pytest.mark.parametrize(
    ("name", "value", "listed"), [("quantization", "bitsandbytes", "fp8"), ("runner", "score", "pooling")]
)
def test_names_values_that_vllm_does_not_have_before_it_reads_the_model(name: str, value: str, listed: str) -> None:
    with pytest.raises(UserError, match=rf"scorers\.\*\.engine_args\.{name}={value}: vLLM [\d.]+ has .*{listed}"):
        VllmScorer(Path("nowhere"), scorer("vllm", engine_args={name: value}), MAX_TOKENS)
    check_arguments({"quantization": "FP8", "enable_prefix_caching": True, name: None})


@pytest.mark.long
@pytest.mark.timeout(900)
def test_label_tokens_of_a_real_language_model_equal_transformers(smollm2: Path) -> None:
    prompt = configured("prompt=label_tokens").prompt
    rows = [
        Conversation("x", ["What is the capital of France?"], ["Paris."], ["I do not know, sorry."]),
        Conversation("y", ["Say hello."], ["No."], ["Hello! How can I help you today?"]),
    ]
    prompts = [p.ids for p in Renderer(prompt, smollm2).render(rows)]
    labels = [" A", " B", " C"]
    with open_scorer(smollm2, scorer("transformers"), prompt.max_tokens, label_tokens=labels) as reference:
        expected = score(reference, prompts)
    ids = label_token_ids(labels, smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    with torch.inference_mode():
        plain = torch.stack([model(torch.tensor([p])).logits[0, -1].log_softmax(-1)[ids] for p in prompts]).numpy()
    assert np.abs(expected - plain).max() < 1e-3
    with no_process_left(), open_scorer(smollm2, VLLM, prompt.max_tokens, label_tokens=labels) as engine:
        found = score(engine, prompts)
    assert np.abs(found - plain).max() < 1e-3
    assert (np.exp(found).sum(1) < 1).all()  # log-probabilities over the whole vocabulary, not over the three


@pytest.mark.long
@pytest.mark.timeout(900)
def test_an_adapter_beside_its_base_equals_the_merged_judge(
    tiny_llama: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", modules_to_save=["score"], task_type="SEQ_CLS")
    base = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=3, dtype=torch.float32)
    judge = get_peft_model(base, config)
    torch.manual_seed(0)
    for name, parameter in judge.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    judge.save_pretrained(tmp_path / "adapter")
    merge_adapter(tiny_llama, tmp_path / "adapter", tmp_path / "merged", torch.float32)
    expected = score(TransformersScorer(tmp_path / "merged", REFERENCE), prompts)
    unmerge_adapter(tiny_llama, tmp_path / "adapter", tmp_path / "model", tmp_path / "bare")
    own = sum(p.stat().st_size for p in (tmp_path / "model").rglob("*.safetensors") if not p.is_symlink())
    assert own < 4096  # the head: no second copy of the base
    with open_scorer(tmp_path / "model", VLLM, MAX_TOKENS, adapter=tmp_path / "bare") as engine:
        found = score(engine, prompts)
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.long
@pytest.mark.timeout(900)
def test_an_engine_found_dead_says_so_and_what_to_do(tiny_judge_llama: Path, prompts: list[list[int]]) -> None:
    with no_process_left(), open_scorer(tiny_judge_llama, VLLM, MAX_TOKENS) as engine:
        assert isinstance(engine, VllmScorer)
        # Without end: a quick engine may have answered all that it holds when it dies.
        stream = engine.stream(cycle(prompts))
        next(stream)
        core = engine.llm.llm_engine.engine_core
        for process in core.resources.engine_manager.processes:
            process.kill()
            process.join()
        while not core.input_socket.closed:
            time.sleep(0.01)
        # As a writer sees it that looked just before vLLM's own watch closed the socket:
        core.resources.engine_dead = False
        with pytest.raises(ValueError, match="vLLM's engine died"):
            deque(stream, maxlen=0)


def open_and_wait(model: Path, pids: Connection) -> None:
    with open_scorer(model, VLLM, MAX_TOKENS):
        pids.send([child.pid for child in psutil.Process().children(recursive=True) if "VLLM" in child.name()])
        time.sleep(600)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_kill_leaves_no_engine_behind(tiny_judge_llama: Path) -> None:
    receiving, sending = Pipe(duplex=False)
    with spawned():
        scoring = own_process(open_and_wait, tiny_judge_llama, sending)
    engine = [psutil.Process(pid) for pid in receiving.recv()]
    assert engine and all(process.is_running() for process in engine)
    scoring.kill()
    _, alive = psutil.wait_procs(engine, timeout=60)
    assert not alive
