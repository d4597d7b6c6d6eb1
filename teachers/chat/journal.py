"""Every answer that was paid for, a line each, written before the next is read: a kill costs what is in flight.

The first line says what was asked. A journal is gone on with by the same questions alone.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from core.artefacts.identity import differing_fields, identity_hash, list_differences
from core.errors import UserError
from core.locks import alone
from core.store.parts import explained
from teachers.chat.answers import Answer

NAME = "answers.jsonl"
Key = tuple[str, str, int]  # id, order, and the fingerprint of the texts


class Journal:
    """The answers in `folder` by key; `model`: who gave them, as the API says; `spent`: what all of them cost."""

    def __init__(self, folder: Path, prices: tuple[float, float]) -> None:
        """`prices`: of a million tokens of prompts, and of answers."""
        self.path, self.prices = folder / NAME, prices
        self.answers: dict[Key, Answer] = {}
        self.model: str | None = None
        self.spent = 0.0
        self._file: BinaryIO | None = None

    @classmethod
    @contextmanager
    def open(
        cls, folder: Path, identity: Mapping[str, Any], prices: tuple[float, float], overwrite: bool
    ) -> Iterator["Journal"]:
        """The journal of questions with this `identity`, which nobody else may write meanwhile.

        One of other questions is kept aside with `overwrite`. Raises `UserError` for it without, for a damaged one, and
        where another process writes it.
        """
        with alone(folder):
            journal = cls(folder, prices)
            with explained(folder):
                folder.mkdir(parents=True, exist_ok=True)
                whole = journal._read(identity, overwrite)
                with journal.path.open("ab", buffering=0) as journal._file:
                    journal._file.truncate(whole)  # what a kill left of a line is cut off
                    if not whole:
                        journal._write({"identity": identity})
            with journal.path.open("ab", buffering=0) as journal._file:
                yield journal

    def _read(self, identity: Mapping[str, Any], overwrite: bool) -> int:
        """Take the answers that are there; the bytes of whole lines."""
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                found = json.loads(line)
                if number > 1:
                    self._take((found["id"], found["order"], found["fingerprint"]), Answer(**found["answer"]))
                elif differences := differing_fields(found["identity"], identity):
                    if not overwrite:
                        raise UserError(
                            f"{self.path} holds answers to other questions:{list_differences(differences)}"
                            "\n  choose another teacher.name, or keep them aside and ask anew with overwrite=true"
                        )
                    self.path.rename(self.path.with_name(f"answers-{identity_hash(found['identity'])}.jsonl"))
                    return 0
            except (KeyError, TypeError, json.JSONDecodeError) as error:
                raise UserError(
                    f"{self.path}, line {number} is damaged: take the line out; its answer is asked for again"
                ) from error
        return sum(len(line) + 1 for line in lines)

    def _take(self, key: Key, answer: Answer) -> None:
        if answer.model != self.model and not answer.refused:
            if self.model is not None:
                raise UserError(
                    f"the API answers as {answer.model} now, and {self.path} holds answers of {self.model}: name a "
                    "version in teacher.chat.model, and another teacher.name"
                )
            self.model = answer.model
        self.spent += self.cost(answer.prompt_tokens, answer.completion_tokens)
        self.answers.setdefault(key, answer)

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.prices[0] + completion_tokens * self.prices[1]) / 1e6

    def add(self, key: Key, answer: Answer) -> None:
        """Keep an answer. Raises `UserError` where it is another model's than those before."""
        self._take(key, answer)
        with explained(self.path.parent):
            self._write({"id": key[0], "order": key[1], "fingerprint": key[2], "answer": asdict(answer)})

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None, "outside of open()"
        self._file.write(json.dumps(line).encode() + b"\n")


def answers_in(folder: Path) -> int:
    """How many answers the journal in `folder` has; only looked at."""
    path = folder / NAME
    return max(0, path.read_bytes().count(b"\n") - 1) if path.is_file() else 0
