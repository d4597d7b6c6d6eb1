"""The judge as a module: a backbone, tuned by LoRA or whole, what it says of a prompt, and a head.

A decoder is read at the last token, an encoder through its pooler, at the first.
A pairwise judge's head has three outputs. A pointwise one's has one, and the rewards of both responses become logits.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.errors import UserError
from core.folders import new_folder
from core.json_files import write_json
from core.labels import Labels
from core.models.architecture import ENCODERS, head_of, is_frozen, layer_of
from core.models.folders import copy_tokenizer
from core.models.linking import head_tensors
from core.models.shards import DTYPES
from core.pointwise import JUDGE, KEY, noted, outputs_of
from core.records import LABELS
from students.merging import caps_off
from students.training.attention import COMPILER, choose_attention, triton_compiles
from students.training.collectives import take_device
from students.training.config import EngineConfig, ModelConfig
from students.training.heads import start_choice, start_head
from students.training.pairing import LearntChoice, learnt

log = logging.getLogger(__name__)
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


class JudgeModel(nn.Module):
    """`forward(input_ids, positions, ends [rows]) -> logits [rows, 3]`, in the order shown.

    Padded, `input_ids` are [rows, tokens] with pads at the right, and `positions` None. A causal backbone never looks
    right, so real tokens cannot see the pads and no attention mask is needed; an encoder's follows from `ends`.
    Padding-free, which encoders do not know, they are [1, all tokens], and where `positions` begin anew at 0
    transformers begins a new sequence, which sees none before it. The last token of each row is the one at `ends` in
    the flattened ids, whatever ids the text holds. Two padded blocks pass one after the other, and `ends` go on from
    the first to the second.
    """

    def __init__(self, model: Any, base: Path, choice: LearntChoice | None = None):
        """`model` is transformers' sequence classifier, or PEFT's model around it, made from the folder `base`.

        With `choice` it gives rewards, and both rows of a conversation stand side by side.
        """
        super().__init__()
        self.model, self.base, self.choice = model, base, choice

    @property
    def classifier(self) -> Any:
        """transformers' module, with LoRA layers in place of some of its own where it has them."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def head(self) -> str:
        """What the classifier calls its score head."""
        return head_of(self.classifier.config.model_type)

    def forward(
        self, input_ids: torch.Tensor | tuple[torch.Tensor, ...], positions: torch.Tensor | None, ends: torch.Tensor
    ) -> torch.Tensor:
        classifier = self.classifier
        backbone = getattr(classifier, classifier.base_model_prefix)
        blocks = (input_ids,) if isinstance(input_ids, torch.Tensor) else input_ids
        if classifier.config.model_type in ENCODERS:
            pooled = first_tokens(backbone, blocks, ends)
        else:
            hidden = [
                backbone(input_ids=block, position_ids=positions, use_cache=False).last_hidden_state.flatten(0, 1)
                for block in blocks
            ]
            pooled = (hidden[0] if len(hidden) == 1 else torch.cat(hidden))[ends]
        outputs = getattr(classifier, self.head)(pooled)
        return outputs if self.choice is None else self.choice(outputs)

    def trainable(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """(LoRA matrices or all weights, score head and what comes after it)."""
        named = [(self.head in n or n.startswith("choice."), p) for n, p in self.named_parameters() if p.requires_grad]
        return [p for of_head, p in named if not of_head], [p for of_head, p in named if of_head]

    def save(self, folder: Path, gathered: bool, write: bool) -> None:
        """Write `folder`/adapter in PEFT's layout, or for a full tuning `folder`/model, in place of an older one.

        All ranks call it where ZeRO-3 has partitioned the weights (`gathered` false): they come together one by one,
        and only the rank that is to `write` holds them all, in its CPU memory.
        """
        adapted = hasattr(self.model, "peft_config")
        state = {name.removeprefix("model."): tensor for name, tensor in self._trained(gathered, adapted, write)}
        if not write:
            return
        name = "adapter" if adapted else "model"
        with new_folder(folder / name) as partial:
            if self.choice is not None:
                log_tie, height = (state.pop(f"choice.{name}", None) for name in ("log_tie", "height"))
                note = noted(learnt(state.pop("choice.log_scale"), log_tie, height))
                write_json(partial / JUDGE, note)
                self.classifier.config.update(note)
            if adapted:
                self.model.save_pretrained(str(partial), state_dict=state, save_embedding_layers=False)
                (partial / "README.md").unlink(missing_ok=True)  # a model card template with nothing filled in
            else:
                state |= head_tensors(self.classifier.config.model_type, state[f"{self.head}.weight"])
                self.model.save_pretrained(str(partial), state_dict=state)
                copy_tokenizer(self.base, partial)

    def _trained(self, gathered: bool, adapted: bool, keep: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and whole values of the trained parameters, of a full tuning's frozen ones, too."""
        for name, parameter in self.named_parameters():
            if adapted and not parameter.requires_grad:
                continue
            with nullcontext() if gathered else whole(parameter):
                if keep:
                    yield name, parameter.detach().to("cpu", copy=True)


def first_tokens(backbone: Any, blocks: Sequence[torch.Tensor], ends: torch.Tensor) -> torch.Tensor:
    """What an encoder's pooler says of the rows [rows, width] whose last tokens are at `ends`; pads are masked."""
    pooled, of_row, before, seen = [], torch.empty_like(ends), 0, 0
    for block in blocks:
        rows, tokens = block.shape
        here = (before <= ends) & (ends < before + block.numel())
        row, last = (ends[here] - before) // tokens, (ends[here] - before) % tokens
        lengths = torch.zeros(rows, dtype=torch.long, device=block.device).index_put((row,), last + 1)
        mask = torch.arange(tokens, device=block.device) < lengths[:, None]
        pooled.append(backbone(input_ids=block, attention_mask=mask.long()).pooler_output)
        of_row[here] = row + seen
        before, seen = before + block.numel(), seen + rows
    return torch.cat(pooled)[of_row]


def whole(parameter: nn.Parameter) -> Any:
    """A context in which a parameter is whole on every rank, though ZeRO-3 has partitioned it."""
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])


