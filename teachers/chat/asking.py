"""A chat API as a teacher: both orders of each conversation are asked, and every answer is kept as it comes.

The journal (`chat/<teacher>/answers.jsonl`) is what a run goes on from; the store of logits follows from it.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.artefacts.building import Artefact
from core.artefacts.contents import MANIFEST
from core.artefacts.manifest import read_manifest
from core.errors import UserError
from core.labels import Labels
from core.provenance import Learned
from core.records import ORDERS, Conversation
from core.scoring import to_own_order
from core.store.parts import NO_FOLD
from core.store.rows import LOGITS
from teachers.chat.answers import Answer
from teachers.chat.client import ChatClient
from teachers.chat.journal import Journal, Key
from teachers.chat.prompts import ChatPrompt, ChatRenderer, questions
from teachers.config import ChatConfig
from teachers.derived import write_derived
from teachers.judgements import LIMIT
from teachers.scoring_run import ScoringRun, scoring_run

log = logging.getLogger(__name__)
NAMED = 3  # how many offending rows a message names
TOKENS_A_CHARACTER = 1.0  # until an answer tells: hardly any text has more
MARGIN = 1.25  # over the most that was seen
LOOKED_AT = 50  # answers, after which refusals are counted
AROUND_MESSAGES = 64  # tokens of a chat format


def write_chat(
    artefact: Artefact,
    folder: Path,
    renderer: ChatRenderer,
    rows: Sequence[Conversation],
    labels: Labels,
    config: ChatConfig,
    limit: int | None,
    overwrite: bool,
) -> None:
    """Ask about `rows`, of `limit` the first so many, and write the answers' logits; people voted for `labels`.

    The answers lie in the journal of `folder`. Raises `UserError` when the budget is spent, or verdicts are lacking.
    """
    client, prices = ChatClient.of(config, renderer.labels), prices_of(config)
    with Journal.open(folder, questions(config, renderer), prices, overwrite) as journal:
        wanted = {c.id: c.sided_fingerprint() for c in rows[:limit]}
        keys: list[Key] = [(name, order, text) for name, text in wanted.items() for order in ORDERS]
        todo = sum(key not in journal.answers for key in keys)
        with scoring_run(folder, todo, 1, everything=None if limit is None else len(rows) * len(ORDERS)) as run:
            if todo:
                prompts = renderer.render(c for c in rows[:limit])
                unanswered = (p for p in prompts if (p.id, p.order, wanted[p.id]) not in journal.answers)
                ask(client, unanswered, wanted, journal, run)
        check_refused(keys, journal, config.max_refused)
        lacking = sum(key not in journal.answers for key in keys)
        if lacking:
            raise UserError(
                f"teacher.chat.budget={config.budget:g}: {journal.spent:.4g} are spent, and {len(keys) - lacking:,} of "
                f"{len(keys):,} rows are answered; raise it and rerun the same command, which asks for the rest"
            )
        write_answers(artefact, journal, renderer, rows, labels)


def prices_of(config: ChatConfig) -> tuple[float, float]:
    """Of a million tokens of prompts and of answers. Raises `UserError` for a budget without them."""
    if config.budget is not None and (config.price_input is None or config.price_output is None):
        raise UserError(
            f"teacher.chat.budget={config.budget:g}: give teacher.chat.price_input and price_output, the prices of a "
            "million tokens, so that it can be kept"
        )
    return config.price_input or 0.0, config.price_output or 0.0


def ask(
    client: ChatClient, prompts: Iterator[ChatPrompt], texts: Mapping[str, int], journal: Journal, run: ScoringRun
) -> None:
    """Ask with `prompts` for as long as the budget allows, and keep each answer; `texts`: fingerprints by id.

    What is in flight is reserved at the most that it may cost, so the budget holds whatever comes back. Where that
    leaves no room, what has come back may: it is asked on until not even one more fits.
    """
    config, before, began = client.config, journal.spent, time.perf_counter()
    priced = config.price_input is not None or config.price_output is not None
    reserved: dict[tuple[str, str], float] = {}
    rate = 0.0  # tokens a character, the most of the answers so far
    count = 0
    left: list[ChatPrompt] = []  # the one that did not fit

    def most(prompt: ChatPrompt) -> float:
        tokens = prompt.characters * (MARGIN * rate or TOKENS_A_CHARACTER) + AROUND_MESSAGES
        return max(1, config.samples) * journal.cost(tokens, config.max_tokens)

    def within_budget() -> Iterator[ChatPrompt]:
        for prompt in chain([*left], prompts):
            left.clear()
            if run.interrupt.asked:
                return
            reserve = most(prompt)
            if config.budget is not None and journal.spent + sum(reserved.values()) + reserve > config.budget:
                left.append(prompt)
                return
            reserved[prompt.id, prompt.order] = reserve
            yield prompt

    more = True
    while more:
        more = False
        for prompt, answer in client.answers(within_budget()):
            del reserved[prompt.id, prompt.order]
            journal.add((prompt.id, prompt.order, texts[prompt.id]), answer)
            check_counted(answer, config)
            rate = max(rate, answer.prompt_tokens / (max(1, config.samples) * max(1, prompt.characters)))
            count += 1
            run.progress.spent = journal.spent - before if priced else None
            run.progress.advance(answer.prompt_tokens, 0, time.perf_counter() - began)
            more = bool(left)
            if count % LOOKED_AT == 0:  # before much is paid for nothing
                check_refused([*journal.answers], journal, config.max_refused, tell=False)
    run.progress.running(time.perf_counter() - began)


def check_counted(answer: Answer, config: ChatConfig) -> None:
    """Raise `UserError` where a budget cannot be kept, since an answer does not say what it cost."""
    if config.budget is not None and not answer.prompt_tokens and not answer.refused:
        raise UserError(
            f"teacher.chat.budget={config.budget:g} cannot be kept: {config.url} does not say how many tokens an "
            "answer took (usage.prompt_tokens); set a limit there, and teacher.chat.budget=null"
        )


def check_refused(keys: Sequence[Key], journal: Journal, most: float, tell: bool = True) -> None:
    """Tell of answers without a verdict. Raises `UserError` where they are a larger share than `most`."""
    found = {key: journal.answers[key] for key in keys if key in journal.answers}
    refused = {key: answer.refused for key, answer in found.items() if answer.refused}
    if not refused:
        return
    told = ", ".join(f"{why}: {count}" for why, count in Counter(refused.values()).most_common())
    named = [key[0] for key in refused][:NAMED]
    said = f"{len(refused):,} of {len(found):,} answers hold no verdict ({told}), such as of {named}"
    if len(refused) > most * len(found):
        raise UserError(
            f"{said}; teacher.chat.max_refused={most:g}: look at {journal.path}, and change teacher.chat.template or "
            "the model, or raise it; what was paid for stays"
        )
    if tell:
        log.warning("%s: they count as undecided, and all their mass is outside the labels", said)


def write_answers(
    artefact: Artefact, journal: Journal, renderer: ChatRenderer, rows: Sequence[Conversation], labels: Labels
) -> None:
    """The store of the conversations whose answers are there, in place of one that has fewer."""
    texts = {c.id: c.sided_fingerprint() for c in rows}
    answered = [name for name, text in texts.items() if all((name, o, text) in journal.answers for o in ORDERS)]
    count = len(answered) * len(ORDERS)
    if artefact.is_finished() and read_manifest(artefact.folder).rows["logits"] == count:
        log.info("%s is finished", artefact.folder)
        return
    (artefact.folder / MANIFEST).unlink(missing_ok=True)
    answers = [(name, order, journal.answers[name, order, texts[name]]) for name in answered for order in ORDERS]
    table = pl.DataFrame([row(*each, texts[each[0]]) for each in answers], schema=LOGITS)
    unlisted = sum(answer.unlisted > 0 for *_, answer in answers)
    if unlisted:
        log.info("%d of %d answers lack a label among the alternatives: it has what these leave", unlisted, count)
    extra: dict[str, Any] = {"model": journal.model, "unlisted": unlisted}
    extra |= {} if len(answered) == len(rows) else {LIMIT: len(answered)}
    hashes = {"template": renderer.hash, "prompt": renderer.hash}
    judge = str(journal.model)
    write_derived(artefact, table, {NO_FOLD: Learned()}, hashes, judge, labels, extra, label_tokens=renderer.labels)
    log.info("%s; spent on it so far: %.4g", told_outside(table), journal.spent)


def row(name: str, order: Any, answer: Answer, text: int) -> dict[str, Any]:
    """A row of the store."""
    return {
        "id": name,
        "order": order,
        "logits": to_own_order(np.array(answer.log_probabilities, np.float32), order),
        "prompt_tokens": answer.prompt_tokens,
        "truncated": answer.truncated,
        "judge_fold": NO_FOLD,
        "in_sample": False,
        "fingerprint": text,
        "outside": answer.outside,
    }


def told_outside(table: pl.DataFrame) -> str:
    """How much went to other answers than the labels."""
    outside = table["outside"].to_numpy()
    return f"mass outside the labels: median {np.median(outside):.3g}, most {outside.max():.3g}"
