"""Keys of `conf/` that earlier versions had: refused with what to do instead, understood in old manifests."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

MODEL = ("base", "layers", "freeze_layers", "head", "softcapping", "dtype", "load_in_4bit", "tuning", "lora")
TRAIN = ("epochs", "schedule_epochs", "batch_conversations", "length_pool_steps", "validation_share", "validate_every")
ENGINE = ("micro_batch_tokens", "gradient_checkpointing")
SCORERS = {
    "teacher.scorer": "scorers.teacher",
    "export.scorer": "scorers.check",
    "export.reference": "scorers.student",
    "eval.student": "scorers.student",
    "eval.exported": "scorers.exported",
    "predict.scorer": "scorers.exported",
    "serve.scorer": "scorers.exported",
}
# Old key -> new key. What stands further up is tried first, so the narrower key stands before the wider.
RENAMED = {
    **{f"student.{key}": f"model.{key}" for key in MODEL},
    **{f"student.{key}": f"train.{key}" for key in TRAIN},
    **{f"student.{key}": f"engine.{key}" for key in ENGINE},
    "student": "model",
    "teacher.scorer.method": "teacher.method",
    "teacher.scorer.labels": "prompt.label_tokens",
    "teacher.labels": "prompt.label_tokens",
    **{f"{old}.vllm": f"{new}.engine_args" for old, new in SCORERS.items()},
    **{f"{old}.server": new for old, new in SCORERS.items()},
    **{f"{old}.ray.backend": f"scorer@{new}.worker" for old, new in SCORERS.items()},
    **{f"{old}.ray": new for old, new in SCORERS.items()},
    **{f"{old}.backend": f"scorer@{new}" for old, new in SCORERS.items()},
    **SCORERS,
    "teacher.mixture.calibrate": "teacher.temperature_scaling",
    "teacher.mixture.temperature_scaling": "teacher.temperature_scaling",
    "mixture.calibrate": "mixture.temperature_scaling",  # in manifests
    "export.calibration": "export.scaling",
    "export.fidelity": "fidelity",
    "export.fidelity_rows": "fidelity.rows",
    "export.canaries": "canaries",
    "canaries": "canaries.on_failure",
    "plan.t4": "t4",
    "plan.calibration": "plan.measured",
    "prompt.min_round_tokens": "prompt.min_turn_tokens",
    "optimizer.warmup_steps": "optimizer.warmup",
    "engine.nvme_path": "engine.offload",
    "predict.second_order": "predict.second_opinions",
    "predict.max_unreadable": "data.max_rejected",
}
IGNORED = (
    "columns that are not needed are left out by themselves; name data.layout where one is taken for a misspelling"
)
TERMS = ("reverse_kl", "jensen_shannon", "skew_kl", "squared_error", "swap_consistency")
# Old key -> why there is none in its place.
REMOVED = {
    **{f"loss.{term}": "no preset used it; the losses are cross_entropy, kl and cosine" for term in TERMS},
    **{
        f"loss.{term}.final_{what}": f"a {what} stays what it is for the whole training"
        for term in ("cross_entropy", "kl", "cosine")
        for what in ("weight", "temperature")
    },
    "loss.cross_entropy.temperature": "the cross-entropy with votes has no temperature",
    "tracker.sample_characters": "samples show 500 characters of a text",
    "data.ignore_columns": IGNORED,
    "ignore_columns": IGNORED,  # in manifests
    **{f"t4.{rate}.{end}": f"both ends are t4.{rate}.tflops" for rate in ("fp16", "int8") for end in ("low", "high")},
    **{f"t4.{rate}.sources": "docs/plan.md names the sources of the rates" for rate in ("fp16", "int8")},
    "plan.conversations": "plan.assumed.conversations holds for data that are not prepared",
    "plan.tokens": "plan.assumed.tokens holds for a model without its tokenizer",
    "predict.rules.both_empty": "the judge decides where both responses are empty",
    "eval.ece_bins": "15 bins hold everywhere",
    "export.quantisation.damping": "GPTQ's own default of 0.01 holds",
}
# Keys that earlier manifests lack -> a key beside which they stand, and what held then.
LABEL_TOKENS = [" A", " B", " C"]  # of every prompt
ADDED = {
    "prompt.label_tokens": ("max_tokens", LABEL_TOKENS),
    "model.kind": ("freeze_layers", "pairwise"),
    "eval.truth": ("bias_level", "votes"),
}
UNCHANGED = {"canaries": ("on_failure", "rows", "tokens", "repeats", "factors", "floor")}  # names that are groups now
# Values that are gone: key -> value -> what to give in its place.
REMOVED_VALUES = {"export.format": {"gptq": "the format is gone; give w8a16, which has the same weights"}}


def removed(key: str, value: object) -> str | None:
    """What to give in place of a value that earlier versions knew; None for one that they did not."""
    return REMOVED_VALUES.get(key, {}).get(value) if isinstance(value, str) else None


def advice(key: str) -> str | None:
    """What to do about a key of an earlier version; None for a key that is not one."""
    if new := new_name(key):
        return f"it is called {new} now"
    why = [why for old, why in REMOVED.items() if key == old or key.startswith(f"{old}.")]
    return f"it was removed: {why[0]}" if why else None


def new_name(key: str) -> str | None:
    """What a key of an earlier version is called now; None for a key that is not one."""
    for old, new in RENAMED.items():
        rest = key.removeprefix(old)
        if rest == "" or (
            rest != key
            and rest.startswith(".")
            and rest[1:].split(".")[0] not in UNCHANGED.get(old, ())
            and old != "student"
        ):
            return new + rest
    return None


def with_new_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration in a manifest, its keys as they are called now."""
    found = deepcopy(dict(config))
    for old, new in RENAMED.items():
        *groups, last = old.split(".")
        group = _at(found, groups)
        if group is None or last not in group or "@" in new:
            continue
        if isinstance(group[last], Mapping) and (old == "student" or old in UNCHANGED):
            continue
        value = group.pop(last)
        if new.startswith("engine."):
            continue  # it says how, not what, and left the identity
        if old == "optimizer.warmup_steps" and value is None:
            if group.get("warmup") == 1:  # all steps, then; one step, now
                group["warmup"] = "all steps"
            continue  # then `optimizer.warmup` held
        *groups, last = new.split(".")
        target = found
        for name in groups:
            target = target.setdefault(name, {})
        target[last] = value
    for new, (beside, value) in ADDED.items():
        *groups, last = new.split(".")
        group = _at(found, groups)
        if group is not None and beside in group:  # other groups have that name: a prompt's hashes
            group.setdefault(last, value)
    for old in REMOVED:
        *groups, last = old.split(".")
        group = _at(found, groups)
        if group is not None and last in group and _did_nothing(old, group[last]):
            del group[last]
    if found.get("student") == {}:
        del found["student"]
    return found


def _did_nothing(key: str, value: Any) -> bool:
    """Whether a removed key changed nothing of what was made with it."""
    if isinstance(value, Mapping):
        return not (value.get("weight") or value.get("final_weight"))
    if key == "eval.ece_bins":
        return bool(value == 15)
    return value is None or key in ("loss.cross_entropy.temperature", "ignore_columns")


def _at(config: dict[str, Any], groups: list[str]) -> dict[str, Any] | None:
    for name in groups:
        inner = config.get(name)
        if not isinstance(inner, dict):
            return None
        config = inner
    return config
