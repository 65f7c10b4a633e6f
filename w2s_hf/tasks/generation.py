"""Generative tasks: a model writes a completion of a prompt, and the task says whether the answer in it is right."""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from datasets import Dataset, DatasetDict
from datasets.utils import tqdm
from transformers import PreTrainedTokenizerBase

from ..labels import Completion
from .dealing import (
    LINK_ROWS,
    TaskSplits,
    counted,
    deal_parts,
    group_rows,
    hold_out,
    read_split,
    set_apart,
    unique_rows,
)
from .loading import load_raw
from .sizes import link_sizes, part_sizes
from .task import Source
from .tokenizing import COMPLETION_COLUMNS, completion_lengths

__all__ = ["BrokenRowError", "GenerationTask", "load_completions"]

logger = logging.getLogger(__name__)


class BrokenRowError(ValueError):
    """A row that a task cannot use. The loader leaves it out and counts it under the message."""


@dataclass(frozen=True)
class GenerationTask:
    """
    A task whose answers are text. A subclass defines [`~GenerationTask.example`], and [`~GenerationTask.parse`] where
    the answer is a part of the completion:

        class Additions(GenerationTask):
            columns = ("question", "answer")

            def example(self, row):
                return {"prompt": row["question"], "ground_truth": f" {row['answer']}"}

    Args:
        name (`str`): Its name in results.
        sources (`str` or `tuple[Source]`): Where its rows are; the next one is tried when one does not load.
        train_split, test_split (`tuple[str]`):
            Names of the splits, the first that is there. Without a test split (`None`, or none is there), a fifth is
            held out.
        description (`str`, *optional*): One line for people.

    Attributes:
        setting (`str`): The setting of its results and cards.
        rows (`str`): What its rows are called in logs and reports.
        columns (`tuple[str]`): Columns that every row of the dataset must have.
        extra_columns (`tuple[str]`): Columns of its examples that its scores need, beside prompt and ground truth.
    """

    name: str
    sources: str | tuple[Source, ...]
    train_split: tuple[str, ...] = ("train",)
    test_split: tuple[str, ...] | None = ("test",)
    description: str = ""

    setting: ClassVar[str] = "generation"
    rows: ClassVar[str] = "rows"
    columns: ClassVar[tuple[str, ...]] = ()
    extra_columns: ClassVar[tuple[str, ...]] = ()
    # The loaders read these attributes of every task.
    label: ClassVar[None] = None
    expected_columns: ClassVar[str] = "a prompt and its completion"

    def __post_init__(self):
        if isinstance(self.sources, str):
            object.__setattr__(self, "sources", (Source(self.sources),))

    def example(self, row: dict) -> dict:
        """
        Returns an example of a row of the dataset.

        Args:
            row (`dict`): A row of the dataset.

        Returns:
            `dict` with `prompt`, `ground_truth` (the completion to train on, with its leading space) and
            `extra_columns`. Optional: `id` (default: a hash of prompt and completion), `text` (default: the prompt;
            examples of equal text are duplicates) and `keys` (examples that share one stay in one part).

        Raises:
            BrokenRowError: the row cannot be used.
        """
        raise NotImplementedError

    def parse(self, text: str) -> Hashable | None:
        """Returns the answer in a completion, or `None` where it has none. By default the whole text is the answer."""
        return text.strip() or None

    def is_correct(self, completion: Completion, row: dict) -> bool:
        """Returns whether a completion has the right answer to a row with `ground_truth` and `extra_columns`."""
        answer = self._answer(completion)
        return answer is not None and answer == self.parse(row["ground_truth"])

    def is_same(self, completion: Completion, other: Completion, row: dict) -> bool:
        """Returns whether two completions of the same row have the same answer, or are the same text."""
        answer, other_answer = self._answer(completion), self._answer(other)
        return completion.text == other.text if answer is None and other_answer is None else answer == other_answer

    def _answer(self, completion: Completion) -> Hashable | None:
        # The last word of a completion that was cut may be incomplete.
        return self.parse(re.sub(r"\S+$", "", completion.text) if completion.is_cut else completion.text)

    def extra_scores(self, completions: list[Completion], rows: Dataset) -> dict:
        """Returns the scores that results report beside the accuracy."""
        return {"n_cut": sum(completion.is_cut for completion in completions)}

    def baselines(self, rows: Dataset) -> list[dict]:
        """Returns baselines without a model: `name`, `model` (empty), `accuracy`, `ci95` and `n` of each."""
        return []

    def report_sections(
        self, results: dict, test: Dataset, completions: dict[str, list[Completion]], output_dir: Path
    ) -> list[str]:
        """
        Returns sections of the report, in Markdown. May write figures to `output_dir`.

        Args:
            results (`dict`): Content of `results.json`.
            test ([`~datasets.Dataset`]): Test rows of the first seed.
            completions (`dict[str, list[Completion]]`): Completions of the test rows, by model: `weak`, `ceiling`, and
                students by their method.
            output_dir (`Path`): The directory of the report.
        """
        return []

    def load(self, **options) -> TaskSplits:
        """Loads and splits the rows, see [`load_completions`] for the options."""
        return load_completions(self, **options)


