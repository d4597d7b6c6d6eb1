"""Keys of earlier versions: what they are called now, and what manifests that hold them are taken for."""

import pytest

from core.renamed import advice, with_new_names
from distill.command_line import refuse_old_keys


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("student.lora.rank", "it is called model.lora.rank now"),
        ("teacher.scorer.ray.backend", "it is called scorer@scorers.teacher.worker now"),
        ("export.canaries.rows", "it is called canaries.rows now"),
        ("plan.tokens", "it was removed: plan.assumed.tokens holds for a model without its tokenizer"),
        ("export.quantisation.damping", "it was removed: GPTQ's own default of 0.01 holds"),
        ("canaries.rows", None),
        ("seed", None),
        ("student.dropout", None),
        ("student", "it is called model now"),
    ],
)
def test_an_old_key_is_told_with_its_new_name_or_why_it_is_gone(key: str, told: str | None) -> None:
    assert advice(key) == told


def test_a_group_that_has_an_old_key_s_name_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    refuse_old_keys(["canaries=default", "+exp=demo"])
    for old in ("canaries=refuse,warn", "student.lora.rank=", "~student.lora"):
        with pytest.raises(SystemExit):
            refuse_old_keys([old])
    with pytest.raises(SystemExit):
        refuse_old_keys(["canaries=warn", "scorer@teacher.scorer=ray"])
    told = capsys.readouterr().err
    assert "canaries.on_failure now" in told and "scorer@scorers.teacher now" in told


def test_a_manifest_of_before_is_read_in_new_names() -> None:
    old = {"mixture": {"calibrate": True}, "optimizer": {"warmup": 0.1, "warmup_steps": None}}
    assert with_new_names(old) == {"mixture": {"temperature_scaling": True}, "optimizer": {"warmup": 0.1}}
    steps = {"optimizer": {"warmup": 0.1, "warmup_steps": 100}}
    assert with_new_names(steps) == {"optimizer": {"warmup": 100}}


def test_a_warm_up_over_all_steps_is_not_taken_for_one_of_a_single_step() -> None:
    assert with_new_names({"optimizer": {"warmup": 1.0, "warmup_steps": None}})["optimizer"]["warmup"] != 1


def test_an_evaluation_of_before_is_that_of_today_where_its_bins_are() -> None:
    assert with_new_names({"eval": {"bias_level": 0.05, "ece_bins": 15}}) == {
        "eval": {"bias_level": 0.05, "truth": "votes"}
    }
    assert with_new_names({"eval": {"bias_level": 0.05, "ece_bins": 10}})["eval"]["ece_bins"] == 10


def test_a_key_that_is_new_is_added_to_its_own_group_alone() -> None:
    assert with_new_names({"prompt": {"max_tokens": 128}})["prompt"]["label_tokens"] == [" A", " B", " C"]
    hashes = {"prompt": {"template": "0" * 16, "prompt": "1" * 16}}
    assert with_new_names(hashes) == hashes
