r"""How a judge ranks the responses to each prompt, beside its teacher: Kendall's tau within prompts.

    python -m proof.rankings --data artifacts/data/alpaca_eval --logits artifacts/logits/gpt4_turbo \
        artifacts/eval/proof_gpt4

Each folder is an evaluation, whose judges are shown side by side, the ratings of model names (`bradley_terry`) among
them. A response's place is the mean log-odds of a judge for it, over all pairs that it is in. Intervals are 95%, over
prompts. The last line is JSON.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from scipy.stats import kendalltau

from core.data.table import load_conversations
from core.records import Conversation
from core.scoring import swap_average
from core.store.reading import read_logits
from core.tables import read_parquet
from eval.intervals import LEVEL, Estimate, Jackknife

FEWEST = 3  # responses to a prompt that counts: of two, tau is 1 or -1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", type=Path, nargs="+", help="folders that python -m eval wrote")
    parser.add_argument("--data", type=Path, required=True, help="prepared conversations")
    parser.add_argument("--logits", type=Path, required=True, help="the store of the teacher to be compared with")
    told = parser.parse_args()
    conversations = load_conversations(told.data)
    teacher = places(swap_average(read_logits(told.logits, "make teacher-logits")), conversations)
    found = {}
    for folder in told.evaluations:
        for (judge,), rows in read_parquet(folder / "predictions.parquet").group_by("judge", maintain_order=True):
            tau = agreement(places(swap_average(rows), conversations), teacher)
            found[f"{folder.name} {judge}"] = {"tau": tau.value, "ci": tau.interval(LEVEL), "prompts": tau.count}
            print(
                f"{folder.name} {judge}: {tau.value:.3f} ({' to '.join(f'{end:.3f}' for end in tau.interval(LEVEL))})"
            )
    print(json.dumps(found))


def places(averaged: pl.DataFrame, conversations: Sequence[Conversation]) -> dict[str, dict[str, float]]:
    """Prompt -> response -> mean log-odds for it against the others, from `id` and `logits` (means over orders)."""
    said = dict(averaged.select("id", "logits").iter_rows())
    found: dict[str, dict[str, list[float]]] = {}
    for c in conversations:
        if c.id not in said:
            continue
        gap = said[c.id][0] - said[c.id][1]
        of_prompt = found.setdefault("\n\n".join(c.prompt), {})
        for response, lead in ((c.response_a, gap), (c.response_b, -gap)):
            of_prompt.setdefault("\n\n".join(response), []).append(lead)
    return {p: {response: float(np.mean(leads)) for response, leads in of.items()} for p, of in found.items()}


def agreement(judge: Mapping[str, Mapping[str, float]], teacher: Mapping[str, Mapping[str, float]]) -> Estimate:
    """The mean over prompts of Kendall's tau-b between two judges' places of the same responses; 0 of equal ones."""
    taus = []
    for prompt, of in judge.items():
        if len(of) >= FEWEST:
            tau = kendalltau([*of.values()], [teacher[prompt][response] for response in of]).statistic
            taus.append(0.0 if np.isnan(tau) else float(tau))
    return Jackknife([str(i) for i in range(len(taus))]).whole(np.array(taus))


if __name__ == "__main__":
    main()
