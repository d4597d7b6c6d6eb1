"""The prepared conversations, and the teacher's logits for them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from core.artefacts.contents import MANIFEST, content_hash
from core.artefacts.manifest import GLANCE, read_manifest
from core.artefacts.state import State, changed_since, state_in, state_of
from core.data.config import DataConfig
from core.errors import UserError
from distill.artefacts import (
    conversations,
    data_folder,
    evaluation_folder,
    judged_logits,
    logits_folder,
    mixed_folders,
    mixed_logits,
    reward_logits,
    rewards_folder,
    teacher_folders,
)
from distill.config import Config
from distill.status import figures
from distill.status.stage import Stage

LIMIT = "limit"  # `teachers.judgements` notes it in a manifest's `extra`


def data_stage(config: Config) -> Stage:
    """The row of the conversations. Of large files and the hub's, only what the file system says is compared."""
    folder = data_folder(config)
    inputs, problem = {}, ""
    if (folder / MANIFEST).exists():
        try:
            inputs = read_manifest(folder, verify=False).config.get("inputs", {})  # stays so where they cannot be read
            inputs, problem = inputs_of(config.data, inputs, (folder / MANIFEST).stat().st_mtime)
        except UserError as error:
            problem = str(error)
    state = state_of(conversations(config, inputs))
    unsure = bool(problem) and state.name == "done"
    if unsure:
        state = replace(state, name="stale", reason=" ".join(problem.split()))
    said = figures.figure(figures.of_data, folder, state.manifest)
    return Stage(f"data {config.data.name}", folder, state, said, ["distill.prepare"], unsure=unsure)


def inputs_of(data: DataConfig, made_of: dict[str, object], made: float) -> tuple[dict[str, object], str]:
    """(what identifies each source, what is wrong with them): read anew where they are small, else as data that were
    `made_of` these at a moment noted them.

    Raises `UserError` for files that `distill.prepare` would refuse.
    """
    from core.data.files import opening
    from core.data.sources import open_recognised

    opening.check_origin(data)
    if data.simulate is not None:
        return {}, ""
    files = [path for path in opening.input_files(data) if path.is_file()]
    if data.hub is not None and not files:
        return made_of, ""
    stats = {path: path.stat() for path in files}
    if sum(stat.st_size for stat in stats.values()) <= GLANCE:
        return {source.name: source.identity for source in open_recognised(data)}, ""
    newer = [path for path, stat in stats.items() if max(stat.st_mtime, stat.st_ctime) > made]
    if newer or len(files) != len(made_of):
        return made_of, f"{(newer or files)[0]} may have changed since, and is too large to be compared here"
    return made_of, ""


def logits_stages(config: Config) -> Iterator[Stage]:
    """The row of the teacher's logits, after those that a mixture is made of."""
    if config.teacher.name is None:
        reason = "teacher.name=null: name the teacher, or train on votes with loss=votes"
        yield Stage("teacher's logits", None, State("missing", reason), command=["distill.teacher"])
        return
    store = logits_folder(config)
    if config.teacher.kind == "mixture":
        for name, folder in mixed_folders(config).items():
            state = state_in(folder, "teacher", lambda found: changed_since(found, config.root))
            yield logits_row(config, name, folder, state, experiment=f"+exp={name}")
        yield logits_row(config, config.teacher.name, store, state_of(mixed_logits(config)))
        return
    if config.teacher.kind == "reward":
        rewards = rewards_folder(config)
        artefact = reward_logits(config, content_hash(rewards) if rewards.is_dir() else "")
        state = state_of(artefact, [*rewards.glob(".lock-*"), *store.glob(".lock-*")])
    else:
        judges = dict(zip(config.teacher.folds, map(content, teacher_folders(config)), strict=True))
        if config.teacher.kind == "model":
            judges = ready_made(config, store)
        state = state_of(judged_logits(config, judges), [*store.glob(".lock-*")])
        state = as_scored(config, store, state)
    yield logits_row(config, config.teacher.name, store, state)


def content(trained: Path) -> str:
    """The content hash of a trained teacher; "" where it is not finished."""
    return read_manifest(trained, verify=False).content if (trained / MANIFEST).exists() else ""


def ready_made(config: Config, store: Path) -> dict[int, str]:
    """The hash of the one model that scores, where it is on this machine; else the one that the store was made by."""
    from core.models.folders import model_hash
    from core.models.shapes import folder_of
    from core.store.parts import NO_FOLD

    folder = folder_of(config.teacher.model, config.root) if config.teacher.model else None
    if folder is not None:
        return {NO_FOLD: model_hash(folder)}
    noted = read_manifest(store, verify=False).config.get("judges", {}) if (store / MANIFEST).exists() else {}
    return {NO_FOLD: str(noted.get(str(NO_FOLD), ""))}


def as_scored(config: Config, store: Path, state: State) -> State:
    """The state of a scored store, by what its parts say: stale where the stage would refuse to add to them."""
    if state.manifest is None:
        return state
    limit = state.manifest.extra.get(LIMIT)
    if state.name == "done" and limit is not None and (config.limit is None or config.limit > limit):
        return replace(state, name="interrupted", reason=f"only the first {limit:,} conversations were asked for")
    if state.name != "done":
        return state
    from core.store.parts import list_parts

    asked = config.scorers.teacher.precision
    now = {"method": config.teacher.method, "dtype": asked.dtype, "quantization": asked.quantization}
    now |= prompt_of(config)
    try:
        for part in list_parts(store)[:1]:
            there = part.origin.identity
            if differing := [key for key, value in now.items() if there.get(key) != value]:
                key = differing[0]
                return replace(state, name="stale", reason=f"{key}: there {there.get(key)!r}, now {now[key]!r}")
    except UserError as error:
        return replace(state, name="stale", reason=str(error))
    return state


def prompt_of(config: Config) -> dict[str, str]:
    """The hash of the prompts that would be scored now, where that can be told on this machine."""
    if config.teacher.kind == "folds":
        trained = [folder for folder in teacher_folders(config) if (folder / MANIFEST).exists()]
        prompts = [read_manifest(folder, verify=False).prompt.get("prompt", "") for folder in trained]
        return {"prompt": prompts[0]} if prompts else {}
    from core.models.shapes import folder_of
    from core.prompts import Renderer

    folder = folder_of(config.teacher.model, config.root) if config.teacher.model else None
    if folder is None or not (folder / "tokenizer.json").is_file():
        return {}
    return {"prompt": Renderer(config.prompt, folder).hashes["prompt"]}


def logits_row(config: Config, name: str, store: Path, state: State, experiment: str | None = None) -> Stage:
    """The row of a store of logits."""
    if state.manifest is not None:
        said = f"{state.manifest.rows.get('logits', 0):,} rows"
        said += figures.teachers_log_loss(evaluation_folder(config)) if state.name == "done" else ""
    else:
        said = "" if state.name == "missing" else rows_so_far(config, store)
    return Stage(f"logits of {name}", store, state, said, ["distill.teacher"], experiment)


def rows_so_far(config: Config, store: Path) -> str:
    """How many rows a store has, of about how many: both orders of each conversation, in-fold by each teacher."""
    from core.records import ORDERS
    from core.store.parts import list_parts

    data = data_folder(config)
    try:
        there = sum(part.height for part in list_parts(store))
        kept = read_manifest(data, verify=False).rows["kept"]
    except (UserError, KeyError):
        return ""
    judges = len(config.teacher.folds) if config.teacher.kind == "folds" and config.teacher.rows == "in_fold" else 1
    return f"{there:,} of about {min(kept, config.limit or kept) * len(ORDERS) * judges:,} rows"
