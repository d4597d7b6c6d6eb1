"""All judges of an evaluation, each with its answers to the same conversations.

Which artefacts may judge is known before any is asked (`eval.judges.candidates`), and what a model answered is kept
(`eval.judges.predictions`): an evaluation that was killed resumes, and one that a judge is added to asks no other
again.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from core.labels import Labels
from core.records import LABELS, Conversation
from eval.judges.answers import Answers, Engines, Unanswered, Unfit, ask
from eval.judges.baselines import prior, surface
from eval.judges.bradley_terry import bradley_terry
from eval.judges.candidates import STUDENT, Candidate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Panel:
    """Judges' answers by name; `unanswered`: why an export that is not among them gave no answer here, by name.

    `labels`: what people could vote for.
    """

    answers: Mapping[str, Answers]
    unanswered: Mapping[str, str] = field(default_factory=dict)
    labels: Labels = LABELS


def ask_all(
    found: Sequence[Candidate],
    scored: Sequence[Conversation],
    training: Sequence[Conversation],
    engines: Engines,
    labels: Labels = LABELS,
) -> Panel:
    """The baselines, where they have votes to learn from, and every candidate that is fit.

    Raises `UserError` where the student is not, or a named one.
    """
    baselines = {}
    if any(c.votes for c in training):
        baselines = {"prior": prior(training, scored, labels), "surface": surface(training, scored, labels)}
        if any(c.model_a and c.model_b for c in scored):
            baselines["bradley_terry"] = bradley_terry(training, scored, labels)
    else:
        log.warning("no baselines: none of the %d other conversations has an opinion to learn from", len(training))
    found_answers, unanswered = ask_each(found, scored, engines, labels)
    answers = {name: Answers(scores, taught=0) for name, scores in baselines.items()} | found_answers
    return Panel(answers, unanswered, labels)


def ask_each(
    found: Sequence[Candidate], scored: Sequence[Conversation], engines: Engines, labels: Labels
) -> tuple[dict[str, Answers], dict[str, str]]:
    """The answers of every candidate that is fit, and why exports gave none on this machine, both by name.

    Raises `UserError` where the student is not fit, or a named one.
    """
    answers, unanswered = dict[str, Answers](), dict[str, str]()
    for candidate in found:
        try:
            answers[candidate.name] = ask(candidate, scored, engines, labels)
        except Unfit as reason:
            if candidate.named or candidate.name == STUDENT:
                raise
            if isinstance(reason, Unanswered):
                unanswered[candidate.name] = str(reason)
            log.warning("%s left out: %s", candidate.name, reason)
    return answers, unanswered
