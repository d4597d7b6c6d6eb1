"""How much there is to do: conversations, and the lengths of their prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.models.flops import Lengths
from core.prompts import PromptConfig
from core.records import ORDERS, TEST, Conversation
from distill.plan.config import PlanConfig
from students.training.config import TrainConfig

SAMPLE = 300  # conversations that are rendered to learn their lengths


@dataclass(frozen=True)
class Work:
    """Prompts of `lengths` for so many `conversations`; `source` says where the lengths are from."""

    conversations: int
    lengths: Lengths
    source: str


def work_of(plan: PlanConfig, prompt: PromptConfig, data: Path, model: Path | None) -> Work:
    """Counted and rendered where the prepared `data` and the tokenizer of the folder `model` are here, else assumed."""
    from core.artefacts.contents import MANIFEST
    from core.artefacts.manifest import read_manifest

    prepared = (data / MANIFEST).is_file()
    count = read_manifest(data, "prepare").rows["kept"] if prepared else plan.assumed.conversations
    if prepared and model is not None and (model / "tokenizer.json").is_file():
        lengths, rendered = rendered_lengths(prompt, data, model)
        return Work(count, lengths, f"the mean of {rendered} rendered conversations")
    return Work(count, Lengths.cut(plan.assumed.tokens, prompt.max_tokens), "assumed")


def computed_share(prompt: PromptConfig, data: Path, train: TrainConfig, seed: int) -> float:
    """Of the prompts of a training, the share that is computed.

    A pointwise judge reads a response once a step, however many of its conversations share it; 1 of any other judge,
    and where the data are not prepared.
    """
    from students.training.steps import plan_epoch

    rows = [c for c in pointwise_rows(prompt, data) if c.fold != TEST]
    if not rows:
        return 1.0
    numbers = prompt_numbers(rows)
    lengths = [max(sum(map(len, side)) for side in (c.response_a, c.response_b)) for c in rows]
    steps = plan_epoch(lengths, train.batch_conversations, train.length_pool_steps, seed, 0, numbers)
    return sum(len({number for i in step for number in numbers[i]}) for step in steps) / (len(ORDERS) * len(rows))


def scored_share(prompt: PromptConfig, data: Path) -> float:
    """The same of the prompts of a scoring run over all conversations, which reads each response once."""
    rows = pointwise_rows(prompt, data)
    return (
        len({number for pair in prompt_numbers(rows) for number in pair}) / (len(ORDERS) * len(rows)) if rows else 1.0
    )


def pointwise_rows(prompt: PromptConfig, data: Path) -> list[Conversation]:
    """The prepared conversations where they are here and the judge is pointwise; else none."""
    from core.artefacts.contents import MANIFEST
    from core.data.table import load_conversations

    return load_conversations(data) if prompt.pointwise and (data / MANIFEST).is_file() else []


def prompt_numbers(rows: Sequence[Conversation]) -> list[tuple[int, int]]:
    """A number of each conversation's two prompts of a pointwise judge; equal prompts have equal numbers."""
    known: dict[tuple[tuple[str, ...], ...], int] = {}

    def number(c: Conversation, response: list[str]) -> int:
        return known.setdefault((tuple(c.prompt), tuple(response)), len(known))

    return [(number(c, c.response_a), number(c, c.response_b)) for c in rows]


def rendered_lengths(prompt: PromptConfig, data: Path, model: Path) -> tuple[Lengths, int]:
    """The lengths of a sample's prompts in both orders, and how many conversations it has."""
    from core.data.table import load_conversations
    from core.prompts import Renderer

    rows = load_conversations(data)
    sample = rows[:: -(-len(rows) // SAMPLE)]
    lengths = [len(rendered.ids) for rendered in Renderer(prompt, model).render(sample)]
    mean, square = (sum(n**power for n in lengths) / len(lengths) for power in (1, 2))
    return Lengths(mean, square), len(sample)
