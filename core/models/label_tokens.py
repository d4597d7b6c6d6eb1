"""The tokens by which a language model names its verdict, and the rows of its output matrix for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from core.errors import UserError
from core.records import LABELS

if TYPE_CHECKING:
    import torch

OF_ONE_RESPONSE = ("good", "bad")  # the verdicts on a response alone, such as yes and no
OUTPUT, OUTPUT_BIAS, EMBEDDINGS = "lm_head.weight", "lm_head.bias", "model.embed_tokens.weight"


def label_token_ids(labels: Sequence[str], model: Path, verdicts: Sequence[str] = LABELS) -> list[int]:
    """The token of each of the `labels`, in the order of the `verdicts` that they name.

    Raises `UserError` for a label that is more than one token, or two labels that are the same.
    """
    if len(labels) != len(verdicts):
        raise UserError(
            f"prompt.label_tokens={list(labels)}: give one text for each of {list(verdicts)}, in this order"
        )
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    pieces = [tokenizer.encode(label, add_special_tokens=False) for label in labels]
    problems = [f"{label!r} is {p.tokens}" for label, p in zip(labels, pieces, strict=True) if len(p.ids) != 1]
    if problems:
        raise UserError(
            f"prompt.label_tokens must be one token each for {model}, but {'; '.join(problems)}: "
            "choose other texts, with or without their leading space, depending on how prompt.template.verdict ends"
        )
    ids = [p.ids[0] for p in pieces]
    if len(set(ids)) != len(ids):
        raise UserError(f"prompt.label_tokens={list(labels)}: two of them are the same token of {model}")
    return ids


def output_rows(model: Path, tokens: Sequence[int]) -> "torch.Tensor":
    """fp32 [len(tokens), width]: rows of a language model's output matrix, times the factor that scales its logits.

    A score head of these rows gives the model's logits of these tokens, before Gemma-2's cap on final logits: the cap
    bends each logit (c tanh(x / c), c = 30) and is no linear layer. Raises `UserError` for a model without an output
    matrix, and for one whose outputs have a bias, which a score head has not.
    """
    import torch
    from transformers import AutoConfig

    from core.models.shards import locate, opened

    # transformers' configuration, not config.json: that leaves out what is usual in the family.
    config, sources = AutoConfig.from_pretrained(model), locate(model)
    name = OUTPUT if OUTPUT in sources else EMBEDDINGS
    if name not in sources or (name == EMBEDDINGS and not config.tie_word_embeddings):
        raise UserError(f"{model} has no output matrix ({OUTPUT}): model.head=label_tokens needs a language model")
    if OUTPUT_BIAS in sources:
        raise UserError(f"{model} has {OUTPUT_BIAS}, and a score head has no bias: use model.head=new")
    with opened(sources[name]) as file:  # a row at a time: the matrix of a 70B is two gigabytes
        matrix = file.get_slice(name)
        rows = torch.cat([matrix[token : token + 1] for token in tokens]).float()
    # Cohere's and Granite's names
    return rows * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
