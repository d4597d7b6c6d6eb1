"""The typed configuration reports every problem at once and hides no default."""

from copy import deepcopy
from typing import Any

import pytest

from distill.config import Config, from_mapping, to_mapping
from distill.naming import run_name, variant
from tests.composing import composed


def test_round_trip() -> None:
    values = composed("data=human")
    assert from_mapping(Config, to_mapping(from_mapping(Config, values))) == from_mapping(Config, values)


def test_all_problems_are_reported_at_once() -> None:
    values: dict[str, Any] = deepcopy(composed())
    values["loss"]["soft_weigth"] = 1
    values["loss"]["kl"]["weight"] = "high"
    values["data"]["folds"]["split"] = "random"
    values["engine"]["zero_stage"] = True
    del values["student"]["lora"]["rank"]
    with pytest.raises(ValueError) as error:
        from_mapping(Config, values)
    message = str(error.value)
    assert "loss.soft_weigth=1: unknown key" in message
    assert "loss.kl.weight='high': expected float" in message
    assert "data.folds.split='random': expected one of grouped, blackpearl" in message
    assert "engine.zero_stage=True" in message
    assert "student.lora.rank: missing" in message


def test_overrides_that_change_the_model_name_the_run() -> None:
    assert run_name("demo", ["+exp=demo", "fold=1", "paths.root=x", "tracker=none", "eval.bootstrap=10"]) == "demo"
    assert run_name("demo", ["seed=1", "loss=votes"]) == run_name("demo", ["loss=votes", "seed=1"])
    assert run_name("demo", ["loss=votes"]) == "demo,loss=votes"
    assert variant("demo,seed=1", "loss=votes") == run_name("demo", ["seed=1", "loss=votes"])
    assert variant("demo,seed=1", "seed=2") == "demo,seed=2"
