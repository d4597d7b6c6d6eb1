"""What becomes of a device's memory while judges come and go: the real transformers scorer, watched."""

import weakref
from typing import Any

import pytest
import torch

from teachers.scorers.transformers import TransformersScorer


class Device:
    """`events`: "opened" for each scorer; at each release of memory "freed", or "held" where a model still lives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self._models: list[weakref.ref[torch.nn.Module]] = []
        load, empty_cache = TransformersScorer.__init__, torch.cuda.empty_cache

        def open_and_note(scorer: TransformersScorer, *arguments: Any) -> None:
            load(scorer, *arguments)
            self.events.append("opened")
            self._models.append(weakref.ref(scorer.model))

        def release_and_note() -> None:
            empty_cache()
            self.events.append("held" if self.models_alive else "freed")

        monkeypatch.setattr(TransformersScorer, "__init__", open_and_note)
        monkeypatch.setattr(torch.cuda, "empty_cache", release_and_note)

    @property
    def models_alive(self) -> int:
        return sum(model() is not None for model in self._models)

    def check_left_free(self, scorers: int) -> None:
        """Each of so many scorers found the device free, and the last one left it so."""
        assert self.events.count("opened") == scorers
        assert "held" not in self.events and self.events[-1] == "freed" and not self.models_alive
        before = [self.events[place - 1] for place, event in enumerate(self.events) if place and event == "opened"]
        assert set(before) <= {"freed"}
