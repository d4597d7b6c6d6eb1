r"""What several judges say together: the mean of their probabilities, on the rows that an evaluation scored.

    python -m proof.mixture --data artifacts/data/human artifacts/eval/proof_human surface student two_stage

Printed are the log loss of each and of the mixture on the votes, with 95% intervals over prompts, by how much the
mixture is better than each, paired, and the log losses by source. `--without` leaves out rows whose first prompt is in
other prepared conversations, from which one of the judges has learned something; with `--teacher` its verdict is what
they are measured by, as with `eval.truth=teacher`. The last line is JSON.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from core.data.table import load_conversations
from core.labels import among, labels_in
from core.scoring import logits_by_order
from core.tables import read_parquet
from eval.bootstrap import Resampling
from eval.means import Difference, Means
from eval.metrics import log_loss_rows, predict
from eval.scored import as_voted_by

MIXTURE = "mixture"
RESAMPLING = Resampling(draws=1000, seed=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path, help="a folder that python -m eval wrote")
    parser.add_argument("judges", nargs="+", help="which of its judges are mixed")
    parser.add_argument("--data", type=Path, required=True, help="prepared conversations, with votes")
    parser.add_argument("--without", type=Path, help="prepared conversations whose prompts do not count")
    parser.add_argument("--teacher", type=Path, help="the store of a teacher whose verdict stands for votes")
    told = parser.parse_args()
    kept = read_parquet(told.evaluation / "predictions.parquet").partition_by("judge", as_dict=True)
    if missing := [judge for judge in told.judges if (judge,) not in kept]:
        parser.error(f"{told.evaluation} has no {', '.join(missing)}, only {', '.join(str(name) for (name,) in kept)}")
    judged, labels = {*kept[told.judges[0],]["id"]}, labels_in(told.data)
    seen = {c.prompt[0] for c in load_conversations(told.without)} if told.without else set()
    rows = [c for c in load_conversations(told.data) if c.id in judged and c.votes and c.prompt[0] not in seen]
    print(f"{len(rows)} of {len(judged)} rows, {len({c.group for c in rows})} prompts")
    if told.teacher is not None:
        rows, _ = as_voted_by(told.teacher, rows, [], labels)
    votes = among(np.array([c.votes for c in rows], float), labels)
    said = {judge: predict(*logits_by_order(kept[judge,], [c.id for c in rows], labels)) for judge in told.judges}
    report(said, votes, [c.group for c in rows], [c.source for c in rows])


def report(said: Mapping[str, np.ndarray], votes: np.ndarray, groups: Sequence[str], sources: Sequence[str]) -> None:
    """Print it all, from probabilities and votes, each [n, labels]."""
    losses = {judge: log_loss_rows(of, votes) for judge, of in with_mixture(said).items()}
    means, found = Means(losses, groups, RESAMPLING), {}
    for judge in losses:
        figures, gain = means.figures({"log_loss": judge}), Difference.of(means.difference(judge, MIXTURE))
        by_source = {s: float(losses[judge][np.array(sources) == s].mean()) for s in sorted({*sources})}
        found[judge] = {**figures, "mixture_gains": gain.difference, "ci": gain.ci, "by_source": by_source}
        low, high = figures["log_loss_ci"]
        told = f"{judge}: {figures['log_loss']:.4f} ({low:.4f} to {high:.4f})"
        better = f"; the mixture is better by {gain.difference:+.4f} ({gain.ci[0]:+.4f} to {gain.ci[1]:+.4f})"
        print(told + (better if judge != MIXTURE else ""))
        print("    " + ", ".join(f"{source} {loss:.4f}" for source, loss in by_source.items()))
    print(json.dumps(found))


def with_mixture(said: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The judges and the mean of their probabilities."""
    return {**said, MIXTURE: np.mean([*said.values()], axis=0)}


if __name__ == "__main__":
    main()
