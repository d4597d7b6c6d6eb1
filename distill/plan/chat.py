"""What a chat API asks for a teacher's soft logits for all conversations in both orders."""

from pathlib import Path

from core.prompts import PromptConfig
from core.records import ORDERS
from distill.plan.config import AssumedConfig
from distill.plan.stage import Stage
from distill.plan.work import SAMPLE
from teachers.config import ChatConfig

CHARACTERS = 4  # of a token, as English has them about


def chat_stage(chat: ChatConfig, prompt: PromptConfig, data: Path, assumed: AssumedConfig) -> Stage:
    """Tokens and cost; the time is the API's matter, of which a limited run tells."""
    count, tokens, source = prompts_of(chat, prompt, data, assumed)
    rows, answers = count * len(ORDERS), max(1, chat.samples)
    written = rows * answers * chat.max_tokens
    lines = [
        ("a row", f"{tokens:.0f} tokens ({source})" + (f", {chat.samples} sampled verdicts" if chat.samples else "")),
        ("rows", f"{rows:,} ({count:,} conversations, both orders)"),
        ("tokens", f"{rows * tokens / 1e6:,.1f} million read, {written / 1e6:,.2f} million written"),
        ("time", "not known: python -m distill.teacher ... limit=10 asks 20 rows and tells that of all, with the cost"),
    ]
    if chat.price_input is None or chat.price_output is None:
        return Stage(f"Asking {chat.model}", [*lines, ("cost", "give teacher.chat.price_input and price_output")])
    cost = (rows * tokens * chat.price_input + written * chat.price_output) / 1e6
    prices = f"{chat.price_input:g} and {chat.price_output:g} for a million tokens read and written"
    return Stage(f"Asking {chat.model}", [*lines, ("cost", f"{cost:,.2f}, at {prices}")], cost=(cost, cost))


def prompts_of(chat: ChatConfig, prompt: PromptConfig, data: Path, assumed: AssumedConfig) -> tuple[int, float, str]:
    """How many conversations there are, the mean tokens of their prompts, and where these are from."""
    from core.artefacts.contents import MANIFEST
    from core.data.table import load_conversations
    from teachers.chat.prompts import renderer_of

    renderer = renderer_of(chat, prompt)
    if not (data / MANIFEST).is_file():
        return assumed.conversations, min(float(assumed.tokens), chat.max_characters / CHARACTERS), "assumed"
    rows = load_conversations(data)
    rendered = [p.characters / CHARACTERS for p in renderer.render(rows[:: -(-len(rows) // SAMPLE)])]
    return len(rows), sum(rendered) / len(rendered), f"{CHARACTERS} characters a token, of {len(rendered)} prompts"
