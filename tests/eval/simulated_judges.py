"""Conversations whose vote law is known, and judges of them whose biases are therefore known exactly.

A `side` is 1 for a, -1 for b and 0 for neither, one for each row: the longer response, the one of a model family, the
one that refuses. People like length, too: a judge of that law must not pass for a lover of length.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from core.records import Conversation

MODELS = ("gpt-4-0613", "gpt-3.5-turbo", "claude-2.1", "llama-2-70b-chat", "mixtral-8x7b-instruct", "some-model")
PROMPTS = (
    "What is the best way to learn {}?",
    "Please write a short story about {} for my friends and tell them how it ends",
    "Comment est-ce que je peux apprendre {} dans une semaine ?",
    "请给我讲一讲{}的历史和未来",
)
LENGTH_LIKED = 0.5  # by people, in utility for each factor of e
NOISE = 0.2  # of an honest judge's logits, drawn anew for each order


@dataclass(frozen=True)
class Arena:
    """`law` and single votes drawn from it, [n, 3]; the sides of each row; which rows were `truncated`."""

    conversations: list[Conversation]
    law: np.ndarray
    sides: dict[str, np.ndarray]
    truncated: np.ndarray


def arena(rows: int, seed: int) -> Arena:
    """Conversations on about two prompts out of three, each prompt in one language; every vote is one draw."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(2 * rows // 3, size=rows)
    words = rng.geometric(1 / 40, (rows, 2))
    marks = {name: rng.poisson(0.7, (rows, 2)) for name in ("bold", "headings", "lists", "code")}
    refuses = rng.random((rows, 2)) < 0.15
    models = np.array([rng.choice(len(MODELS), 2, replace=False) for _ in range(rows)])
    texts = [
        [_response(words[i, s], {k: v[i, s] for k, v in marks.items()}, refuses[i, s]) for s in (0, 1)]
        for i in range(rows)
    ]
    lengths = np.array([[len(text) for text in pair] for pair in texts])
    quality = rng.normal(0, 1, rows) + LENGTH_LIKED * np.log(lengths[:, 0] / lengths[:, 1])
    half = 0.8 * np.tanh(quality / 2)  # so that every label keeps an eighth
    law = softmax(np.column_stack([half, -half, np.full(rows, -0.2)]), axis=1)
    rounds = 1 + prompt % 4
    conversations = [
        Conversation(
            id=f"{seed}-{i}",
            prompt=[PROMPTS[prompt[i] % 3 + (prompt[i] % 9 == 2)].format("7" * (1 + prompt[i] % 50))] * int(rounds[i]),
            response_a=[texts[i][0]],
            response_b=[texts[i][1]],
            model_a=MODELS[models[i, 0]],
            model_b=MODELS[models[i, 1]],
            votes=[float(v) for v in rng.multinomial(1, law[i])],
            group=f"prompt {prompt[i]}",
        )
        for i in range(rows)
    ]
    gpt = models < 2
    sides = {
        "longer": np.sign(lengths[:, 0] - lengths[:, 1]),
        "gpt": gpt[:, 0].astype(int) - gpt[:, 1],
        "refusing": refuses[:, 0].astype(int) - refuses[:, 1],
        **{name: np.sign(count[:, 0] - count[:, 1]) for name, count in marks.items()},
    }
    return Arena(conversations, law, sides, truncated=rng.random(rows) < 0.2)


def honest(law: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The logits of a judge that knows `law` up to noise, in both orders."""
    ab, ba = np.log(law) + np.random.default_rng([seed, 1]).normal(0, NOISE, (2, *law.shape))
    return ab, ba


def favouring(law: np.ndarray, side: np.ndarray, strength: float) -> np.ndarray:
    """The law of a judge that adds `strength` to the logit of a side."""
    extra = np.column_stack([side > 0, side < 0, np.zeros(len(side))])
    return np.asarray(softmax(np.log(law) + strength * extra, axis=1))


def granting(law: np.ndarray, side: np.ndarray, points: float) -> np.ndarray:
    """The law of a judge that moves a share of `points` from the other response to that side, and so its win rate."""
    return law + points * np.column_stack([side, -side, np.zeros(len(side))])


def showing(law: np.ndarray, seed: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """An honest judge but for `strength` more on whatever is shown first."""
    ab, ba = honest(law, seed)
    return ab + strength * np.array([1, 0, 0]), ba + strength * np.array([0, 1, 0])


def win_rates(law: np.ndarray) -> np.ndarray:
    """The chance that a wins plus half that of a tie: [n, 3] -> [n]."""
    return law[:, 0] + law[:, 2] / 2


def excess(judge: np.ndarray, law: np.ndarray, side: np.ndarray) -> float:
    """By how much the win rate of a side is higher under the law of a judge than under that of people."""
    return float(((win_rates(judge) - win_rates(law)) * side).sum() / abs(side).sum())


def expected_losses(judge: np.ndarray, law: np.ndarray) -> np.ndarray:
    """The expected log loss of each row."""
    return -(law * np.log(judge)).sum(axis=1)


def _response(words: int, marks: dict[str, int], refuses: bool) -> str:
    parts = ["I'm sorry, I cannot help."] if refuses else []
    parts += [" ".join(["word"] * words)]
    parts += ["**strong**"] * marks["bold"] + ["# Title"] * marks["headings"] + ["- item"] * marks["lists"]
    return "\n".join(parts + ["```\npass\n```"] * marks["code"])
