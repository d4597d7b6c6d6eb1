"""The order in which judges are shown: from what knows nothing to what knows most."""

from collections.abc import Iterable, Mapping

from eval.comparison import JudgeFigures
from students.export.formats import FORMATS

LADDER = {  # further judges come before the teacher
    "prior": "vote frequencies alone",
    "surface": "length and layout of the responses",
    "bradley_terry": "who wrote the responses, unread",
    "student_no_teacher": "the student, trained on votes alone",
    "student": "trained on votes and the teacher",
    **{f"student_{row.name}": row.label for row in FORMATS.values()},
    "teacher": "the large judge",
    "bayes": "the best that any judge can do here",
}
UNREAD = ("prior", "surface", "bradley_terry", "bayes")  # judges that read no response, or all votes


def ordered(judges: Iterable[str]) -> list[str]:
    """Judges as in `LADDER`, those that are not in it before the teacher, the teachers of its mixture among them."""
    places = {judge: i for i, judge in enumerate(LADDER)}
    return sorted(judges, key=lambda judge: places.get(judge, places["teacher"] - 0.5))


def unconvincing(judges: Mapping[str, JudgeFigures]) -> list[str]:
    """Judges that read the responses and do not measurably beat the one that knows their surface features alone."""
    return [judge for judge in ordered(judges) if judge not in UNREAD and judges[judge].beats_surface is False]
