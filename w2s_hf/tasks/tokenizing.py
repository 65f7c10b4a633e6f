"""Tokenizes the rows of tasks, and measures their lengths in tokens."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from datasets.utils import tqdm
from transformers import PreTrainedTokenizerBase

from .._compat import generate_random_fingerprint
from ..tokenization import TEXT_COLUMNS, encode, shortened, shorter_contexts, tokenize_rows

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

# Columns that determine the tokens of a pair or of a prompt, with the id of the row
PAIR_COLUMNS = ("id", "prompt", "first", "second")
COMPLETION_COLUMNS = ("id", "prompt")


def refuse_too_long(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
    """
    Raises `ValueError` for a text that [`tokenize_rows`] cannot shorten to `max_length` tokens. Only the parts of the
    texts that are never truncated are tokenized.
    """
    if max_length is None:
        return
    for start in range(0, len(rows), 1000):
        batch = rows[start : start + 1000]
        spans = zip(batch["text"], batch["context_start"], batch["context_end"], strict=True)
        left = encode(tokenizer, [text[:begin] + text[end:] for text, begin, end in spans])["input_ids"]
        for position, ids in enumerate(left):
            if len(ids) > max_length:
                shortened({name: batch[name][position] for name in TEXT_COLUMNS}, tokenizer, max_length)


def tokenize_pairs(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Dataset:
    """
    Adds `chosen_ids` (first response) and `rejected_ids` (second response), as [`~trl.RewardTrainer`] does. Prompt
    and response are tokenized as one text. Texts end with the end-of-text token if the tokenizer has one. Messages are
    rendered by the tokenizer's chat template.

    If a prompt with its response is longer than `max_length` tokens, the beginning of the prompt is truncated, equally
    for both responses. Responses are never truncated. In a dialogue, whole turns are removed first, then words of the
    last turn.

    Args:
        rows ([`~datasets.Dataset`]): Rows with `PAIR_COLUMNS`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): A fast tokenizer.
        max_length (`int` or `None`): Limit in tokens, special tokens included. `None` means no limit.

    Raises:
        ValueError: The responses are messages, and the tokenizer has no chat template. A response does not fit even
            without its prompt (see [`response_lengths`]). In this case, the error names the row.
    """

    def encode_batch(batch: dict) -> dict:
        columns: dict[str, list] = {"chosen_ids": [], "rejected_ids": []}
        for values in zip(*(batch[name] for name in PAIR_COLUMNS), strict=True):
            row = dict(zip(PAIR_COLUMNS, values, strict=True))
            for column, ids in zip(columns.values(), _encode_pair(row, tokenizer, max_length), strict=True):
                column.append(ids)
        return columns

    return rows.map(encode_batch, batched=True, desc="Tokenizing", new_fingerprint=generate_random_fingerprint())


def _encode_pair(row: dict, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[list[int]]:
    sides, limit = (row["first"], row["second"]), sys.maxsize if max_length is None else max_length
    is_text = isinstance(sides[0], str)
    for prompt in [row["prompt"]] if is_text else _shorter_dialogues(row["prompt"]):
        begin, responses = _render(prompt, sides, tokenizer)
        encoded, length = _encode_sides(begin, responses, tokenizer, is_text)
        if length <= limit:
            return encoded
    for shorter in shorter_contexts(tokenizer, begin, length - limit, "start"):
        encoded, length = _encode_sides(shorter, responses, tokenizer, is_text)
        if length <= limit:
            return encoded
    raise ValueError(
        f"The row {row['id']}: got a response of {length} tokens, expected at most max_length={max_length}. Raise "
        "max_length (--max_length), or leave such pairs out."
    )


def _encode_sides(
    begin: str, responses: list[str], tokenizer: PreTrainedTokenizerBase, is_text: bool
) -> tuple[list[list[int]], int]:
    # A chat template writes the special tokens itself.
    encoded = encode(tokenizer, [begin + response for response in responses], add_special_tokens=is_text)["input_ids"]
    return encoded, max(map(len, encoded))


def _shorter_dialogues(prompt: list[dict]) -> Iterator[list[dict]]:
    """Yields a dialogue, then shorter versions without the first turns. System message and last question stay."""
    system = [message for message in prompt[:1] if message["role"] == "system"]
    turns = prompt[len(system) :]
    yield prompt
    for number in range(1, len(turns)):
        if turns[number]["role"] == "user":
            yield [*system, *turns[number:]]


def response_lengths(rows: Sequence[dict], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Returns the number of tokens of the longer response of each row, without its prompt, as `(N,)` int64."""
    lengths = []
    for start in tqdm(range(0, len(rows), 1000), desc="Measuring responses"):
        chunk = rows[start : start + 1000]
        is_text = isinstance(chunk[0]["first"], str)
        responses = [
            text for row in chunk for text in _render(row["prompt"], (row["first"], row["second"]), tokenizer)[1]
        ]
        encoded = encode(tokenizer, responses, add_special_tokens=is_text)["input_ids"]
        lengths += [max(len(encoded[n]), len(encoded[n + 1])) for n in range(0, len(encoded), 2)]
    return np.array(lengths, dtype=np.int64)


