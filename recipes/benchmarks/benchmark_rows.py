"""
Generates rows, tokenizers and models for the benchmarks. Words are random, because speed depends on their number only.
"""

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

_SPECIAL_WORDS = ("<pad>", "<unk>", "Question:")
# Half of the signal words mean yes, and half mean no. `_TELLING_SHARE` is the share of signal words in a
# passage. `_RIGHT_SHARE` is the share of signal words that match the answer. Models learn this signal within about 24
# optimizer steps.
_N_TELLING = 32
_TELLING_SHARE = 0.4
_RIGHT_SHARE = 0.75


def row_lengths(n: int, mean_length: int, longest: int, rng: np.random.Generator) -> np.ndarray:
    """Returns log-normal lengths, similar to BoolQ passages (mean 145 GPT-2 tokens, deviation of the log 0.5)."""
    return np.clip(rng.lognormal(np.log(mean_length) - 0.125, 0.5, n), 8, longest).astype(int)


def token_rows(n: int, mean_length: int, max_length: int, vocab_size: int) -> Dataset:
    """Returns tokenized rows with random labels."""
    rng = np.random.default_rng(0)
    lengths = row_lengths(n, mean_length, max_length, rng)
    ids = [rng.integers(1, vocab_size, length).tolist() for length in lengths]
    masks = [[1] * length for length in lengths]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": masks, "labels": rng.integers(0, 2, n).tolist()})


class Padding:
    """The part of a tokenizer that `DataCollatorWithPadding` uses for these rows."""

    def pad(self, features, **kwargs):
        longest = max(len(row["input_ids"]) for row in features)
        batch = {
            key: [row[key] for row in features] for key in features[0] if key not in ("input_ids", "attention_mask")
        }
        for key in ("input_ids", "attention_mask"):
            batch[key] = [row[key] + [0] * (longest - len(row[key])) for row in features]
        return {key: torch.tensor(values) for key, values in batch.items()}


def boolq_rows(n: int, mean_length: int, vocab_size: int, seed: int) -> Dataset:
    """Returns `n` rows in the schema of google/boolq. Half of the answers are yes, and the passages indicate which."""
    rng = np.random.default_rng(seed)
    n_words = vocab_size - len(_SPECIAL_WORDS)
    answers = rng.permutation(np.arange(n) % 2 == 1)
    passages = []
    for answer, length in zip(answers, row_lengths(n, mean_length, 400, rng), strict=True):
        words = rng.integers(_N_TELLING, n_words, length)
        is_telling, is_right = rng.random((2, length)) < [[_TELLING_SHARE], [_RIGHT_SHARE]]
        telling = rng.integers(0, _N_TELLING // 2, length) + (is_right == answer) * (_N_TELLING // 2)
        passages.append(" ".join(f"w{word}" for word in np.where(is_telling, telling, words)))
    questions = [" ".join(f"w{word}" for word in rng.integers(_N_TELLING, n_words, 8)) for _ in range(n)]
    return Dataset.from_dict({"question": questions, "answer": answers.tolist(), "passage": passages})


def save_boolq_rows(directory: Path, n_train: int, n_test: int, mean_length: int, vocab_size: int) -> None:
    """
    Saves a dataset for `--dataset_path`, with more rows than needed, because balancing drops some rows of the more
    frequent answer.
    """
    sizes = {"train": 3 * n_train // 2 + 100, "validation": 3 * n_test // 2 + 100}
    splits = {
        name: boolq_rows(n, mean_length, vocab_size, seed) for seed, (name, n) in enumerate(sizes.items(), start=1)
    }
    DatasetDict(splits).save_to_disk(directory)


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose tokens are the words of [`boolq_rows`]."""
    words = [*_SPECIAL_WORDS, *(f"w{number}" for number in range(vocab_size - len(_SPECIAL_WORDS)))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", model_input_names=names
    )


def gpt2_config(width: int, n_layers: int, vocab_size: int, **settings) -> GPT2Config:
    """Returns a configuration with attention heads of 64 dimensions, as in GPT-2."""
    n_heads = max(1, width // 64)
    settings = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0} | settings
    return GPT2Config(n_embd=width, n_layer=n_layers, n_head=n_heads, vocab_size=vocab_size, **settings)


def save_language_model(
    directory: Path, shape: str, tokenizer: PreTrainedTokenizerBase, n_positions: int, seed: int
) -> None:
    """Saves a GPT-2 with random weights, and its tokenizer. `shape` is width and layers, such as `384x6`."""
    width, n_layers = map(int, shape.split("x"))
    torch.manual_seed(seed)
    config = gpt2_config(width, n_layers, len(tokenizer), n_positions=n_positions, pad_token_id=tokenizer.pad_token_id)
    GPT2LMHeadModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
