"""What people vote where a response is empty or both are the same: the counts behind `predict.rules`.

    python -m studies.special_rows ../shared/data/*/*.csv --scores artifacts/logits/human_teacher

Reads files as `data=human` does. Votes count as shares of a row. Where one response is empty, the figures say how often
the empty one won, the other one, and neither. With `--scores`, stores of soft logits of these rows: the judge's
log loss on such rows (mean of both orders), that of a rule made of the *other* files' votes with one vote more for each
label, and that of the rules that the contest's 4th place used.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from scipy.special import softmax

from bench.configuration import configured
from core.data.layouts import layout
from core.data.sources import open_recognised
from core.records import Conversation
from core.scoring import swap_average
from core.store.reading import read_logits
from deploy.predicting.config import RulesConfig
from deploy.predicting.unlabelled import apply_rules
from eval.metrics import log_loss_rows, shares

# Daoyuan Li's notebook for the contest; what is null there is the prior.
FOURTH_PLACE = {"identical": [0.06, 0.06, 0.88], "one_empty": [0.04, 0.88, 0.08]}
KINDS = {name: [0.5, 0.3, 0.2] for name in FOURTH_PLACE}  # any three numbers that tell first from second
Found = dict[str, list[tuple[Conversation, list[float]]]]  # kind -> rows, their vote shares with the empty one first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--scores", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    found = {file: special(file) for file in arguments.files}
    counts = {kind: {file: total(rows[kind]) for file, rows in found.items() if rows[kind]} for kind in KINDS}
    for kind, by_file in counts.items():
        for file, votes in by_file.items():
            print(f"{kind:11} {file}: {len(found[file][kind])} rows, votes {np.round(votes, 1).tolist()}")
    for store in arguments.scores:
        compare(store, found, counts)
    print(
        json.dumps(
            {kind: np.sum(list(by_file.values()), axis=0).tolist() for kind, by_file in counts.items() if by_file}
        )
    )


def special(file: str) -> Found:
    """The rows of a file that a rule could speak for, by kind."""
    found: Found = defaultdict(list)
    for conversation in voted(file):
        for kind in KINDS:
            only = RulesConfig(**{name: KINDS[name] if name == kind else None for name in KINDS})
            if (rule := apply_rules(conversation, only)) is not None:
                share = shares(np.array([conversation.votes]))[0].tolist()
                turned = list(rule) != KINDS[kind]
                found[kind].append((conversation, [share[1], share[0], share[2]] if turned else share))
    return found


def voted(file: str) -> Iterator[Conversation]:
    data = replace(configured(["data=human"]).data, files=[file])
    (source,) = open_recognised(data)
    for outcome in source.layout.read(source.rows(None), source.reading):
        if isinstance(outcome, layout.Rejected):
            print(f"{file}, row {outcome.line} is left out: {outcome.reason}")
        elif isinstance(outcome, layout.Found) and outcome.conversation.votes:
            yield outcome.conversation


def total(rows: list[tuple[Conversation, list[float]]]) -> np.ndarray:
    return np.asarray(np.sum([share for _, share in rows], axis=0))


def compare(store: Path, found: dict[str, Found], counts: dict[str, dict[str, np.ndarray]]) -> None:
    """Print the judge's log loss on special rows, that of a rule from other files, and of the 4th place's."""
    scores = read_logits(store, "score it first").filter(~pl.col("in_sample"))
    averaged, texts = swap_average(scores), dict(scores.select("id", "fingerprint").iter_rows())
    judged = dict(zip(averaged["id"], softmax(averaged["logits"].to_numpy().astype(float), axis=1), strict=True))
    for kind, (file, rows) in ((kind, item) for kind in KINDS for item in found.items()):
        known = [(c, share) for c, share in rows[kind] if texts.get(c.id) == c.sided_fingerprint()]
        if not known:
            continue
        own = log_loss_rows(np.array([judged[c.id] for c, _ in known]), np.array([c.votes for c, _ in known])).mean()
        others = sum((votes for other, votes in counts[kind].items() if other != file), np.ones(3))
        votes = np.array([share for _, share in known])
        ruled = [
            f"rule of {name} {log_loss_rows(np.tile(rule, (len(known), 1)), votes).mean():.3f}"
            for name, rule in (("other files", others / others.sum()), ("4th place", FOURTH_PLACE[kind]))
            if rule is not None
        ]
        print(f"{store.name}, {kind}, {len(known)} rows of {file}: judge {own:.3f}, {', '.join(ruled)}")


if __name__ == "__main__":
    main()
