"""Pretending to have GPUs: what is asked of CUDA before the first tensor is put there."""

from pathlib import Path
from typing import Any

import pytest
import torch


class PretendedGpus:
    """`events`: the device that was made current, and what else a test notes, in this order."""

    def __init__(self, patch: pytest.MonkeyPatch, count: int = 8, in_bf16: bool = True):
        self.events: list[Any] = []
        self.precision = "highest"
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: count)
        patch.setattr(torch.cuda, "set_device", lambda device: self.events.append(f"current {device}"))
        # Without a T4's emulation of it, which is told only where it is asked for.
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: in_bf16 or including_emulation)
        patch.setattr(torch, "set_float32_matmul_precision", lambda precision: setattr(self, "precision", precision))

    def note_loading(self, patch: pytest.MonkeyPatch) -> None:
        """Loading a classifier notes its arguments and goes no further."""
        from transformers import AutoModelForSequenceClassification

        def load(base: Path, **arguments: Any) -> None:
            self.events.append(arguments)
            raise Loaded

        patch.setattr(AutoModelForSequenceClassification, "from_pretrained", load)


class Loaded(Exception):
    """A model would have been loaded here."""
