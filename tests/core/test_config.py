"""The typed configuration reports every problem at once and hides no default."""

import math
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from core.bounds import Range
from core.config import from_mapping, to_mapping
from core.errors import UserError
from core.naming import run_name, variant
from core.renamed import with_new_names
from distill.config import Config
from tests.composing import composed
from tests.running import refuses


def test_round_trip() -> None:
    values = composed("data=human")
    assert from_mapping(Config, to_mapping(from_mapping(Config, values))) == from_mapping(Config, values)


def test_all_problems_are_reported_at_once() -> None:
    values: dict[str, Any] = deepcopy(composed())
    values["loss"]["soft_weigth"] = 1
    values["loss"]["kl"]["weight"] = "high"
    values["data"]["folds"]["split"] = "random"
    values["engine"]["zero_stage"] = True
    del values["model"]["lora"]["rank"]
    with pytest.raises(ValueError) as error:
        from_mapping(Config, values)
    message = str(error.value)
    assert "loss.soft_weigth=1: unknown key" in message
    assert "loss.kl.weight='high': expected float" in message
    assert "data.folds.split='random': expected one of grouped, blackpearl" in message
    assert "engine.zero_stage=True" in message
    assert "model.lora.rank: missing" in message


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.folds.split=grupped", "expected one of grouped, blackpearl; did you mean grouped?"),
        ("scorers.teacher.backend=vlm", "expected one of vllm, transformers, server, ray; did you mean vllm?"),
    ],
)
def test_a_misspelt_choice_is_answered_with_the_nearest(override: str, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        from_mapping(Config, composed(override))


def numbers(hint: Any, at: tuple[str, ...] = (), bounds: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """(place, int or float, bounds) of every number in a type; `[]` and `{}` stand for an item of a list or a dict."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        for name, kind in get_type_hints(hint, include_extras=True).items():
            yield from numbers(kind, (*at, name))
    elif origin is Annotated:
        yield from numbers(arguments[0], at, arguments[1:])
    elif origin is list:
        yield from numbers(arguments[0], (*at, "[]"), bounds)
    elif origin is dict:
        yield from numbers(arguments[1], (*at, "{}"))
    elif hint in (int, float):
        yield at, hint, bounds
    else:  # a union's, a choice's; `Any` has no arguments
        for argument in arguments:
            yield from numbers(argument, at) if not isinstance(argument, int | float | str) else ()


NUMBERS = list(numbers(Config))


def set_all(values: dict[str, Any], numbers: dict[tuple[str, ...], float]) -> dict[str, Any]:
    """A copy of `values` with other numbers at these places."""
    changed = deepcopy(values)
    for (*groups, name), number in numbers.items():
        item: Any = number
        if name in ("[]", "{}"):
            item = [number] if name == "[]" else {"x": number}
            name = groups.pop()
        group = changed
        for key in groups:
            group = group[key]
        group[name] = item
    return changed


@pytest.fixture(scope="module", params=["vllm", "transformers", "server", "ray"])
def values(request: pytest.FixtureRequest) -> dict[str, Any]:
    """With the keys of the simulated arena, of a chat API, and of one backend of scorers."""
    own = {"data": composed("data=arena_sim")["data"], "teacher": composed("teacher=chat")["teacher"]}
    return {**composed(f"scorer@scorers.teacher={request.param}"), **own}


def reached(values: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The numbers that a configuration has: of the scorers, those of the backends that it names."""
    found = []
    for place, kind, bounds in NUMBERS:
        group: Any = values
        for key in place[: -2 if place[-1] in ("[]", "{}") else -1]:
            group = group.get(key) or {}  # one that only a choice of its group has
        if (place[0] != "scorers" and group) or place[-1] in group:
            found.append((place, kind, bounds))
    return found


def test_every_number_has_bounds() -> None:
    without = [".".join(place) for place, _, bounds in NUMBERS if not any(isinstance(b, Range) for b in bounds)]
    assert not without, "write its bounds beside its type, see core/bounds.py"


@pytest.mark.parametrize("side", ["low", "high", "nan", "inf"])
def test_just_outside_of_its_bounds_a_number_is_refused(side: str, values: dict[str, Any]) -> None:
    outside: dict[tuple[str, ...], float] = {}
    for place, kind, bounds in reached(values):
        step = 1 if kind is int else 1e-9
        for bound in bounds:
            if not isinstance(bound, Range):
                continue
            if side == "low":
                outside[place] = bound.low if bound.open_low else bound.low - step
            elif side == "high" and bound.high < math.inf:
                outside[place] = bound.high if bound.open_high else bound.high + step
            elif side in ("nan", "inf") and kind is float:
                outside[place] = float(side)
    with pytest.raises(ValueError) as error:
        from_mapping(Config, set_all(values, outside))
    told = {line.removeprefix("  - ").split(": give ")[0] for line in str(error.value).splitlines()[1:]}
    names = {place: ".".join(place).replace(".[]", "[0]").replace("{}", "x") for place in outside}
    assert len(outside) > 10 and {f"{names[place]}={number!r}" for place, number in outside.items()} <= told


def test_numbers_at_their_bounds_are_taken(values: dict[str, Any]) -> None:
    least = {
        place: kind(bound.low)
        for place, kind, bounds in reached(values)
        for bound in bounds
        if isinstance(bound, Range) and not bound.open_low and place[-1] not in ("[]", "{}")
    }
    from_mapping(Config, set_all(values, least))


def test_a_bound_is_told_with_its_key_value_and_remedy(values: dict[str, Any]) -> None:
    values = deepcopy(values)
    values["train"].update(batch_conversations=0, epochs=-1, validation_share=1)
    values["optimizer"].update(betas=[0.9], min_lr_ratio=2, lr="fast")
    values["predict"].update(minutes=math.nan, rules={"identical": [0.5, 0.6, 0.1], "one_empty": 1})
    values["scorers"]["exported"]["engine_args"]["swap_space"] = math.inf
    values.update(limit=-1, seed=10**400)
    with pytest.raises(ValueError) as error:
        from_mapping(Config, values)
    problems = [line.removeprefix("  - ") for line in str(error.value).splitlines()[1:]]
    assert {problem if len(problem) < 120 else problem[:6] for problem in problems} == {
        "train.batch_conversations=0: give 1 or more",
        "train.epochs=-1: give 1 or more",
        "train.validation_share=1: give more than 0, less than 1",
        "optimizer.betas=[0.9]: give a list of 2 numbers",
        "optimizer.min_lr_ratio=2: give 0 to 1",
        "optimizer.lr='fast': expected float, got str",
        "predict.minutes=nan: give a finite number, or null",
        "predict.rules.identical=[0.5, 0.6, 0.1]: give numbers that sum to 1, or null",
        "predict.rules.one_empty=1: expected list[float], got int",
        "scorers.exported.engine_args.swap_space=inf: give a finite number",
        "limit=-1: give 1 or more, or null",
        "seed=1",
    }


def test_a_scorer_is_known_by_its_backend(values: dict[str, Any]) -> None:
    assert {place[2] for place, *_ in NUMBERS if place[0] == "scorers"} >= {"batch_tokens", "retries", "workers"}
    values = deepcopy(values)
    backend = values["scorers"]["teacher"]["backend"]
    assert from_mapping(Config, values).scorers.teacher.backend == backend
    values["scorers"]["teacher"]["backend"] = "tgi"
    refused = r"scorers\.teacher\.backend='tgi': expected one of vllm, transformers, server, ray"
    with pytest.raises(ValueError, match=refused):
        from_mapping(Config, values)


def test_a_key_of_before_is_refused_with_its_new_name() -> None:
    values = composed()
    values["student"] = {"base": "x"}
    values["export"]["calibration"] = "temperature"
    refused = r"student=.*it is called model now\n.*export\.calibration=.* export\.scaling now"
    with pytest.raises(ValueError, match=refused):
        from_mapping(Config, values)
    told = refuses("distill.plan", "student.lora.rank=8", "scorer@teacher.scorer=ray", "teacher.scorer.vllm.x=1")
    assert told.splitlines()[-1] == (
        "error: student.lora.rank: it is called model.lora.rank now; scorer@teacher.scorer: it is called "
        "scorer@scorers.teacher now; teacher.scorer.vllm.x: it is called scorers.teacher.engine_args.x now"
    )


def test_a_key_that_was_removed_is_refused_with_the_reason() -> None:
    values = composed()
    values["loss"]["skew_kl"] = {"weight": 0.5}
    values["loss"]["kl"]["final_weight"] = 0.1
    refused = r"loss\.skew_kl=.* it was removed: no preset.*\n.*loss\.kl\.final_weight=0.1: .* removed: a weight stays"
    with pytest.raises(ValueError, match=refused):
        from_mapping(Config, values)
    assert "loss.squared_error.weight: it was removed: no preset used it" in refuses(
        "distill.plan", "loss.squared_error.weight=1"
    )


def test_a_manifest_of_before_is_read_without_what_did_nothing() -> None:
    term = {"weight": 0.0, "temperature": 1.0, "final_weight": None, "final_temperature": None}
    old = {"loss": {"kl": {**term, "weight": 1.0}, "skew_kl": term, "squared_error": {**term, "weight": 0.5}}}
    old["optimizer"] = {"warmup": 0.1, "warmup_steps": None}  # type: ignore[dict-item]
    assert with_new_names(old) == {
        "loss": {"kl": {"weight": 1.0, "temperature": 1.0}, "squared_error": {**term, "weight": 0.5}},
        "optimizer": {"warmup": 0.1},
    }
    old["optimizer"] = {"warmup": 0.1, "warmup_steps": 100}  # type: ignore[dict-item]
    assert with_new_names(old)["optimizer"] == {"warmup": 100}


def test_overrides_that_change_the_model_name_the_run() -> None:
    assert run_name("demo", ["+exp=demo", "fold=1", "paths.root=x", "tracker=none", "eval.bootstrap=10"]) == "demo"
    assert run_name("demo", ["seed=1", "loss=votes"]) == run_name("demo", ["loss=votes", "seed=1"])
    assert run_name("demo", ["loss=votes"]) == "demo,loss=votes"
    assert variant("demo,seed=1", "loss=votes") == run_name("demo", ["seed=1", "loss=votes"])
    assert variant("demo,seed=1", "seed=2") == "demo,seed=2"
