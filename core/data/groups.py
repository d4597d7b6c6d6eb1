"""Prompt groups: conversations whose first prompts are the same or nearly, which never sit in different folds."""

import hashlib
import unicodedata
from collections import defaultdict

import polars as pl

from core.data.near_duplicates import first_of_each


def group_of(prompt: str) -> str:
    """16 hex digits of sha256 of a first prompt, the same whatever its case, spacing and Unicode form."""
    return hashlib.sha256(_normal(prompt).encode()).hexdigest()[:16]


def assign_groups(conversations: pl.DataFrame, near_duplicates: float | None) -> pl.DataFrame:
    """The table with `group` set: `group_of` the first prompt, of its near-duplicates the smallest.

    `near_duplicates`: the Jaccard similarity from which first prompts are joined, None: only equal ones are. Neither
    the order of rows nor the machine matters.
    """
    prompts = conversations["prompt"].list.first().to_list()
    own = [group_of(prompt) for prompt in prompts]
    group = dict(zip(own, own, strict=True))
    if near_duplicates is not None:
        texts = dict(sorted(zip(own, map(_normal, prompts), strict=True)))
        hashes = list(texts)
        group = {h: hashes[i] for h, i in zip(hashes, first_of_each([*texts.values()], near_duplicates), strict=True)}
    return conversations.with_columns(group=pl.Series([group[h] for h in own], dtype=pl.String))


def joined_prompts(conversations: pl.DataFrame) -> list[list[str]]:
    """The first prompts of each group that joins several, one of each `group_of`; the largest group first."""
    prompts: dict[str, dict[str, str]] = defaultdict(dict)
    for group, prompt in zip(conversations["group"], conversations["prompt"].list.first(), strict=True):
        prompts[group].setdefault(group_of(prompt), prompt)
    return sorted(
        (list(different.values()) for different in prompts.values() if len(different) > 1), key=len, reverse=True
    )


def _normal(prompt: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())
