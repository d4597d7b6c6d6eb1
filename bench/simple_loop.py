"""The loop one writes first, which benchmarks of scoring are measured beside."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from core.records import LABELS

BATCH = 8


def transformers_loop(model: Path) -> Callable[[Sequence[list[int]]], np.ndarray]:
    """The loop one writes first: sorted by length, eight rows at a time, padded on the right."""
    import torch
    from transformers import AutoModelForSequenceClassification

    classifier = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    pad = classifier.config.pad_token_id

    @torch.inference_mode()
    def score(prompts: Sequence[list[int]]) -> np.ndarray:
        logits = np.empty((len(prompts), len(LABELS)), dtype=np.float32)
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            width = max(len(prompts[row]) for row in rows)
            ids = torch.tensor([prompts[row] + [pad] * (width - len(prompts[row])) for row in rows])
            mask = torch.tensor([[1] * len(prompts[row]) + [0] * (width - len(prompts[row])) for row in rows])
            logits[rows] = classifier(input_ids=ids, attention_mask=mask, use_cache=False).logits.numpy()
        return logits

    return score
