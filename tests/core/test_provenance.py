"""What an artefact learned from goes with it, through every step and every teacher."""

import os
from pathlib import Path

import pytest

from core.artefacts.contents import content_hash
from core.models.first_layers import first_layers
from core.provenance import (
    LEARNED_FROM,
    Learned,
    behind_model,
    read_learned,
    union,
    write_learned,
)
from core.records import Conversation

SELF_DISTILLED = Learned(frozenset({1, 2**64 - 1}), frozenset({2, 3}))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_learned(tmp_path, SELF_DISTILLED)
    assert read_learned(tmp_path) == SELF_DISTILLED
    both = Learned(frozenset({1}), frozenset({1, 2}))
    write_learned(tmp_path, both)
    assert read_learned(tmp_path).taught() == both.taught()  # what counts as directly is not told twice
    with pytest.raises(ValueError, match=r"has no learned_from\.parquet"):
        read_learned(tmp_path / "elsewhere")


def test_whoever_learns_inherits_all_of_its_teacher() -> None:
    student = Learned(frozenset({9})) | SELF_DISTILLED.taught()
    assert student == Learned(frozenset({9}), frozenset({1, 2**64 - 1, 2, 3}))
    assert union([student, Learned(frozenset({4}))]).directly == {9, 4}
    conversation = Conversation("x", ["q"], ["a"], ["b"])
    assert Learned.of([conversation, conversation.swap()]).directly == {conversation.fingerprint()}


def test_a_base_that_learned_here_says_so_and_one_from_elsewhere_has_seen_nothing(
    tiny_llama: Path, tmp_path: Path
) -> None:
    assert behind_model(tiny_llama) == Learned()
    run = tmp_path / "students" / "run" / "fold=0"
    write_learned(run, SELF_DISTILLED)
    write_learned(run / "model", Learned(frozenset({7})))  # a full tuning: its weights lie below the run
    assert behind_model(run / "model") == SELF_DISTILLED | Learned(frozenset({7}))
    base = tmp_path / "base"
    base.mkdir()
    for path in tiny_llama.iterdir():
        os.link(path, base / path.name)
    write_learned(base, SELF_DISTILLED)
    assert behind_model(first_layers(base, 1, tmp_path)) == SELF_DISTILLED


def test_an_artefact_that_shares_its_file_is_left_as_it_is(tmp_path: Path) -> None:
    """Exports link the files of the models that they are made of."""
    model, export = tmp_path / "model", tmp_path / "export"
    write_learned(model, SELF_DISTILLED)
    before = content_hash(model)
    export.mkdir()
    os.link(model / LEARNED_FROM, export / LEARNED_FROM)
    write_learned(export, Learned(frozenset({5})))
    assert content_hash(model) == before and read_learned(export).directly == {5}
