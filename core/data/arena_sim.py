"""A simulated chatbot arena with a known true distribution, so that the best possible log loss is known as well.

People ask for tips on an everyday topic; two simulated chatbots answer. An answer is written from four traits:

    tips    how many of its two statements are about the topic asked for (0 to 2; the others are about another topic)
    tone    warm (+1), plain (0) or rude (-1)
    hedged  whether it doubts itself
    filler  sentences that say nothing (0 or 1): they only make it longer

The utility of an answer to a simulated voter, and the vote on a pair shown as (a, b), with d = u(a) - u(b) + POSITION:

    u      = TIPS[tips] + TONE * tone - HEDGE * hedged + LENGTH * log(words)
    P(a, b, tie) = (1 - NOISE) * softmax(d / 2, -d / 2, TIE) + NOISE / 3

which is Davidson's (1970) extension of Bradley-Terry to ties, with voters who sometimes press any button. The vote of
a conversation is one draw from it. The lowest expected log loss that any judge can reach is the mean entropy of these
probabilities; `law.parquet` keeps them. Whether a statement fits the question is a relation between two texts and the
tone is spread over many phrasings, so a judge has to read: no single word gives the answer away.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
import polars as pl

from core.data.config import SimulateConfig
from core.records import Conversation

TRUE_DISTRIBUTION = "law.parquet"  # beside the conversations; the name is part of artefacts that exist
TIPS = (-0.9, 0.2, 0.9)
TONE = 2.2
HEDGE = 1.4
LENGTH = 0.3
POSITION = 0.15
TIE = -0.2
NOISE = 0.06

TOPICS: dict[str, tuple[str, ...]] = {
    "tea": ("Warm the teapot.", "Steep the leaves.", "Boil fresh water."),
    "tomatoes": ("Tie the vines up.", "Water the roots.", "Pick them ripe."),
    "guitar": ("Practise slow chords.", "Tune the strings.", "Strum every day."),
    "marathons": ("Run long miles weekly.", "Taper before the race.", "Break in your shoes."),
    "bread": ("Knead the dough.", "Let the yeast rise.", "Bake with steam."),
    "photography": ("Hold the camera still.", "Shoot at sunset.", "Clean the lens."),
    "puppies": ("Reward a good dog.", "Keep the leash loose.", "Teach it to sit."),
    "saving money": ("Write a budget.", "Pay off your debts.", "Open a savings account."),
    "sleep": ("Darken the bedroom.", "Go to bed early.", "Buy a firm pillow."),
    "novels": ("Outline the plot.", "Give the hero a flaw.", "Write a chapter a week."),
    "chess": ("Castle the king early.", "Control the centre squares.", "Guard your queen."),
    "bicycles": ("Pump up the tyres.", "Oil the chain.", "Check both brakes."),
    "Spanish": ("Drill the verbs.", "Learn ten words daily.", "Talk to native speakers."),
    "windows": ("Wipe the glass.", "Use a squeegee.", "Spray some vinegar."),
    "camping": ("Pitch the tent high.", "Pack a sleeping bag.", "Build a small campfire."),
    "rice": ("Rinse the grains.", "Keep the lid on the pot.", "Simmer it gently."),
    "speeches": ("Look at the audience.", "Pause between sentences.", "Rehearse on a stage."),
    "swimming": ("Kick from the hips.", "Breathe on both sides.", "Glide in the pool."),
    "bees": ("Check the hive.", "Leave some honey.", "Smoke calms the swarm."),
    "walls": ("Sand the plaster.", "Roll the paint on.", "Tape the edges."),
    "taps": ("Replace the washer.", "Shut off the water.", "Turn the wrench left."),
    "coffee": ("Grind the beans.", "Rinse the filter.", "Brew it strong."),
    "scarves": ("Choose soft wool.", "Knit every row.", "Count the stitches."),
    "beards": ("Trim the neckline.", "Comb the whiskers.", "Stop shaving."),
}
QUESTIONS = (
    "Any tips on {}?",
    "Help me with {}.",
    "What about {}?",
    "Tell me about {}.",
    "Advice on {}?",
    "I need help with {}.",
)
OPENINGS: dict[int, tuple[str, ...]] = {
    1: (
        "Happy to help!",
        "Great question!",
        "With pleasure.",
        "Lovely idea!",
        "Good for you!",
        "Glad you asked.",
        "Sure thing!",
        "How nice!",
    ),
    0: ("", "", "Well.", "Okay.", "Note this.", "In short.", "Right.", "So."),
    -1: (
        "Not again.",
        "Figure it out.",
        "What a dumb question.",
        "Stop bothering me.",
        "Whatever.",
        "Who cares?",
        "You will fail.",
        "Not my problem.",
    ),
}
HEDGES = ("I may be wrong.", "No idea, really.", "Only guessing.", "Do not trust me.", "Perhaps not.", "I never tried.")
FILLERS = ("Much to say here.", "Many ask this.", "It depends.", "As they say.", "Time will tell.", "That is life.")


@dataclass(frozen=True)
class Chatbot:
    """How often a simulated chatbot shows each trait."""

    name: str
    tips: tuple[float, float, float]
    tone: tuple[float, float, float]  # rude, plain, warm
    hedged: float
    filler: float


CHATBOTS = (
    Chatbot("sim-expert", (0.1, 0.3, 0.6), (0.2, 0.6, 0.2), 0.2, 0.2),
    Chatbot("sim-charmer", (0.4, 0.35, 0.25), (0.05, 0.25, 0.7), 0.3, 0.5),
    Chatbot("sim-rambler", (0.4, 0.4, 0.2), (0.2, 0.5, 0.3), 0.5, 0.8),
    Chatbot("sim-grump", (0.25, 0.35, 0.4), (0.6, 0.3, 0.1), 0.3, 0.1),
)


def simulate(config: SimulateConfig) -> tuple[list[Conversation], pl.DataFrame]:
    """Draw conversations (without folds) and the table of true distributions: id, probabilities [a, b, tie]."""
    rng = random.Random(config.seed)
    conversations, truth = [], []
    for i in range(config.conversations):
        topic = rng.choice(list(TOPICS))
        question = rng.choice(QUESTIONS).format(topic)
        bot_a, bot_b = rng.sample(CHATBOTS, 2)
        (text_a, utility_a), (text_b, utility_b) = answer(bot_a, topic, rng), answer(bot_b, topic, rng)
        probabilities = vote_probabilities(utility_a, utility_b)
        vote = rng.choices(range(3), probabilities)[0]
        conversations.append(
            Conversation(
                id=f"sim-{config.seed}-{i}",
                prompt=[question],
                response_a=[text_a],
                response_b=[text_b],
                model_a=bot_a.name,
                model_b=bot_b.name,
                votes=[float(label == vote) for label in range(3)],
                source="arena_sim",
            )
        )
        truth.append({"id": conversations[-1].id, "probabilities": probabilities})
    return conversations, pl.DataFrame(truth, schema={"id": pl.String, "probabilities": pl.Array(pl.Float64, 3)})


def answer(bot: Chatbot, topic: str, rng: random.Random) -> tuple[str, float]:
    """A text that `bot` gives to a question on `topic`, and its utility to a voter."""
    tips = rng.choices(range(3), bot.tips)[0]
    tone = rng.choices((-1, 0, 1), bot.tone)[0]
    hedged, filler = rng.random() < bot.hedged, rng.random() < bot.filler
    other = rng.choice([t for t in TOPICS if t != topic])
    body = rng.sample(TOPICS[topic], tips) + rng.sample(TOPICS[other], 2 - tips)
    body += rng.sample(HEDGES, int(hedged)) + rng.sample(FILLERS, int(filler))
    rng.shuffle(body)
    text = " ".join(part for part in (rng.choice(OPENINGS[tone]), *body) if part)
    return text, TIPS[tips] + TONE * tone - HEDGE * hedged + LENGTH * math.log(len(text.split()))


def vote_probabilities(utility_a: float, utility_b: float) -> list[float]:
    """P(a wins, b wins, tie) of one vote on a pair in which a is shown first."""
    difference = utility_a - utility_b + POSITION
    weights = np.exp([difference / 2, -difference / 2, TIE])
    return list(((1 - NOISE) * weights / weights.sum() + NOISE / 3).tolist())


def bayes_log_loss(truth: pl.DataFrame) -> float:
    """The lowest expected log loss (nats) of any judge on these rows: the mean entropy of the true distribution."""
    probabilities = truth["probabilities"].to_numpy()
    return float(-(probabilities * np.log(probabilities)).sum(1).mean())
