"""How much there is to do: conversations, and the lengths of their prompts."""

from dataclasses import dataclass
from pathlib import Path

from core.models.flops import Lengths
from core.prompts import PromptConfig
from distill.plan.config import PlanConfig

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


def rendered_lengths(prompt: PromptConfig, data: Path, model: Path) -> tuple[Lengths, int]:
    """The lengths of a sample's prompts in both orders, and how many conversations it has."""
    from core.data.table import load_conversations
    from core.prompts import Renderer

    rows = load_conversations(data)
    sample = rows[:: -(-len(rows) // SAMPLE)]
    lengths = [len(rendered.ids) for rendered in Renderer(prompt, model).render(sample)]
    mean, square = (sum(n**power for n in lengths) / len(lengths) for power in (1, 2))
    return Lengths(mean, square), len(sample)
