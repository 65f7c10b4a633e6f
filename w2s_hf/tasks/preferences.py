"""Defines preference tasks, in which a model predicts the better one of two responses to a prompt."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Unpack

import numpy as np
from datasets import Dataset, DatasetDict
from datasets.utils import tqdm
from transformers import PreTrainedTokenizerBase

from .splits import Loader, SplitOptions, TaskSplits
from .task import AnyTask, Source, normal, random_key
from .tokenizing import PAIR_COLUMNS, response_lengths

__all__ = ["ANTHROPIC_HH", "PREFERENCE_TASKS", "PairLoader", "PreferenceTask", "load_pairs"]

logger = logging.getLogger(__name__)

# This text begins an assistant's turn in Anthropic's transcripts.
_ASSISTANT = "\n\nAssistant:"


@dataclass(frozen=True)
class PreferenceTask(AnyTask):
    """
    A task of response pairs, in any of TRL's preference formats.

    A row has the columns `chosen` and `rejected`, and `prompt` if the responses do not repeat it. Each is text, or a
    list of messages with `role` and `content`. Without `prompt`, the prompt is the common beginning of both responses.
    It ends after a whole message. In texts, it ends after the last `Assistant:`. A text without `Assistant:` is split
    after the last common line.

    Args:
        name (`str`): The name of the task in results.
        sources (`str` or `tuple[Source]`): The datasets of the task. If one does not load, the next one is tried.
        train_split, test_split (`str` or `tuple[str]`):
            Names of the splits. The first one that exists is used. With `test_split=None`, a fifth of the training
            groups is held out.
        group_by_prompt (`bool`, *optional*, defaults to `True`):
            Whether to keep pairs whose conversations begin with the same turn in one split. Datasets often repeat a
            dialogue with one turn, with two turns, and so on.
        description (`str`, *optional*): One line about the task, for reports and cards.
    """

    name: str
    sources: str | tuple[Source, ...]
    train_split: str | tuple[str, ...] = ("train",)
    test_split: str | tuple[str, ...] | None = ("test",)
    group_by_prompt: bool = True
    description: str = ""

    columns = ("chosen", "rejected")
    class_names = ("second", "first")

    def example(self, row: dict) -> dict:
        """
        Converts a row of the dataset to a pair. A hash of both responses decides which one comes first, so that the
        order does not reveal the label.

        Args:
            row (`dict`): A row of the dataset.

        Returns:
            `dict` with

            - `id` (`str`): A hash of the content, the same for either order of the responses.
            - `prompt`, `first`, `second` (`str` or `list[dict]`)
            - `text` (`str`): The words of prompt and responses, to find duplicates.
            - `keys` (`list[str]`): Rows that share a key stay in one split.
            - `ground_truth` (`int`): 1 if the first response is the chosen one, else 0.

        Raises:
            UnusablePairError: A response is empty, or the responses are equal.
            ValueError: A response is neither text nor messages, or prompt and responses are of different kinds.
        """
        prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
        for name in ("tools", "chat_template_kwargs"):
            if row.get(name):
                raise ValueError(f"has {name!r}, which is not supported. Render the dialogues to text")
        if chosen is None or rejected is None:
            raise UnusablePairError("an empty response")
        kinds = {_kind(name, value) for name, value in row.items() if name in ("prompt", *self.columns) and value}
        if len(kinds) > 1:
            raise ValueError(
                "has text and messages, expected only text or only messages. Convert the texts to messages"
            )
        is_identical = chosen == rejected
        if prompt is None:
            prompt, chosen, rejected = _split_prompt(chosen, rejected)
        words = [normal(_words(response)) for response in (chosen, rejected)]
        if is_identical or (words[0] == words[1] != ""):
            raise UnusablePairError("identical responses")
        if not all(words):
            raise UnusablePairError("an empty response")
        # Only the words are hashed. Pairs that differ only in spacing therefore have the same order.
        sides = [random_key(normal(f"{_words(prompt)}\n{_words(side)}"), "side") for side in (chosen, rejected)]
        is_first = sides[0] < sides[1]
        first, second = (chosen, rejected) if is_first else (rejected, chosen)
        content = json.dumps([prompt, first, second], sort_keys=True)
        row_id = hashlib.sha256(content.encode()).hexdigest()[:16]
        first_turn = normal(_first_turn(prompt)) if self.group_by_prompt else ""
        return {
            "id": row_id,
            "prompt": prompt,
            "first": first,
            "second": second,
            "text": "\0".join(_words(part) for part in (prompt, first, second)),
            "keys": [first_turn or row_id],
            "ground_truth": int(is_first),
        }


class UnusablePairError(ValueError):
    """The error for a pair that cannot be compared. The loader drops the pair, and counts dropped pairs by message."""


def _kind(name: str, value) -> type:
    if isinstance(value, str):
        return str
    if isinstance(value, list) and all(isinstance(message, dict) and "role" in message for message in value):
        for message in value:
            content = message.get("content")
            if not isinstance(content, str) and (content is not None or not message.get("tool_calls")):
                raise ValueError(f"has a message in {name!r} with the content {content!r}, expected text")
        return list
    raise ValueError(f"has {type(value).__name__} in {name!r}, expected text, or messages with `role` and `content`")


def _split_prompt(chosen: str | list, rejected: str | list) -> tuple[str | list, str | list, str | list]:
    if isinstance(chosen, str) and isinstance(rejected, str):
        common = os.path.commonprefix([chosen, rejected])
        n = common.rfind(_ASSISTANT) + len(_ASSISTANT) if _ASSISTANT in common else common.rfind("\n") + 1
    else:
        n = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    return chosen[:n], chosen[n:], rejected[n:]


def _words(part: str | list) -> str:
    """Returns the words of a text, or of messages and their tool calls."""
    if isinstance(part, str):
        return part
    calls = [json.dumps(message["tool_calls"]) for message in part if message.get("tool_calls")]
    return "\n".join([*(message.get("content") or "" for message in part), *calls])


def _first_turn(prompt: str | list) -> str:
    """Returns the first turn of a dialogue, which does not depend on the number of turns that follow."""
    if isinstance(prompt, str):
        return prompt.partition(_ASSISTANT)[0]
    users = [message for message in prompt if message["role"] == "user"]
    return _words(users[:1])


class PairLoader(Loader):
    """Loads pairs of responses. The order in a pair is random, so that no pair is dropped to balance the classes."""

    task: PreferenceTask
    row, rows_are = "pair", "pairs"
    columns = PAIR_COLUMNS

    def __init__(self, task: PreferenceTask, tokenizers: Sequence[PreTrainedTokenizerBase], max_length: int | None):
        super().__init__(task)
        self.tokenizers, self.max_length = tokenizers, max_length

    def has_test(self, raw: DatasetDict, dataset_path: str | None) -> bool:
        if self.task.test_split is None or dataset_path is None or len(raw) > 1:
            return self.task.test_split is not None
        logger.warning(
            f"{self.task.name}: {dataset_path!r} has one split, {next(iter(raw))!r}. A fifth of the rows is "
            "held out for testing"
        )
        return False

    def read(self, split: str, rows: Dataset, numbers: np.ndarray) -> list[dict]:
        task, max_length, examples = self.task, self.max_length, []
        for row, number in zip(tqdm(rows, desc=f"Reading {split}"), numbers.tolist(), strict=True):
            try:
                example = task.example(row)
            except UnusablePairError as error:
                self.n_dropped[str(error)] += 1
            except ValueError as error:
                raise ValueError(f"{task.name}: row {number} of the split {split!r} {error}.") from error
            else:
                examples.append(example)
        for tokenizer in self.tokenizers if max_length is not None else ():
            lengths = response_lengths(examples, tokenizer)
            self.n_dropped[f"a response of more than {max_length} tokens"] += int((lengths > max_length).sum())
            examples = [example for example, length in zip(examples, lengths, strict=True) if length <= max_length]
        return self.sorted_by_id(split, examples)


def load_pairs(
    task: PreferenceTask,
    *,
    tokenizers: Sequence[PreTrainedTokenizerBase] = (),
    max_length: int | None = None,
    **options: Unpack[SplitOptions],
) -> TaskSplits:
    """
    Loads pairs, drops pairs that cannot be compared, and splits the rest.

    Pairs are dropped before the split and counted in `n_dropped`. All models therefore use the same pairs, even
    if their tokenizers differ. The order of the responses is random, so that about half of the pairs belong to each
    class. No pair is dropped to balance the classes. As in [`w2s_hf.tasks.load_task`], duplicates count once and pairs
    with contradictory labels are dropped. Groups stay in one split, and no test pair is used for training.

    Args:
        task ([`PreferenceTask`]): The task.
        tokenizers (`Sequence[PreTrainedTokenizerBase]`, *optional*):
            Tokenizers of all models. Pairs with a response longer than `max_length` for any of them are dropped.
        max_length (`int`, *optional*): Maximum length of a text, in tokens. A prompt can be truncated to this
            length. Responses are never truncated.
        options: The options of [`w2s_hf.tasks.SplitOptions`]: `dataset_path`, `raw`, `n_train`, `n_weak`,
            `n_validation`, `n_test`, `n_links`, `seed`. If a local file or directory has only one split, a fifth of it
            is held out for testing.

    Returns:
        [`TaskSplits`] whose parts have the columns `PAIR_COLUMNS`, `group` and `ground_truth`.

    Raises:
        FileNotFoundError, ConnectionError: See [`w2s_hf.tasks.loading.load_raw`].
        ValueError: A split or column is missing, a row is not a pair, or there are too few pairs.
    """
    return PairLoader(task, tokenizers, max_length).load(**options)


ANTHROPIC_HH = PreferenceTask(
    name="anthropic_hh",
    description="Which of two assistant replies did people prefer as more helpful or less harmful?",
    sources=(Source("Anthropic/hh-rlhf"),),
)

PREFERENCE_TASKS = {task.name: task for task in (ANTHROPIC_HH,)}
