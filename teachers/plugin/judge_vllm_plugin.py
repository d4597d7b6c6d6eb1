"""vLLM's plugin that lets a Gemma judge compute in fp16, as T4s must, once its export has measured that it fits.

vLLM refuses fp16 for whole families whose activations may exceed 65504. An export knows better about its own weights:
`extra.fp16_margin` in its manifest.json says how many times the largest activation fits
(students/export/half_precision.py). For a folder where it is 1 or more the refusal is lifted, for every other model it
stays.

vLLM loads it in each of its processes, through the entry point `vllm.general_plugins` of pyproject.toml. It is
installed as one module, away from the repository, and so imports nothing of it.
"""

import json
import logging
from functools import wraps
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
MARGIN = "fp16_margin"


def allow_measured_fp16() -> None:
    """Have vLLM's choice of a model's dtype heed the manifest beside the model; calling it again changes nothing."""
    from vllm.config import model as model_config

    verify = getattr(model_config, "_get_and_verify_dtype", None)
    refused = getattr(model_config, "_FLOAT16_NOT_SUPPORTED_MODELS", None)
    if not callable(verify) or not isinstance(refused, dict):
        log.warning("this vLLM decides elsewhere which models may compute in fp16: Gemma judges need bf16 or fp32 here")
        return
    if hasattr(verify, MARGIN):
        return

    @wraps(verify)
    def verify_as_measured(model_id: str, config: Any, *args: Any, **kwargs: Any) -> Any:
        reason = refused.pop(config.model_type, None) if measured_margin(model_id) >= 1 else None
        try:
            return verify(model_id, config, *args, **kwargs)
        finally:
            if reason is not None:
                refused[config.model_type] = reason

    setattr(verify_as_measured, MARGIN, measured_margin)
    model_config._get_and_verify_dtype = verify_as_measured


def measured_margin(model: str) -> float:
    """How many times the largest activation of the model in this folder fits into fp16; 0 where that is not known."""
    try:
        margin = json.loads((Path(model) / "manifest.json").read_text())["extra"][MARGIN]
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
    return float(margin) if isinstance(margin, int | float) else 0.0
