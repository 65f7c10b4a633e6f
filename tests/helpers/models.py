"""Tiny models and tokenizers, rows of random tokens, and the directories of real models."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    set_seed,
)

REAL_MODELS = Path(os.environ.get("W2S_HF_REAL_MODELS", Path(__file__).parents[3] / "shared" / "models"))
WORDS = [f"w{index}" for index in range(60)]
BATCH = {
    "input_ids": torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]]),
    "attention_mask": torch.tensor([[1] * 4, [1, 1, 0, 0]]),
}


def real_model(name: str = "smollm2-135m") -> str:
    """
    Returns the directory of a pretrained model for tests with the mark `real_data`: the decoder `smollm2-135m` or the
    encoder `minilm-l6`. Skips the test if there is no such directory.
    """
    folder = REAL_MODELS / name
    if not (folder / "config.json").is_file():
        pytest.skip(f"no pretrained model in {folder}")
    return str(folder)


def make_model(kind: str):
    """Returns a classifier with weights so large that predictions differ between rows. Its widths suit nf4."""
    set_seed(0)
    common = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"max_position_embeddings": 64}
    if kind == "llama":
        return LlamaForSequenceClassification(LlamaConfig(num_key_value_heads=2, **size, **common))
    if kind == "gpt2":
        dropout = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
        return GPT2ForSequenceClassification(
            GPT2Config(n_embd=64, n_layer=2, n_head=2, n_positions=64, **dropout, **common)
        )
    return BertForSequenceClassification(BertConfig(**size, **common))


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def logits(model) -> torch.Tensor:
    """Returns the logits of `BATCH` without dropout."""
    with torch.no_grad():
        return model.eval()(**BATCH).logits.float()


def make_rows(n: int, labels: str = "soft", seed: int = 0, n_classes: int = 2, lengths=(3, 30)) -> Dataset:
    """Returns `n` rows of random tokens of mixed length, with labels of the kind `labels`."""
    rng = np.random.default_rng(seed)
    rows = {
        "id": [f"row-{index}" for index in range(n)],
        "input_ids": [rng.integers(4, 64, rng.integers(*lengths)).tolist() for _ in range(n)],
    }
    rows["attention_mask"] = [[1] * len(ids) for ids in rows["input_ids"]]
    probabilities = rng.dirichlet(np.ones(n_classes), n).astype(np.float32)
    if labels == "soft":
        rows["labels"] = probabilities.tolist()
    elif labels == "scalar":
        rows["labels"] = probabilities[:, 1].tolist()
    elif labels == "hard":
        rows["labels"] = probabilities.argmax(axis=1).tolist()
    return Dataset.from_dict(rows)


def make_character_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Returns a tokenizer of characters, for transcripts and FENs. Texts decode to themselves."""
    characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 /-+#=.:\n"
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "eos_token": "<eos>"} | special
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=names, **special)


def make_language_model(tokenizer: PreTrainedTokenizerFast, small: bool = False, **options) -> LlamaForCausalLM:
    """Returns a tiny Llama for 160 tokens, with weights so large that completions differ."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16 if small else 64,
        intermediate_size=32 if small else 128,
        num_hidden_layers=1 if small else 2,
        num_attention_heads=2,
        max_position_embeddings=160,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **options,
    )
    return LlamaForCausalLM(config)


def merging_tokenizer(**options) -> PreTrainedTokenizerFast:
    """Returns a tokenizer that merges `:` and the space after it, as a BPE without word boundaries can."""
    characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 /-+#=.:\n"
    tokens = ["<pad>", "<eos>", *characters, ": "]
    backend = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, [(":", " ")]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", **options)