def completion_lengths(
    prompts: Sequence[str], completions: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[np.ndarray, np.ndarray]:
    """
    Returns the number of tokens of each prompt, and of each completion with its end-of-text token. Both arrays are
    `(N,)` int64.

    Raises:
        ValueError: The tokenizer has no end-of-text token. The tokens of a prompt with its completion do not begin
            with the tokens of the prompt. Training and generation would then have different prompts. The message has
            the prompt and the tokens.
    """
    if tokenizer.eos_token is None:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path!r} has no end-of-text token, but every completion must end "
            "with this token. Set tokenizer.eos_token."
        )
    n_prompt, n_completion = [], []
    for start in tqdm(range(0, len(prompts), 1000), desc="Measuring prompts"):
        before = list(prompts[start : start + 1000])
        after = list(completions[start : start + 1000])
        both = [prompt + completion for prompt, completion in zip(before, after, strict=True)]
        apart, together = encode(tokenizer, before)["input_ids"], encode(tokenizer, both)["input_ids"]
        for prompt, completion, ids, all_ids in zip(before, after, apart, together, strict=True):
            if all_ids[: len(ids)] != ids or len(all_ids) == len(ids):
                raise ValueError(
                    f"The tokenizer of {tokenizer.name_or_path!r} ({type(tokenizer).__name__}) does not keep the end "
                    f"of a prompt: {prompt[-20:]!r} ends with the tokens "
                    f"{tokenizer.convert_ids_to_tokens(ids[-3:])}. Followed by {completion!r}, the tokens are "
                    f"{tokenizer.convert_ids_to_tokens(all_ids[max(0, len(ids) - 3) :])}. Training and generation "
                    "would have different prompts. Use a tokenizer that appends no token to a text and merges no "
                    "characters across a space."
                )
            n_prompt.append(len(ids))
            n_completion.append(len(all_ids) - len(ids) + 1)
    return np.array(n_prompt, dtype=np.int64), np.array(n_completion, dtype=np.int64)


def _render(prompt: Any, sides: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[str]]:
    """Returns the prompt and both responses as text. Only the prompt may be truncated."""
    if isinstance(sides[0], str):
        end = tokenizer.eos_token or ""
        return prompt, [side if side.endswith(end) else side + end for side in sides]
    if tokenizer.chat_template is None:
        raise ValueError(
            f"Got responses that are messages and the tokenizer of {tokenizer.name_or_path!r}, expected a tokenizer "
            "with a chat template. Use a model with a chat template, or pairs of text."
        )
    texts = [str(tokenizer.apply_chat_template([*prompt, *side], tokenize=False)) for side in sides]
    # Some templates render an answered prompt differently. In this case, only a part of the prompt or nothing may be
    # truncated.
    for add_generation_prompt in (True, False) if prompt else ():
        begin = str(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=add_generation_prompt))
        if all(text.startswith(begin) for text in texts):
            return begin, [text[len(begin) :] for text in texts]
    return "", texts
