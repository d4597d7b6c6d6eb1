"""The judge as a module: a causal backbone with LoRA, pooled at the last token, and a three-way score head in fp32."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distill.config import StudentConfig
from distill.records import LABELS

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Judge(nn.Module):
    """`forward(input_ids, positions, ends [rows]) -> logits [rows, 3]`, in the order shown.

    Padded, `input_ids` are [rows, tokens] with pads at the right, and `positions` None: a causal backbone never looks
    right, so real tokens cannot see the pads and no attention mask is needed. Padding-free, they are [1, all tokens],
    and where `positions` begin anew at 0 transformers begins a new sequence, which sees none before it. The pooled
    token is the one at `ends` in the flattened ids, whatever ids the text holds.
    """

    def __init__(self, peft_model: "PeftModel"):
        super().__init__()
        self.peft_model = peft_model

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor | None, ends: torch.Tensor) -> torch.Tensor:
        classifier: Any = self.peft_model.get_base_model()
        hidden = getattr(classifier, classifier.base_model_prefix)(
            input_ids=input_ids, position_ids=positions, use_cache=False
        ).last_hidden_state
        return classifier.score(hidden.flatten(0, 1)[ends].float())

    def trainable(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """(LoRA matrices, score head)."""
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        return [p for name, p in named if "lora_" in name], [p for name, p in named if "lora_" not in name]


def build_judge(base: Path, config: StudentConfig, seed: int) -> Judge:
    """Load `base` with a new score head and LoRA matrices, both drawn from `seed`."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForSequenceClassification, BitsAndBytesConfig
    from transformers import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # it reports the score head as missing, which it is meant to be
    transformers_logging.disable_progress_bar()
    torch.manual_seed(seed)
    settings = AutoConfig.from_pretrained(base, num_labels=len(LABELS))
    if settings.pad_token_id is None:
        settings.pad_token_id = settings.eos_token_id if isinstance(settings.eos_token_id, int) else 0
    dtype = training_dtype(config)
    quantization = (
        BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
        if config.load_in_4bit
        else None
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        base, config=settings, dtype=dtype, quantization_config=quantization
    )
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    adapter = LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        use_rslora=config.lora.method == "rslora",
        target_modules=config.lora.targets,
        modules_to_save=["score"],
        task_type="SEQ_CLS",
    )
    judge = Judge(get_peft_model(model, adapter))
    model.score.float()
    return judge


def training_dtype(config: StudentConfig) -> torch.dtype:
    """fp32 or bf16 for `auto`: bf16 only where the accelerator computes in it (most CPUs are many times slower)."""
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    dtype = torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
    log.info("student.dtype=auto: training in %s", str(dtype).removeprefix("torch."))
    return dtype
