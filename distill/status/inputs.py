"""The prepared conversations, and the teacher's logits for them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from core.artefacts.contents import MANIFEST, content_hash
from core.artefacts.manifest import GLANCE, Manifest, read_manifest
from core.artefacts.state import State, changed_since, listed, state_in, state_of
from core.data.config import DataConfig
from core.errors import UserError
from core.locks import lock_of
from distill.artefacts import conversations, data_folder, evaluation_folder
from distill.config import Config
from distill.logits import (
    calibrated_logits,
    chat_folder,
    chat_logits,
    given_folder,
    judged_logits,
    logits_folder,
    mixed_folders,
    mixed_logits,
    reward_logits,
    rewards_folder,
    stored_logits,
    teacher_folders,
)
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
    if problem and state.name == "done":
        state = replace(state, name="stale", reason=" ".join(problem.split()), unsure=True)
    said = figures.figure(figures.of_data, folder, state.manifest)
    return Stage(f"data {config.data.name}", folder, state, said, ["distill.prepare"])


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
    """The row of the teacher's logits, after those that a mixture is made of, and that of the scaled ones."""
    yield from given_stages(config)
    if config.teacher.name is not None and config.teacher.temperature_scaling:
        state = state_of(calibrated_logits(config))
        yield logits_row(config, f"{config.teacher.name}, calibrated", logits_folder(config), state)


def given_stages(config: Config) -> Iterator[Stage]:
    """The same without the scaled ones."""
    if config.teacher.name is None:
        reason = "teacher.name=null: name the teacher, or train on votes with loss=votes"
        yield Stage("teacher's logits", None, State("missing", reason), command=["distill.teacher"])
        return
    store = given_folder(config)
    if config.teacher.kind == "mixture":
        own = ["teacher.rows=in_fold"] if config.teacher.rows == "in_fold" else []
        for name, folder in mixed_folders(config).items():
            state = state_in(folder, "teacher", lambda found: changed_since(found, config.root))
            yield logits_row(config, name, folder, state, own, experiment=f"+exp={name}")
        yield logits_row(config, config.teacher.name, store, state_of(mixed_logits(config)))
        return
    if config.teacher.kind == "stored":
        yield logits_row(config, config.teacher.name, store, stored_state(config, store))
        return
    if config.teacher.kind == "chat":
        yield logits_row(config, config.teacher.name, store, chat_state(config, store))
        return
    if config.teacher.kind == "reward":
        scored = rewards_folder(config)
        artefact = reward_logits(config, content_hash(scored) if scored.is_dir() else "")
        judges = ready_made(config, scored)
    else:
        scored = store
        judges = fold_judges(config) if config.teacher.kind == "folds" else ready_made(config, store)
        artefact = judged_logits(config, judges)
    state = state_of(artefact, [lock for folder in {scored, store} for lock in folder.glob(".lock-*")])
    other = ""
    if state.name != "running":
        try:
            other = refusal(config, scored, judges)
            state = replace(state, name="stale", reason=other) if other else limited(config, state)
        except UserError as error:
            state = replace(state, name="stale", reason=str(error))
    yield logits_row(config, config.teacher.name, store, state, ["overwrite=true"] if other else [])


def stored_state(config: Config, store: Path) -> State:
    """How the logits of stored opinions stand."""
    from core.data.sources import scores_are_log_odds
    from teachers.stored.opinions import source_of

    try:
        told = source_of(config.teacher.of_stored, scores_are_log_odds(data_folder(config)))[1]
        return state_of(stored_logits(config, told))
    except UserError as error:
        return state_in(store, "teacher", lambda _, why=str(error): why)  # type: ignore[misc]


