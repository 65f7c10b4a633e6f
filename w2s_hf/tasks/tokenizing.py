"""Rows of a task as tokens, the too long ones with a shorter context."""

import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from datasets.utils import tqdm
from transformers import PreTrainedTokenizerBase

from .._compat import generate_random_fingerprint

__all__ = [
    "COMPLETION_COLUMNS",
    "PAIR_COLUMNS",
    "TEXT_COLUMNS",
    "completion_lengths",
    "refuse_too_long",
    "response_lengths",
    "shortened",
    "tokenize_pairs",
    "tokenize_rows",
]

logger = logging.getLogger(__name__)

# What is needed to tokenize a row: a text, a pair of responses, or a prompt to complete.
TEXT_COLUMNS = ("id", "text", "context_start", "context_end", "shorten_from")
PAIR_COLUMNS = ("id", "prompt", "first", "second")
COMPLETION_COLUMNS = ("id", "prompt")


def _encode(tokenizer: PreTrainedTokenizerBase, texts: str | list[str], **options) -> dict[str, Any]:
    """Tokenizes without a warning about texts longer than what the model reads: they are shortened or refused here."""
    return tokenizer(texts, verbose=False, **options).data


def tokenize_rows(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Dataset:
    """
    Adds `input_ids` and what else the tokenizer makes, for rows with `TEXT_COLUMNS`.

    Where a text is longer than `max_length` tokens, its context is shortened; question and answer stay whole, and no
    row is dropped, so that everybody is tested on the same rows. Logs how many rows have a shorter context, and warns
    of those that have none left.

    Args:
        rows ([`~datasets.Dataset`]): Rows of a task.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): A fast tokenizer.
        max_length (`int` or `None`): Tokens, special ones included; `None` is no limit.

    Raises:
        ValueError: what is left without the context does not fit; the row is named.
    """

    n_shortened = n_lost = 0

    def encode(batch: dict) -> dict:
        nonlocal n_shortened, n_lost
        encoded = _encode(tokenizer, batch["text"])
        if max_length is None:
            return encoded
        for position, ids in enumerate(encoded["input_ids"]):
            if len(ids) > max_length:
                row = {name: batch[name][position] for name in TEXT_COLUMNS}
                text = shortened(row, tokenizer, max_length)
                n_shortened += 1
                n_lost += len(text) == len(row["text"]) - (row["context_end"] - row["context_start"])
                shorter = _encode(tokenizer, text)
                for key in encoded:
                    encoded[key][position] = shorter[key]
        return encoded

    # datasets would hash `encode`, and the tokenizer with it, to name a cache file that rows in memory do not have; a
    # Ctrl-C in that tenth of a second is lost (`except:` in datasets.fingerprint).
    tokenized = rows.map(encode, batched=True, desc="Tokenizing", new_fingerprint=generate_random_fingerprint())
    if n_shortened:
        logger.info(f"{n_shortened} of {len(rows)} rows are longer than max_length={max_length}: shorter contexts")
    if n_lost:
        logger.warning(
            f"{n_lost} of {len(rows)} rows have no context left within max_length={max_length} tokens, only question "
            "and answer. Raise --max_length."
        )
    return tokenized


def shortened(row: dict, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """
    Returns the text of a row, with a shorter context where it is longer than `max_length` tokens.

    Args:
        row (`dict`): A row with `TEXT_COLUMNS`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): A fast tokenizer.
        max_length (`int`): Tokens, special ones included.

    Raises:
        ValueError: what is left without the context does not fit.
    """
    text, start, end = row["text"], row["context_start"], row["context_end"]
    n_tokens = len(_encode(tokenizer, text)["input_ids"])
    if n_tokens <= max_length:
        return text
    before, context, after = text[:start], text[start:end], text[end:]
    for kept in _shorter_contexts(tokenizer, context, n_tokens - max_length, row["shorten_from"]):
        shorter = before + kept + after
        if len(_encode(tokenizer, shorter)["input_ids"]) <= max_length:
            return shorter
    n_left = len(_encode(tokenizer, before + after)["input_ids"])
    what = "without its context" if context else "and has no context to shorten"
    raise ValueError(
        f"The row {row['id']} ({text[-60:]!r}) is {n_left} tokens long {what}, more than max_length {max_length}; "
        "raise --max_length."
    )


def refuse_too_long(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
    """Raises `ValueError` where [`tokenize_rows`] would. Tokenizes only what cannot be shortened, which is little."""
    if max_length is None:
        return
    for start in range(0, len(rows), 1000):
        batch = rows[start : start + 1000]
        spans = zip(batch["text"], batch["context_start"], batch["context_end"], strict=True)
        left = _encode(tokenizer, [text[:begin] + text[end:] for text, begin, end in spans])["input_ids"]
        for position, ids in enumerate(left):
            if len(ids) > max_length:
                shortened({name: batch[name][position] for name in TEXT_COLUMNS}, tokenizer, max_length)


def _shorter_contexts(
    tokenizer: PreTrainedTokenizerBase, context: str, n_tokens: int, shorten_from: str
) -> Iterator[str]:
    """`context` without `n_tokens` tokens, one token shorter each time, and at last nothing of it."""
    offsets = _encode(tokenizer, context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    # Cutting can merge characters into other tokens at the seam: cut one token more until the text fits.
    for n_cut in range(n_tokens, len(offsets)):
        yield (
            context[: offsets[len(offsets) - n_cut - 1][1]] if shorten_from == "end" else context[offsets[n_cut][0] :]
        )
    yield ""


def tokenize_pairs(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Dataset:
    """
    Adds `chosen_ids` (of the first response) and `rejected_ids` (of the second), as [`~trl.RewardTrainer`] makes
    them: prompt and response together, a text with the end-of-text token where the tokenizer has one, messages by the
    tokenizer's chat template.

    Where either is longer than `max_length` tokens, the prompt loses as much of its beginning on both sides, so that
    the responses stay whole and are compared after the same words: of a text, words; of messages, whole turns, and
    words only of the last one.

    Args:
        rows ([`~datasets.Dataset`]): Rows with `PAIR_COLUMNS`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): A fast tokenizer.
        max_length (`int` or `None`): Tokens, special ones included; `None` is no limit.

    Raises:
        ValueError: a response alone does not fit (see [`response_lengths`]; the row is named), or there are messages
            and the tokenizer has no chat template.
    """

    def encode(batch: dict) -> dict:
        columns: dict[str, list] = {"chosen_ids": [], "rejected_ids": []}
        for values in zip(*(batch[name] for name in PAIR_COLUMNS), strict=True):
            row = dict(zip(PAIR_COLUMNS, values, strict=True))
            for column, ids in zip(columns.values(), _encode_pair(row, tokenizer, max_length), strict=True):
                column.append(ids)
        return columns

    return rows.map(encode, batched=True, desc="Tokenizing", new_fingerprint=generate_random_fingerprint())


def _encode_pair(row: dict, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[list[int]]:
    sides, limit = (row["first"], row["second"]), sys.maxsize if max_length is None else max_length
    is_text = isinstance(sides[0], str)
    for prompt in [row["prompt"]] if is_text else _shorter_dialogues(row["prompt"]):
        begin, responses = _render(prompt, sides, tokenizer)
        encoded, length = _encode_sides(begin, responses, tokenizer, is_text)
        if length <= limit:
            return encoded
    for kept in _shorter_contexts(tokenizer, begin, length - limit, "start"):
        encoded, length = _encode_sides(kept, responses, tokenizer, is_text)
        if length <= limit:
            return encoded
    raise ValueError(
        f"The row {row['id']} has a response of {length} tokens, more than max_length {max_length}; raise "
        "--max_length, or leave such pairs out."
    )


def _encode_sides(
    begin: str, responses: list[str], tokenizer: PreTrainedTokenizerBase, is_text: bool
) -> tuple[list[list[int]], int]:
    # A chat template writes the special tokens itself.
    encoded = _encode(tokenizer, [begin + response for response in responses], add_special_tokens=is_text)["input_ids"]
    return encoded, max(map(len, encoded))


def _shorter_dialogues(prompt: list[dict]) -> Iterator[list[dict]]:
    """A dialogue, and without its first turns; what the system says stays, and so does the last question."""
    system = [message for message in prompt[:1] if message["role"] == "system"]
    turns = prompt[len(system) :]
    yield prompt
    for number in range(1, len(turns)):
        if turns[number]["role"] == "user":
            yield [*system, *turns[number:]]


def response_lengths(rows: Sequence[dict], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Tokens of the longer response of each row with `PAIR_COLUMNS`, without a prompt: `(N,)` int64."""
    lengths = []
    for start in tqdm(range(0, len(rows), 1000), desc="Measuring responses"):
        chunk = rows[start : start + 1000]
        is_text = isinstance(chunk[0]["first"], str)
        responses = [
            text for row in chunk for text in _render(row["prompt"], (row["first"], row["second"]), tokenizer)[1]
        ]
        encoded = _encode(tokenizer, responses, add_special_tokens=is_text)["input_ids"]
        lengths += [max(len(encoded[n]), len(encoded[n + 1])) for n in range(0, len(encoded), 2)]
    return np.array(lengths, dtype=np.int64)


def completion_lengths(
    prompts: Sequence[str], completions: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[np.ndarray, np.ndarray]:
    """
    Tokens of each prompt, and of each completion with its end-of-text token: `(N,)` int64 twice.

    Raises:
        ValueError: a prompt with its completion does not begin with the tokens of the prompt, so that what is trained
            is not what is generated; the row, and how it is cut, are in the message. Or the tokenizer has no
            end-of-text token.
    """
    if tokenizer.eos_token is None:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path!r} has no end-of-text token, so that no completion would ever "
            "end; set one."
        )
    n_prompt, n_completion = [], []
    for start in tqdm(range(0, len(prompts), 1000), desc="Measuring prompts"):
        before = list(prompts[start : start + 1000])
        after = list(completions[start : start + 1000])
        both = [prompt + completion for prompt, completion in zip(before, after, strict=True)]
        apart, together = _encode(tokenizer, before)["input_ids"], _encode(tokenizer, both)["input_ids"]
        for prompt, completion, ids, all_ids in zip(before, after, apart, together, strict=True):
            if all_ids[: len(ids)] != ids or len(all_ids) == len(ids):
                raise ValueError(
                    f"The tokenizer of {tokenizer.name_or_path!r} ({type(tokenizer).__name__}) does not keep the end "
                    f"of a prompt: {prompt[-20:]!r} ends with the tokens {tokenizer.convert_ids_to_tokens(ids[-3:])}, "
                    f"with {completion!r} behind it there are "
                    f"{tokenizer.convert_ids_to_tokens(all_ids[max(0, len(ids) - 3) :])}. A model would be trained on "
                    "other tokens than it is asked with. Take a tokenizer that adds nothing behind a text and merges "
                    "nothing over a space."
                )
            n_prompt.append(len(ids))
            n_completion.append(len(all_ids) - len(ids) + 1)
    return np.array(n_prompt, dtype=np.int64), np.array(n_completion, dtype=np.int64)


def _render(prompt: Any, sides: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[str]]:
    """Prompt and both responses, all texts or all messages, as text: what may be cut, and what may not."""
    if isinstance(sides[0], str):
        end = tokenizer.eos_token or ""
        return prompt, [side if side.endswith(end) else side + end for side in sides]
    if tokenizer.chat_template is None:
        raise ValueError(
            f"The responses are messages, and the tokenizer of {tokenizer.name_or_path!r} has no chat template to "
            "make text of them. Take a model that has one, or pairs of text."
        )
    texts = [str(tokenizer.apply_chat_template([*prompt, *side], tokenize=False)) for side in sides]
    # A template may show a prompt otherwise once it has been answered; then less of it, or nothing, may be cut.
    for asks in (True, False) if prompt else ():
        begin = str(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=asks))
        if all(text.startswith(begin) for text in texts):
            return begin, [text[len(begin) :] for text in texts]
    return "", texts
