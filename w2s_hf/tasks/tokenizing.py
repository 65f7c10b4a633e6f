"""Rows of a task as tokens, the too long ones with a shorter context."""

from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint
from transformers import PreTrainedTokenizerBase

__all__ = ["TEXT_COLUMNS", "tokenize_rows"]

# What is needed to tokenize a row.
TEXT_COLUMNS = ["id", "text", "context_start", "context_end", "shorten_from"]


def tokenize_rows(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Dataset:
    """
    Adds `input_ids` and what else the tokenizer makes, for rows with `TEXT_COLUMNS`.

    Where a text is longer than `max_length` tokens, its context is shortened; question and answer stay whole, and no
    row is dropped, so that everybody is tested on the same rows.

    Args:
        rows ([`~datasets.Dataset`]): Rows of a task.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): A fast tokenizer.
        max_length (`int` or `None`): Tokens, special ones included; `None` is no limit.

    Raises:
        ValueError: what is left without the context does not fit; the row is named.
    """

    def encode(batch: dict) -> dict:
        encoded = tokenizer(batch["text"])
        if max_length is None:
            return encoded
        for position, ids in enumerate(encoded["input_ids"]):
            if len(ids) > max_length:
                row = {name: batch[name][position] for name in TEXT_COLUMNS}
                shorter = _shorten(tokenizer, row, len(ids), max_length)
                for key in encoded:
                    encoded[key][position] = shorter[key]
        return encoded

    # datasets would hash `encode`, and the tokenizer with it, to name a cache file that rows in memory do not have; a
    # Ctrl-C in that tenth of a second is lost (`except:` in datasets.fingerprint).
    return rows.map(encode, batched=True, desc="Tokenizing", new_fingerprint=generate_random_fingerprint())


def _shorten(tokenizer: PreTrainedTokenizerBase, row: dict, n_tokens: int, max_length: int) -> dict:
    text, start, end = row["text"], row["context_start"], row["context_end"]
    before, context, after = text[:start], text[start:end], text[end:]
    offsets = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    # Cutting can merge characters into other tokens at the seam: cut one token more until the text fits.
    for n_cut in range(min(n_tokens - max_length, len(offsets)), len(offsets) + 1):
        if n_cut == len(offsets):
            kept = ""
        elif row["shorten_from"] == "end":
            kept = context[: offsets[len(offsets) - n_cut - 1][1]]
        else:
            kept = context[offsets[n_cut][0] :]
        shorter = tokenizer(before + kept + after)
        if len(shorter["input_ids"]) <= max_length:
            return shorter
    n_left = len(tokenizer(before + after)["input_ids"])
    what = "without its context" if context else "and has no context to shorten"
    raise ValueError(
        f"The row {row['id']} ({text[-60:]!r}) is {n_left} tokens long {what}, more than max_length {max_length}; "
        "raise --max_length."
    )
