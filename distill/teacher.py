"""Write a teacher's soft logits for every conversation in both orders: python -m distill.teacher +exp=demo

`teacher.kind` says who it is: fine-tuned `folds`, of which each row is scored by those that did not train on it; one
ready-made `model`; a `reward` model; a `mixture` of stored teachers; `stored` opinions of anybody; or a `chat` model
behind an API. Logits have the conversation's own a and b. The same command resumes a run that was killed, or that had
`limit=200`, which tells how long all rows would take.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill.artefacts import data_folder
from distill.config import Config
from distill.entry_point import entry_point
from distill.logits import (
    calibrated_logits,
    chat_folder,
    chat_logits,
    given_folder,
    judged_logits,
    mixed_folders,
    mixed_logits,
    reward_logits,
    rewards_folder,
    stored_logits,
)

if TYPE_CHECKING:
    from core.labels import Labels
    from core.records import Conversation

READS = "limit overwrite data.name prompt teacher scorers.teacher paths"


def main(config: Config) -> None:
    from core.data.table import load_conversations
    from core.labels import labels_in
    from core.store.parts import clear
    from teachers.calibration import tell_calibration, write_calibrated

    store, data = given_folder(config), data_folder(config)
    rows, labels = load_conversations(data), labels_in(data)
    if config.overwrite:
        clear(store)
    write = {
        "folds": from_models,
        "model": from_models,
        "reward": from_rewards,
        "mixture": from_teachers,
        "stored": from_stored,
        "chat": from_chat,
    }[config.teacher.kind]
    write(config, rows, labels)
    tell_calibration(store, rows, labels, config.teacher.temperature_scaling)
    if config.teacher.temperature_scaling:
        write_calibrated(calibrated_logits(config), store, rows[: config.limit], labels, config.teacher.rows)


def from_models(config: Config, rows: "Sequence[Conversation]", labels: "Labels") -> None:
    """The logits of fold teachers, or of one ready-made model."""
    from distill.teacher_models import teacher_models
    from teachers.judgements import write_judgements

    models = teacher_models(config)
    artefact = judged_logits(config, {model.fold: model.content for model in models})
    write_judgements(artefact, models, rows, labels, config.teacher, config.scorers.teacher, config.limit)


def from_rewards(config: Config, rows: "Sequence[Conversation]", labels: "Labels") -> None:
    """The rewards of single responses, then the logits that a model fitted on other folds' votes makes of them."""
    from core.artefacts.contents import content_hash
    from core.models.resolving import resolve
    from core.provenance import behind_model
    from teachers.reward_logits import RewardModel, score_responses, write_fitted

    teacher, rewards = config.teacher, rewards_folder(config)
    source = resolve(teacher.model, config.root, key="teacher.model")
    model = RewardModel.at(source, config.prompt.max_tokens, config.root / "models")
    score_responses(rewards, model, rows, teacher, config.scorers.teacher, config.limit)
    artefact = reward_logits(config, content_hash(rewards))
    told = (teacher.reward_l2, behind_model(source), model.hashes, labels)
    write_fitted(artefact, rewards, rows[: config.limit], *told)


def from_teachers(config: Config, rows: "Sequence[Conversation]", labels: "Labels") -> None:
    """The mixture of the logits of other teachers."""
    from teachers.mixtures import Mixing, write_mixture

    mixture = Mixing.of(config.teacher.mixture, config.teacher.temperature_scaling)
    artefact, folders = mixed_logits(config), mixed_folders(config)
    in_fold = config.teacher.rows == "in_fold"
    write_mixture(artefact, folders, rows[: config.limit], labels, mixture, in_fold=in_fold)


def from_stored(config: Config, rows: "Sequence[Conversation]", labels: "Labels") -> None:
    """The logits that stored opinions amount to."""
    from core.data.sources import scores_are_log_odds
    from teachers.stored.opinions import source_of, write_stored

    stored, log_odds = config.teacher.of_stored, scores_are_log_odds(data_folder(config))
    source, told = source_of(stored, log_odds)
    artefact, l2 = stored_logits(config, told), config.teacher.reward_l2
    write_stored(artefact, source, rows[: config.limit], labels, stored.learned_from, l2, log_odds)


def from_chat(config: Config, rows: "Sequence[Conversation]", labels: "Labels") -> None:
    """The logits of a chat API's answers."""
    from teachers.chat.asking import write_chat
    from teachers.chat.prompts import questions, renderer_of

    chat = config.teacher.of_chat
    renderer = renderer_of(chat, config.prompt)
    artefact = chat_logits(config, questions(chat, renderer))
    write_chat(artefact, chat_folder(config), renderer, rows, labels, chat, config.limit, config.overwrite)


if __name__ == "__main__":
    entry_point(main, READS, libraries=True)()
