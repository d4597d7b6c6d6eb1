"""The reference scorer: padded forward passes through transformers."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from distill.config import ScorerConfig
from distill.records import LABELS
from teachers.scorers import Progress

log = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TransformersScorer:
    """Scores with a sequence classifier on one device: the first GPU, or else the CPU."""

    def __init__(self, model: Path, config: ScorerConfig) -> None:
        """`config.batch_tokens` bounds the padded tokens of one forward pass."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = DTYPES[config.dtype] if config.dtype != "auto" else fastest_dtype(self.device)
        log.info("scoring with %s through transformers on %s in %s", model, self.device, dtype)
        settings = AutoConfig.from_pretrained(model)
        if hasattr(settings, "quantization_config"):
            # transformers has no int8 kernels: weights become floats and activations are rounded at run time. Unless
            # told so, that waits for the classifier's own forward, which `_logits` goes around.
            settings.quantization_config["dequantize"] = True
        if getattr(settings, "attn_logit_softcapping", None):
            settings._attn_implementation = "eager"  # Gemma-2: the default, sdpa, leaves the softcap out without a word
        judge = AutoModelForSequenceClassification.from_pretrained(model, config=settings, dtype=dtype)
        self.model = judge.to(self.device).eval()
        self.model.score.float()  # as vLLM does: bf16 logits would keep three digits
        self.batch_tokens = config.batch_tokens

    @torch.inference_mode()
    def score(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """float32 [len(prompts), 3] as `distill.scoring.Scorer` says; the longest prompts are scored first."""
        logits = np.empty((len(prompts), len(LABELS)), dtype=np.float32)
        batches = batches_by_length([len(prompt) for prompt in prompts], self.batch_tokens)
        with Progress([len(prompts[row]) for batch in batches for row in batch]) as progress:
            for batch in batches:
                logits[batch] = self._logits([prompts[row] for row in batch])
                progress.update(len(batch))
        return logits

    def _logits(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        # The pooled position comes from the lengths. transformers' own pooling takes the last id that is not
        # pad_token_id, and where pad is also a token of the prompt's end, that is another position.
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.long)
        ids[mask] = torch.tensor([token for prompt in prompts for token in prompt])
        hidden = self.model.base_model(
            input_ids=ids.to(self.device), attention_mask=mask.long().to(self.device), use_cache=False
        ).last_hidden_state
        last = hidden[torch.arange(len(prompts), device=self.device), lengths.to(self.device) - 1]
        return self.model.score(last.float()).cpu().numpy()


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bf16 on GPUs that compute in it, else fp32; on CPUs without bf16 units bf16 is more than ten times slower."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Row numbers in batches of similar length, longest first; rows x longest row <= `batch_tokens`, or one row."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches
