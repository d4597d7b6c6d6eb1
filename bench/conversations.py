"""The real conversations that teachers and students are measured on."""

import random
from collections import defaultdict
from collections.abc import Sequence

from bench.configuration import file_of
from core.config import from_mapping
from core.data.collecting import collect
from core.data.config import DataConfig
from core.data.groups import group_of
from core.data.sources import open_recognised
from core.data.table import from_frame
from core.records import Conversation


def whole_groups(files: Sequence[str], count: int) -> list[Conversation]:
    """About `count` conversations in random groups of one prompt: they share prefixes as much as the whole data do.

    A group of more than a tenth of them is cut there, because few prompts with very many answers say little.
    """
    data = file_of("data/lmsys") | file_of("data/human") | {"files": [*files]}
    frame, _, _ = collect(open_recognised(from_mapping(DataConfig, data)), None, [])
    groups: dict[str, list[Conversation]] = defaultdict(list)
    for conversation in from_frame(frame):
        groups[group_of(conversation.prompt[0])].append(conversation)
    drawn = random.Random(0).sample(sorted(groups), len(groups))
    return [c for group in drawn for c in groups[group][: count // 10]][:count]