def chat_state(config: Config, store: Path) -> State:
    """How the logits of a chat API's answers stand; interrupted where only the journal of these is there."""
    from teachers.chat.journal import answers_in
    from teachers.chat.prompts import questions, renderer_of

    try:
        artefact = chat_logits(
            config, questions(config.teacher.of_chat, renderer_of(config.teacher.of_chat, config.prompt))
        )
    except UserError as error:
        return state_in(store, "teacher", lambda _, why=str(error): why)  # type: ignore[misc]
    state = limited(config, state_of(artefact, [lock_of(chat_folder(config))]))
    answered = answers_in(chat_folder(config))
    if state.name == "missing" and answered:
        return replace(state, name="interrupted", reason=f"{answered:,} answers are there")
    return state


def fold_judges(config: Config) -> dict[int, str]:
    """The content hash of each trained teacher, by its fold; "" of one that is not finished, or damaged."""
    found = {}
    for fold, folder in zip(config.teacher.folds, teacher_folders(config), strict=True):
        manifest = finished(folder)
        found[fold] = manifest.content if manifest else ""
    return found


def ready_made(config: Config, scored: Path) -> dict[int, str]:
    """The hash of the one model that scores, where it is on this machine; else of the one whose scores are there."""
    from core.models.folders import model_hash
    from core.models.shapes import folder_of
    from core.store.parts import NO_FOLD, list_parts

    folder = folder_of(config.teacher.model, config.root) if config.teacher.model else None
    if folder is not None:
        return {NO_FOLD: model_hash(folder)}
    with suppress(UserError):
        return {NO_FOLD: next((part.origin.judge for part in list_parts(scored)), "")}
    return {NO_FOLD: ""}


def refusal(config: Config, scored: Path, judges: Mapping[int, str]) -> str:
    """Why the stage would refuse to add to the rows that are `scored`: they are of another kind, or of other judges.

    Raises `UserError` for parts that are damaged.
    """
    from core.store.parts import list_parts
    from teachers.scoring_run import store_identity

    if not (parts := list_parts(scored)):
        return ""
    tokens = config.prompt.label_tokens if config.teacher.method == "label_tokens" else None
    now = store_identity(prompt_of(config), config.scorers.teacher.precision, tokens)
    for origin in (part.origin for part in parts):
        same = {} if now["prompt"] else {"prompt": origin.identity.get("prompt", "")}  # it cannot be told here
        judge = judges.get(origin.writer) or origin.judge
        if differences := origin.differences(replace(origin, identity={**now, **same}, judge=judge)):
            return listed(differences)
    return ""


def limited(config: Config, state: State) -> State:
    """The state of a finished store, interrupted where a limit left out what is asked for now."""
    limit = state.manifest.extra.get(LIMIT) if state.manifest and state.name == "done" else None
    if limit is None or (config.limit is not None and config.limit <= limit):
        return state
    return replace(state, name="interrupted", reason=f"only the first {limit:,} conversations were asked for")


def prompt_of(config: Config) -> str:
    """The hash of the prompts that would be scored now; "" where that cannot be told on this machine, or quickly."""
    if config.teacher.kind == "folds":
        prompts = [manifest.prompt.get("prompt", "") for f in teacher_folders(config) if (manifest := finished(f))]
        return prompts[0] if prompts else ""
    from core.models.shapes import folder_of
    from core.prompts import Renderer

    folder = folder_of(config.teacher.model, config.root) if config.teacher.model else None
    if config.teacher.kind == "reward" or folder is None or not (folder / "tokenizer.json").is_file():
        return ""
    return Renderer(config.prompt, folder).hashes["prompt"]


def finished(folder: Path) -> Manifest | None:
    """The manifest in a folder; None where there is none, or a damaged one, which the row of its own tells."""
    with suppress(UserError):
        return read_manifest(folder, verify=False)
    return None


def logits_row(
    config: Config, name: str, store: Path, state: State, own: Sequence[str] = (), experiment: str | None = None
) -> Stage:
    """The row of a store of logits."""
    if state.manifest is not None:
        said = f"{state.manifest.rows.get('logits', 0):,} rows"
        said += figures.teachers_log_loss(evaluation_folder(config)) if state.name == "done" else ""
    else:
        said = "" if state.name == "missing" else rows_so_far(config, store)
    return Stage(f"logits of {name}", store, state, said, ["distill.teacher", *own], experiment)


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
