"""A hundred rows of Kaggle's LMSYS contest, the first of train.csv by id, from a repository that holds them.

They are in the layout already. Whoever has Kaggle's train.csv has them, too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.data.files import delimited
from proof.sources.source import Source

SAMPLE = "src/model/small_train.csv"


def rows(checkout: Path) -> Iterator[dict[str, Any]]:
    return (row.cells for row in delimited.rows(checkout / SAMPLE))


LMSYS_SAMPLE = Source(
    name="lmsys_native_100",
    about="100 conversations of chatbot users, one vote each; some are offensive",
    repository="AlperCeyhun/llm-classification-finetuning",
    commit="86170aaa9650841f586da62a60ccb0ea5ae98f57",
    files={SAMPLE: "752d74e6acef45059babaa2222aa1188e1195d6d"},
    licence="MIT, the repository's; Apache-2.0, the hub's for lmsys-arena-human-preference-55k, which holds the rows",
    shippable=False,
    output="train.csv",
    digest="c7e2612ab22df142031a415bba213670d87e43038708fab7b110e81335ed4adc",
    rows=rows,
)
