"""Kernels of attention and Liger's against eager attention in fp32, on the device, forward and backward."""

from collections.abc import Sequence
from pathlib import Path

import torch

from core.records import ORDERS
from gpu_check.judges import Family, configured, conversations, device, random_judge, working_dtype
from gpu_check.results import EXACT, LOGITS, Failed, Figures, Skip, close, name_of, relative
from students.training.attention import COMPILER, choose_attention, triton_compiles
from students.training.data import Example, collate
from students.training.model import JudgeModel, build_judge

LONGEST = 300  # tokens: several blocks of a kernel, many windows


def attention(folder: Path, dry: bool, family: Family, implementation: str) -> Figures:
    """Logits and gradients of `implementation`, padded and padding-free, are those of eager attention in fp32."""
    dtype = working_dtype()
    base = random_judge(folder / "base", family, dry, dtype)
    examples, backward = conversations(longest=LONGEST), differentiable(implementation)
    on_gpu = device().type == "cuda"
    if on_gpu and implementation == "flex_attention":
        need_compiler()
    exact = outcome(open_judge(base, "fp32"), examples, False, backward)
    judge = open_judge(base, name_of(dtype))
    if on_gpu:  # as a training does, which lets flex_attention be compiled for more shapes
        choose_attention(judge.classifier.config, implementation, dtype)
    judge.classifier.set_attn_implementation(implementation)
    off: dict[str, float] = {}
    for layout in ("padded", "padding_free"):
        found = outcome(judge, examples, layout == "padding_free", backward)
        off |= {f"{layout}_{what}": relative(found[what], exact[what]) for what in exact}
    close(off, LOGITS[name_of(dtype)] if on_gpu else EXACT)
    return {**off, "dtype": name_of(dtype)}


def liger(folder: Path, dry: bool, family: Family) -> Figures:
    """Logits and gradients with Liger's kernels are those without."""
    need_compiler()
    dtype = working_dtype()
    base = random_judge(folder / "base", family, dry, dtype)
    examples = conversations(longest=LONGEST)
    exact = outcome(open_judge(base, "fp32"), examples, False, True)
    judge = open_judge(base, name_of(dtype), "engine.liger=true")
    if not any(layer.forward.__module__.startswith("liger_kernel") for layer in judge.modules()):
        raise Failed("no layer of the judge is Liger's")
    found = outcome(judge, examples, False, True)
    off = {what: relative(found[what], exact[what]) for what in exact}
    close(off, LOGITS[name_of(dtype)])
    return {**off, "dtype": name_of(dtype)}


def need_compiler() -> None:
    """Raises `Skip` where Triton cannot compile: a training does without such kernels there."""
    if not triton_compiles():
        raise Skip(f"needs {COMPILER}")


def differentiable(implementation: str) -> bool:
    """PyTorch has no backward of flex attention on CPUs."""
    return implementation != "flex_attention" or device().type != "cpu"


def open_judge(base: Path, dtype: str, *overrides: str) -> JudgeModel:
    """All weights of it trained, so nothing but transformers is needed."""
    config = configured(base, "model=full", f"model.dtype={dtype}", "engine.attention=eager", *overrides)
    return build_judge(base, config.model, config.engine, config.seed).to(device())


def outcome(
    judge: JudgeModel, examples: Sequence[Example], padding_free: bool, backward: bool
) -> dict[str, torch.Tensor]:
    """Logits [rows, 3], and the gradients of a loss for the embeddings of all tokens and the first layer's queries."""
    rows = [(i, order) for i in range(len(examples)) for order in range(len(ORDERS))]
    batch = collate(rows, examples, device(), padding_free)
    judge.train(backward).zero_grad()
    with torch.set_grad_enabled(backward):
        logits = judge(batch.input_ids, batch.positions, batch.ends)
    if not backward:
        return {"logits": logits}
    (batch.votes * logits.log_softmax(-1)).sum().backward()
    model = judge.classifier.model
    gradients = {"embeddings": model.embed_tokens.weight.grad, "queries": model.layers[0].self_attn.q_proj.weight.grad}
    return {"logits": logits.detach(), **{name: grad.clone() for name, grad in gradients.items()}}
