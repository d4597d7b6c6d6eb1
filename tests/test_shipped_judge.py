"""The judge that ships in judges/human: small, from data that a product may hold, and of sound mind."""

import json
from pathlib import Path

import pytest

from core.exported import PACKED_RUN, open_exported
from core.records import LABELS, Conversation
from core.scoring import logits_by_order, score_conversations
from deploy.serving.page import FOLDER
from eval.canaries.checking import check_canaries
from eval.metrics import predict
from proof.card import CARD
from proof.shippable import check_no_machine_paths
from proof.sources.table import BASES, SOURCES
from students.export.packing import unpack
from teachers.scorers.opening import open_scorer
from tests.composing import configured, scorer
from tests.running import ROOT

SHIPPED = ROOT / "judges" / "human"
EXAMPLES = json.loads((FOLDER / "examples.json").read_text())
# Whom people would prefer where that is evident; of the others nothing is asked but that they are less clear.
EVIDENT = {"Right and wrong": "b", "Help and refusal": "a", "Whole and cut short": "b"}
OTHERS = {"Code, two turns", "A close call"}
CLOSE = "A close call"


def test_each_example_of_the_page_has_an_expectation() -> None:
    assert {*EXAMPLES} == EVIDENT.keys() | OTHERS
    assert {*EVIDENT.values()} == {"a", "b"}, "the better one stands on either side"
    assert all(all(text.strip() for turn in turns for text in turn) for turns in EXAMPLES.values())


needed = pytest.mark.skipif(not SHIPPED.exists(), reason="there is no judges/human: python -m proof.ship makes it")


@needed
def test_it_is_small_and_tells_nothing_of_the_machine_that_made_it() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) <= 12e6
    check_no_machine_paths(SHIPPED)


@needed
def test_its_card_names_its_base_and_each_of_its_sources() -> None:
    manifest = json.loads((SHIPPED / PACKED_RUN / "manifest.json").read_text())
    config = configured("+exp=judge_human")
    assert [*manifest["parents"]] == [f"data/{config.data.name}"]
    assert manifest["config"]["model"]["base"] == config.model.base
    card = (SHIPPED / CARD).read_text()
    assert BASES[config.model.base].licence in card
    names = {Path(path).parent.name for path in config.data.files or []}
    for name, source in SOURCES.items():
        assert (f"`{name}`" in card) == (name in names)
        assert name not in names or (source.shippable and source.licence in card and source.commit[:12] in card)


@needed
def test_it_judges_the_examples_of_the_page_as_people_would(tmp_path: Path) -> None:
    rows = [
        Conversation(name, *(list(texts) for texts in zip(*turns, strict=True))) for name, turns in EXAMPLES.items()
    ]
    judge = open_exported(unpack(SHIPPED, tmp_path))
    with open_scorer(judge.folder, scorer("transformers"), judge.max_tokens) as opened:
        assert not check_canaries(judge.folder, judge.renderer, opened, "refuse")
        scores = score_conversations(opened, judge.renderer, rows)
    said = dict(zip(EXAMPLES, predict(*logits_by_order(scores, [*EXAMPLES])), strict=True))
    assert {name: LABELS[said[name].argmax()] for name in EVIDENT} == EVIDENT, said
    assert all(said[name].max() > said[CLOSE].max() for name in EVIDENT), said
