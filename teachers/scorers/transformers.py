"""The reference scorer: padded forward passes through transformers."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PretrainedConfig,
)
from transformers import logging as transformers_logging

from core.errors import UserError
from core.models.architecture import ENCODERS, attention_for, head_of
from teachers.scorers.config import TransformersConfig

log = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LARGEST_INT8, SMALLEST_STEP = 127, 1e-12  # the latter for inputs of zeros
POOL_BATCHES = 8  # prompts of so many forward passes are sorted by length before they are cut into batches


class TransformersScorer:
    """Scores on one device: the first GPU, or else the CPU.

    With `label_ids` it reads a language model's log-probabilities of these tokens as the next one, else the score head
    of a sequence classifier.
    """

    tokens_cached = 0

    def __init__(self, model: Path, config: TransformersConfig, label_ids: Sequence[int] | None = None) -> None:
        """`config.batch_tokens` bounds the padded tokens of one forward pass."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        settings = AutoConfig.from_pretrained(model)
        dtype = DTYPES[config.dtype] if config.dtype != "auto" else fastest_dtype(self.device, settings)
        log.debug("scoring with %s through transformers on %s in %s", model, self.device, dtype)
        if hasattr(settings, "quantization_config"):
            # transformers has no int8 kernels: weights become floats and activations are rounded at run time. Unless
            # told so, that waits for the classifier's own forward, which `_outputs` goes around.
            if config.load_in_8bit:
                raise UserError(f"scorers.*.load_in_8bit=true: {model} is quantised already; set it to false")
            settings.quantization_config["dequantize"] = True
        transformers_logging.disable_progress_bar()
        kind = AutoModelForSequenceClassification if label_ids is None else AutoModelForCausalLM
        loaded: Any = kind.from_pretrained(
            model,
            config=settings,
            dtype=dtype,
            attn_implementation=attention_for(settings),
            quantization_config=llm_int8() if config.load_in_8bit else None,
        )
        self.model: Any = loaded.to(self.device).eval()
        for linear in int8_linears(self.model):
            round_inputs(linear)
        self.head: Any = None
        if label_ids is None:  # in fp32, as vLLM does: bf16 logits would keep three digits
            self.head = getattr(self.model, head_of(settings.model_type)).float()
        self.label_ids = None if label_ids is None else list(label_ids)
        self.batch_tokens = config.batch_tokens

    def stream(self, prompts: Iterable[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
        """As `core.scoring.Scorer` says; within a pool of some batches, the longest prompts come first."""
        waiting = enumerate(prompts)
        while pool := _take(waiting, POOL_BATCHES * self.batch_tokens):
            for batch in batches_by_length([len(prompt) for _, prompt in pool], self.batch_tokens):
                outputs = self._outputs([pool[row][1] for row in batch])
                yield from ((pool[row][0], output) for row, output in zip(batch, outputs, strict=True))

    def close(self) -> None:
        """Drop the model. `core.device.free_device` then gives its memory to others."""
        self.model = self.head = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def rounding(self, dtype: torch.dtype, seed: int) -> Iterator[None]:
        """Within it, what each module of the backbone gives is off at random by up to what rounding to `dtype` costs:
        as in one of many engines that compute in this type.
        """
        generator = torch.Generator(self.device).manual_seed(seed)

        def rounded(output: Any) -> Any:
            if isinstance(output, tuple):
                return tuple(rounded(part) for part in output)
            if not isinstance(output, torch.Tensor) or not output.is_floating_point():
                return output
            noise = torch.rand(output.shape, generator=generator, device=self.device).mul(2).sub(1)
            return output * (1 + noise * torch.finfo(dtype).eps / 2)

        modules = self.model.base_model.modules()
        hooks = [module.register_forward_hook(lambda _, __, output: rounded(output)) for module in modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.inference_mode()
    def _outputs(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        # The pooled position comes from the lengths. transformers' own pooling takes the last id that is not
        # pad_token_id, and where pad is also a token of the prompt's end, that is another position.
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.long)
        ids[mask] = torch.tensor([token for prompt in prompts for token in prompt])
        output = self.model.base_model(
            input_ids=ids.to(self.device), attention_mask=mask.long().to(self.device), use_cache=False
        )
        if self.model.config.model_type in ENCODERS:
            return self.head(output.pooler_output.float()).cpu().numpy()
        rows = torch.arange(len(prompts), device=self.device)
        last = output.last_hidden_state[rows, lengths.to(self.device) - 1]
        if self.label_ids is None:
            return self.head(last.float()).cpu().numpy()
        logits = self.model.lm_head(last).float()
        if cap := getattr(self.model.config, "final_logit_softcapping", None):
            logits = cap * torch.tanh(logits / cap)
        return logits.log_softmax(-1)[:, self.label_ids].cpu().numpy()


def int8_linears(model: torch.nn.Module) -> Iterator[torch.nn.Linear]:
    """The layers of a w8a8 export: those that round their inputs to int8, with a scale for each token."""
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if isinstance(module, torch.nn.Linear) and scheme is not None and scheme.input_activations is not None:
            assert (scheme.input_activations.num_bits, scheme.input_activations.strategy) == (8, "token")
            yield module


def round_inputs(linear: torch.nn.Linear) -> None:
    """Have a layer round its input as int8 kernels do (vLLM's scaled_quant.cu, its CPU kernel alike), by steps of
    max|x| / 127. compressed-tensors steps by max|x| / 127.5, and half a percent turns many a rounding.
    """

    def forward(x: torch.Tensor) -> torch.Tensor:
        step = (x.abs().amax(-1, keepdim=True).float() / LARGEST_INT8).clamp(min=SMALLEST_STEP)
        return torch.nn.functional.linear((x / step).round().mul(step).to(x.dtype), linear.weight, linear.bias)

    linear.forward = forward  # type: ignore[method-assign, assignment]


def llm_int8() -> BitsAndBytesConfig:
    """int8 linear layers but for the head, outlying activations in fp16 (Dettmers et al. 2022, arXiv 2208.07339)."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says at every layer of every batch what it casts
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["score", "classifier", "lm_head"])


def fastest_dtype(device: torch.device, model: PretrainedConfig) -> torch.dtype:
    """On GPUs fp16 for a model that is stored so, as exports are, else bf16 where they compute in it, else fp32.

    On CPUs fp32: without bf16 units bf16 is more than ten times slower.
    """
    if device.type != "cuda":
        return torch.float32
    if model.dtype == torch.float16:  # its margin is measured, and bf16 would round what it was rescaled to
        return torch.float16
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Row numbers in batches of similar length, longest first; rows x longest row <= `batch_tokens`, or one row."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def _take(waiting: Iterator[tuple[int, Sequence[int]]], tokens: int) -> list[tuple[int, Sequence[int]]]:
    """The next prompts, until they have `tokens` tokens together."""
    pool: list[tuple[int, Sequence[int]]] = []
    for position, prompt in waiting:
        if not prompt:
            raise UserError(f"prompt {position} has no tokens")
        pool.append((position, prompt))
        tokens -= len(prompt)
        if tokens <= 0:
            break
    return pool