def build_judge(
    base: Path,
    config: ModelConfig,
    engine: EngineConfig,
    seed: int,
    label_tokens: Sequence[str] = (),
    labels: Labels = LABELS,
) -> JudgeModel:
    """Load `base` for training; what is new (LoRA matrices, a score head) is drawn from `seed`.

    `label_tokens` are the verdicts whose output rows `model.head=label_tokens` starts from, `labels` what people could
    vote for.
    """
    from transformers import AutoModelForSequenceClassification
    from transformers import logging as transformers_logging

    if config.load_in_4bit and config.tuning == "full":
        raise UserError("model.tuning=full with model.load_in_4bit=true: 4-bit weights cannot be trained; choose one")
    device = take_device()
    transformers_logging.set_verbosity_error()  # it reports the score head as missing, which it is meant to be
    transformers_logging.disable_progress_bar()
    torch.manual_seed(seed)
    settings, dtype = classifier_settings(base, config), training_dtype(config)
    head = head_of(settings.model_type)
    if engine.padding_free and settings.model_type in ENCODERS:
        raise UserError(f"engine.padding_free=true: {base} is an encoder, whose tokens would see the next row: false")
    if device.type == "cuda":  # over a base in bf16 the fp32 products of LoRA may round as TF32 does
        torch.set_float32_matmul_precision("high" if dtype == torch.bfloat16 else "highest")
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        config=settings,
        dtype=dtype,
        attn_implementation=choose_attention(settings, engine.attention, dtype),
        quantization_config=four_bits(dtype, head) if config.load_in_4bit else None,
        device_map={"": str(device)} if config.load_in_4bit else None,  # else DeepSpeed moves it
        ignore_mismatched_sizes=True,  # the head of a reward model
    )
    keep_four_bits(model)
    pointwise = config.kind == "pointwise"
    if not hasattr(model, head):
        raise UserError(
            f"model.base={base} is a {settings.model_type}: give a causal language model, or an encoder of the "
            f"families {', '.join(ENCODERS)}"
        )
    drawn = getattr(model, head).weight
    setattr(model, head, start_head(drawn, base, config.head, label_tokens, outputs_of(pointwise)))
    choice = start_choice(base, config.head, labels) if pointwise else None
    if engine.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if engine.liger and device.type == "cuda":
        fuse(model)
    if config.tuning == "lora":
        return JudgeModel(with_lora(model, config), base, choice)
    # DeepSpeed wants one type for all that it trains; the head computes in fp32 all the same.
    getattr(model, head).to(dtype)
    for name, parameter in model.named_parameters():
        if is_frozen(name, config.freeze_layers):
            parameter.requires_grad = False
    return JudgeModel(model, base, None if choice is None else choice.to(dtype))


