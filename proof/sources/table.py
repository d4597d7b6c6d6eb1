"""The table of sources: a new one is a module and a row here. Those in CSV are the five of `data=human`."""

from proof.sources.alpaca_eval import ALPACA_EVAL
from proof.sources.finegrained_rlhf import FINEGRAINED_RLHF
from proof.sources.llmfao import LLMFAO
from proof.sources.lmsys_sample import LMSYS_SAMPLE
from proof.sources.pandalm import PANDALM
from proof.sources.source import Source
from proof.sources.tulu import TULU

SOURCES: dict[str, Source] = {
    source.name: source for source in (FINEGRAINED_RLHF, LLMFAO, LMSYS_SAMPLE, PANDALM, TULU, ALPACA_EVAL)
}