def load_completions(
    task: GenerationTask,
    *,
    dataset_path: str | None = None,
    raw: DatasetDict | None = None,
    tokenizers: Sequence[PreTrainedTokenizerBase] = (),
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    n_train: int | None = None,
    n_weak: int | None = None,
    n_validation: int | None = None,
    n_test: int | None = None,
    n_links: int = 0,
    seed: int = 0,
) -> TaskSplits:
    """
    Loads prompts and completions, leaves out broken rows, and splits the rest.

    Args:
        task ([`GenerationTask`]): The task.
        dataset_path, raw, n_train, n_weak, n_validation, n_test, n_links, seed: As in
            [`w2s_hf.tasks.splits.load_splits`].
        tokenizers (`Sequence[PreTrainedTokenizerBase]`, *optional*): Tokenizers of all models.
        max_length (`int`, *optional*): Tokens of prompt and completion. A prompt that leaves no room for
            `max_new_tokens` is left out.
        max_new_tokens (`int`, *optional*): Tokens of a completion.

    Returns:
        [`TaskSplits`] whose parts have `COMPLETION_COLUMNS`, the task's `extra_columns`, `group` and `ground_truth`.

    Raises:
        FileNotFoundError, ConnectionError: see [`w2s_hf.tasks.loading.load_raw`].
        ValueError: a column is missing, there are too few rows, or `max_new_tokens` is too small for the completions.
    """
    if raw is not None:
        source = {"id": task.sources[0].id, "revision": "generated"}
    else:
        raw, source = load_raw(task, dataset_path)
    wanted = part_sizes(n_train, n_weak, n_validation)
    links = link_sizes(wanted, n_links)
    n_dropped: Counter[str] = Counter()

    def read(names: tuple[str, ...]) -> list[dict]:
        split, rows, _ = read_split(task, raw, names)
        examples = _read_examples(task, split, rows, n_dropped)
        for tokenizer in tokenizers:
            examples = _fitting(task, examples, tokenizer, max_length, max_new_tokens, n_dropped)
        if not examples:
            raise ValueError(f"{task.name}: no row of the split {split!r} is left; left out: {counted(n_dropped)}.")
        return sorted(examples, key=lambda example: example["id"])

    train, spare = read(task.train_split), []
    if any(name in raw for name in task.test_split or ()):
        test = read(task.test_split)
        spare = read((LINK_ROWS,)) if LINK_ROWS in raw else []
        group_rows(train + test)
        spare = set_apart(spare, train + test)
    else:
        logger.warning(f"{task.name}: there is no split to test on; a fifth of the rows is held out")
        train, test = hold_out(task, train, seed)
    spare = unique_rows(task, "link", spare, apart_from=train + test)
    test = unique_rows(task, "test", test)
    train = unique_rows(task, "training", train, apart_from=test)
    n_dropped = +n_dropped
    if n_dropped:
        logger.warning(f"{task.name}: rows left out: {counted(n_dropped)}")
    columns = (*COMPLETION_COLUMNS, *task.extra_columns)
    parts, of_links = deal_parts(task, train, test, wanted, n_test, columns, seed, links, spare)
    return TaskSplits(
        task, **parts, source=source, columns=COMPLETION_COLUMNS, n_dropped=dict(n_dropped), links=of_links
    )


def _read_examples(task: GenerationTask, split: str, rows: Dataset, n_dropped: Counter) -> list[dict]:
    examples = []
    for row in tqdm(rows, desc=f"Reading {split}"):
        try:
            example = task.example(row)
        except BrokenRowError as error:
            n_dropped[str(error)] += 1
            continue
        content = hashlib.sha256(f"{example['prompt']}\0{example['ground_truth']}".encode()).hexdigest()
        defaults = {"id": content[:16], "text": example["prompt"], "keys": [f"prompt: {example['prompt']}"]}
        examples.append(defaults | example)
    return examples


def _fitting(
    task: GenerationTask,
    examples: list[dict],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    max_new_tokens: int | None,
    n_dropped: Counter,
) -> list[dict]:
    """Returns the examples whose prompts leave room for a completion."""
    prompts, completions = completion_lengths(
        [example["prompt"] for example in examples], [example["ground_truth"] for example in examples], tokenizer
    )
    if max_new_tokens is not None and len(completions) and completions.max() > max_new_tokens:
        longest = examples[int(completions.argmax())]["ground_truth"]
        raise ValueError(
            f"{task.name}: the completion {longest!r} is {completions.max()} tokens with its end-of-text token, and "
            f"completions are cut after {max_new_tokens}: set --max_new_tokens {completions.max()}."
        )
    if max_length is None:
        return examples
    fits = prompts + (max_new_tokens or 0) <= max_length
    n_dropped[f"a prompt of more than {max_length - (max_new_tokens or 0)} tokens"] += int((~fits).sum())
    return [example for example, is_short in zip(examples, fits, strict=True) if is_short]