def fuse(model: Any) -> None:
    """Put Liger's kernels in place of the model's own, where they are installed and can be compiled."""
    if not find_spec("liger_kernel"):
        return
    if not triton_compiles():
        log.warning("engine.liger=true is left out: it needs %s", COMPILER)
        return
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(model=model)
    log.info("with Liger's fused kernels")


def classifier_settings(base: Path, config: ModelConfig) -> Any:
    """transformers' configuration of a judge's classifier from `base`, without caps where they are off.

    An encoder's own dropout is off, as decoders have none: `model.lora.dropout` is the only one.
    """
    from transformers import AutoConfig

    outputs = outputs_of(config.kind == "pointwise")
    settings: Any = AutoConfig.from_pretrained(base, num_labels=len(outputs))
    settings.id2label, settings.label2id = dict(enumerate(outputs)), {name: i for i, name in enumerate(outputs)}
    if hasattr(settings, KEY):  # of a base that is a pointwise judge itself
        delattr(settings, KEY)
    if settings.pad_token_id is None:
        settings.pad_token_id = settings.eos_token_id if isinstance(settings.eos_token_id, int) else 0
    for dropout in DROPOUTS:
        if hasattr(settings, dropout):
            setattr(settings, dropout, 0.0)
    if not config.softcapping:
        for name in caps_off(settings.to_dict()):
            setattr(settings, name, None)
    return settings


def with_lora(model: Any, config: ModelConfig) -> Any:
    """PEFT's model around the classifier: LoRA matrices in fp32, its head trained in full and in fp32."""
    from peft import LoraConfig, get_peft_model

    depth, targets, frozen = model.config.num_hidden_layers, config.lora.targets, config.freeze_layers
    head = head_of(model.config.model_type)
    if frozen:  # one by one: PEFT's own choice of layers passes over what is in none, such as a pooler
        if frozen >= depth:
            raise UserError(f"model.freeze_layers={frozen}: the base has {depth} layers, leave some free")
        free = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and not 0 <= layer_of(n) < frozen]
        wanted = None if targets == "all-linear" else {targets} if isinstance(targets, str) else {*targets}
        targets = [n for n in free if n != head and (wanted is None or n.split(".")[-1] in wanted)]
    adapter = LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        use_rslora=config.lora.method == "rslora",
        use_dora=config.lora.method == "dora",
        target_modules=targets,
        modules_to_save=[head],
        task_type="SEQ_CLS",
    )
    return get_peft_model(model, adapter)


def keep_four_bits(model: Any) -> None:
    """Keep bitsandbytes from packing weights in a validation, on CPUs with AVX-512 BF16: it would train on in bf16."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def four_bits(dtype: torch.dtype, head: str) -> Any:
    """QLoRA's storage of the base: nf4 with quantised scales (Dettmers et al. 2023, arXiv 2305.14314)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[head],
    )


def training_dtype(config: ModelConfig) -> torch.dtype:
    """fp32 or bf16 for `auto`: bf16 only where the accelerator computes in it (most CPUs, and T4s, only emulate it)."""
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    in_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = torch.bfloat16 if in_bf16 else torch.float32
    log.debug("model.dtype=auto: training in %s", str(dtype).removeprefix("torch."))
    return dtype
