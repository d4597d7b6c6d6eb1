"""Tiny models with random weights, written as transformers and vLLM load them: the fixtures of every heavy test.

Two layers, 64 wide. vLLM's CPU attention knows head sizes from 32 up, so there are two heads of 32. Weights are drawn
with unit gain rather than transformers' 0.02, so that attention attends, biases and norms count, and logits differ
between rows.
"""

from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from core.records import LABELS

Family = Literal["llama", "qwen2", "gemma2"]
FAMILIES: tuple[Family, ...] = ("llama", "qwen2", "gemma2")
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
# Rows of the embedding: a few more than tokens, as real models have them. Qwen2Tokenizer adds a token of its own.
VOCABULARY = 640
HEAD_GAIN = 2.0

TEXT = """
Which of two chatbot responses do people prefer? ### Question Explain why the sky is blue to a child of seven years.
### Response A Light from the sun looks white, but it is made of all the colours of the rainbow. When it meets the
air, the blue part is scattered much more than the red part, so blue light reaches your eyes from every direction. ###
Response B I am sorry, as a language model I cannot see the sky. However, here are three steps: 1. Go outside. 2. Look
up. 3. Ask a teacher! ### Preferred response: A, B or a tie. Write a function in Python that returns the first n prime
numbers, and say how long it takes to run. def primes(n): return [p for p in range(2, 100) if all(p % q for q in
range(2, p))][:n]. Please summarise this article in two sentences; the user wants a short answer, the other answer was
longer and gave an example, a list and a table of results.
"""


def tiny_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Write and return a byte-level BPE tokenizer. Its alphabet is all bytes, so any text can be encoded."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(TEXT.splitlines(), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=PAD)
    tokenizer.save_pretrained(folder)
    return tokenizer


def tiny_causal(folder: Path, family: Family, seed: int = 0, *, tied: bool | None = None) -> Path:
    """Write a causal language model of `family` with its tokenizer; llama's head is untied, the others' tied."""
    config = _config(folder, family)
    config.tie_word_embeddings = config.tie_word_embeddings if tied is None else tied
    return _save(AutoModelForCausalLM.from_config(config, dtype=torch.float32), folder, seed)


def tiny_encoder(folder: Path, seed: int = 0) -> Path:
    """Write an encoder with its tokenizer, as BertModel stores one: tensors without a prefix, and a pooler."""
    return _save(AutoModel.from_config(_bert(folder), dtype=torch.float32), folder, seed)


def _bert(folder: Path) -> PreTrainedConfig:
    """Its configuration, and in `folder` its WordPiece tokenizer, which puts [CLS] before a text and [SEP] after it."""
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, min_frequency=1, special_tokens=names, show_progress=False
    )
    pieces.train_from_iterator(TEXT.splitlines(), trainer)
    ids = {name: pieces.token_to_id(name) for name in names}
    pieces.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    kinds = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), names, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=pieces, **kinds).save_pretrained(folder)
    return AutoConfig.for_model(
        "bert",
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=1024,
        pad_token_id=ids["[PAD]"],
    )


def tiny_judge(folder: Path, family: Family, seed: int = 0) -> Path:
    """Write a judge of `family`: a sequence classifier over `LABELS` with its tokenizer."""
    config = _config(folder, family)
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: i for i, label in enumerate(LABELS)}
    return _save(AutoModelForSequenceClassification.from_config(config, dtype=torch.float32), folder, seed)


def _config(folder: Path, family: Family) -> PreTrainedConfig:
    tokenizer = tiny_tokenizer(folder)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    # Caps as low as to count, and a window that some rows are longer than.
    gemma = {"query_pre_attn_scalar": 32, "sliding_window": 64, "attn_logit_softcapping": 2.0}
    own = gemma if family == "gemma2" else {}
    return AutoConfig.for_model(
        family,
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=family != "llama",
        **special,
        **own,
    )


def _save(model: PreTrainedModel, folder: Path, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name == "score.weight":
                parameter.copy_(noise * HEAD_GAIN / parameter.shape[1] ** 0.5)
            elif parameter.ndim == 2:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
            else:  # norms stay near their initial gain, biases near zero
                parameter.add_(noise * 0.1)
    model.save_pretrained(folder)
    return folder
