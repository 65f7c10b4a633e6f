"""Tokenizes rows of text. Texts that are too long are truncated in their context, or at the end."""

import logging
from collections.abc import Iterator
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ._compat import generate_random_fingerprint

__all__ = [
    "CONTEXT_COLUMNS",
    "TEXT_COLUMNS",
    "encode",
    "has_contexts",
    "shortened",
    "shorter_contexts",
    "tokenize_rows",
]

logger = logging.getLogger(__name__)

# These columns contain the start and end of the context, which may be truncated, and the side to truncate.
CONTEXT_COLUMNS = ("context_start", "context_end", "shorten_from")
# The tokens of a row depend on these columns, and `id` identifies the row.
TEXT_COLUMNS = ("id", "text", *CONTEXT_COLUMNS)

_LENGTH = "w2s_hf_length"  # a temporary column, whose values are the constants in the next line
_WHOLE, _SHORTER, _WITHOUT_CONTEXT = range(3)


def encode(tokenizer: PreTrainedTokenizerBase, texts: str | list[str], **options) -> dict[str, Any]:
    """Tokenizes texts without the tokenizer's warning about long texts, which callers shorten or refuse."""
    return tokenizer(texts, verbose=False, **options).data


def tokenize_rows(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    *,
    text_field: str = "text",
    name: str = "rows",
) -> Dataset:
    """
    Adds `input_ids` and the tokenizer's other columns to rows of text. Recipes and trainers share this function.

    Rows of [`w2s_hf.load_task`] have `CONTEXT_COLUMNS`. If such a text is longer than `max_length` tokens, its context
    is shortened. Question and answer stay whole, and no row is dropped. Other texts are truncated at the end. The
    number of shortened rows is logged.

    Args:
        rows ([`~datasets.Dataset`]): Rows with a text column.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): A tokenizer. Rows with a context need a fast tokenizer.
        max_length (`int` or `None`): Limit in tokens, special tokens included. `None` means no limit.
        text_field (`str`, *optional*, defaults to `"text"`): The text column.
        name (`str`, *optional*, defaults to `"rows"`): The name of the rows in messages.

    Raises:
        ValueError: A row with a context is too long even without its context. The message names the row.
    """
    has_context = has_contexts(rows, text_field)

    # The function must not refer to a trainer, because datasets pickles the function with all objects in it to name a
    # cache file.
    def encode_batch(batch: dict) -> dict:
        encoded = encode(tokenizer, batch[text_field])
        lengths = [_WHOLE] * len(batch[text_field])
        for position, ids in enumerate(encoded["input_ids"]):
            if max_length is None or len(ids) <= max_length:
                continue
            lengths[position] = _SHORTER
            if has_context:
                row = {column: batch[column][position] for column in TEXT_COLUMNS if column in batch}
                text = shortened(row, tokenizer, max_length)
                if len(text) == len(row["text"]) - (row["context_end"] - row["context_start"]):
                    lengths[position] = _WITHOUT_CONTEXT
                shorter = encode(tokenizer, text)
            else:
                text = batch[text_field][position]
                shorter = encode(tokenizer, text, truncation=True, max_length=max_length)
            for key in encoded:
                encoded[key][position] = shorter[key]
        return {**encoded, _LENGTH: lengths}

    # Rows in memory need no name of a cache file. Hashing the tokenizer for the name takes a tenth of a second. During
    # this time, Ctrl-C would be ignored (`except:` in datasets.fingerprint).
    options = {} if rows.cache_files else {"new_fingerprint": generate_random_fingerprint()}
    tokenized = rows.map(encode_batch, batched=True, desc=f"Tokenizing {name}", **options)
    lengths = tokenized[_LENGTH][:]
    n_longer = sum(length != _WHOLE for length in lengths)
    if n_longer:
        subject = f"{name}: {n_longer} of {len(rows)} texts are longer than max_length={max_length} tokens"
        if has_context:
            logger.info(f"{subject}, and their context is shortened")
        else:
            logger.warning(f"{subject} and are truncated")
    n_lost = lengths.count(_WITHOUT_CONTEXT)
    if n_lost:
        logger.warning(
            f"{name}: {n_lost} of {len(rows)} rows have no context left within max_length={max_length} tokens, only "
            "question and answer. Raise max_length (--max_length)."
        )
    return tokenized.remove_columns(_LENGTH)


def has_contexts(rows: Dataset, text_field: str) -> bool:
    """Returns whether rows have the text column of [`w2s_hf.load_task`] and the position of its context."""
    return text_field == "text" and set(CONTEXT_COLUMNS) <= set(rows.column_names)


def shortened(row: dict, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """
    Returns the text of a row, with a shorter context if the text is longer than `max_length` tokens.

    Args:
        row (`dict`): A row with `TEXT_COLUMNS`. The `id` may be missing.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): A fast tokenizer.
        max_length (`int`): Limit in tokens, special tokens included.

    Raises:
        ValueError: The text is too long even without its context.
    """
    text, start, end = row["text"], row["context_start"], row["context_end"]
    n_tokens = len(encode(tokenizer, text)["input_ids"])
    if n_tokens <= max_length:
        return text
    before, context, after = text[:start], text[start:end], text[end:]
    for part in shorter_contexts(tokenizer, context, n_tokens - max_length, row["shorten_from"]):
        shorter = before + part + after
        if len(encode(tokenizer, shorter)["input_ids"]) <= max_length:
            return shorter
    n_left = len(encode(tokenizer, before + after)["input_ids"])
    raise ValueError(
        f"The row {row.get('id')} ({text[-60:]!r}): got {n_left} tokens "
        f"{'without its context' if context else 'and no context to shorten'}, expected at most "
        f"max_length={max_length}. Raise max_length (--max_length)."
    )


def shorter_contexts(
    tokenizer: PreTrainedTokenizerBase, context: str, n_tokens: int, shorten_from: str
) -> Iterator[str]:
    """Yields `context` without `n_tokens` tokens, then one token shorter each time, and finally an empty string."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"Got {type(tokenizer).__name__}, a slow tokenizer, and a text that is too long, expected a fast "
            "tokenizer, which knows the characters of each token. Load one with AutoTokenizer, or raise max_length "
            "(--max_length)."
        )
    offsets = encode(tokenizer, context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    # After the truncation, the characters around the removed part can merge into other tokens. One token after
    # another is removed until the text fits.
    for n_cut in range(n_tokens, len(offsets)):
        yield (
            context[: offsets[len(offsets) - n_cut - 1][1]] if shorten_from == "end" else context[offsets[n_cut][0] :]
        )
    yield ""
