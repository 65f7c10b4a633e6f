"""Defines generative tasks. A model completes a prompt, and the task checks the answer in the completion."""

import hashlib
import logging
import re
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Unpack

import numpy as np
from datasets import Dataset, DatasetDict
from datasets.utils import tqdm
from transformers import PreTrainedTokenizerBase

from ..labels import Completion
from ..results import ExperimentResult
from .splits import Loader, SplitOptions, TaskSplits
from .task import AnyTask, Source
from .tokenizing import COMPLETION_COLUMNS, completion_lengths

__all__ = ["BrokenRowError", "CompletionLoader", "GenerationTask", "load_completions"]

logger = logging.getLogger(__name__)


class BrokenRowError(ValueError):
    """The error for a row that a task cannot use. The loader drops the row and counts it by the message."""


@dataclass(frozen=True)
class GenerationTask(AnyTask):
    """
    A task whose answers are texts. A subclass defines [`~GenerationTask.example`]. If the answer is only a part of the
    completion, it also defines [`~GenerationTask.parse`]:

        class Additions(GenerationTask):
            columns = ("question", "answer")

            def example(self, row):
                return {"prompt": row["question"], "ground_truth": f" {row['answer']}"}

    Args:
        name (`str`): The name of the task in results.
        sources (`str` or `tuple[Source]`): The datasets of the task. If one does not load, the next one is tried.
        train_split, test_split (`str` or `tuple[str]`):
            Names of the splits. The first one that exists is used. If there is no test split, or `test_split` is
            `None`, a fifth of the training groups is held out.
        description (`str`, *optional*): One line about the task, for reports and cards.

    Attributes:
        setting (`str`): The setting named in results and cards. Your own tasks keep the default.
        rows (`str`): The word for rows in log messages.
        columns (`tuple[str]`): Columns that every row of the dataset must have.
        extra_columns (`tuple[str]`): Columns of the examples that the scores need besides prompt and ground truth.
    """

    name: str
    sources: str | tuple[Source, ...]
    train_split: str | tuple[str, ...] = ("train",)
    test_split: str | tuple[str, ...] | None = ("test",)
    description: str = ""

    setting: ClassVar[str] = "generation"
    rows: ClassVar[str] = "rows"
    columns: ClassVar[tuple[str, ...]] = ()
    extra_columns: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def example(self, row: dict) -> dict:
        """
        Converts a row of the dataset to an example.

        Args:
            row (`dict`): A row of the dataset.

        Returns:
            `dict` with

            - `prompt` (`str`)
            - `ground_truth` (`str`): The completion to train on, with its leading space.
            - all `extra_columns`
            - `id` (`str`, *optional*): Defaults to a hash of prompt and completion.
            - `text` (`str`, *optional*): Examples whose texts differ at most in case and spacing are duplicates.
              Defaults to a hash of the prompt.
            - `keys` (`list[str]`, *optional*): Examples that share a key stay in one split. Defaults to the prompt.

        Raises:
            BrokenRowError: The row cannot be used. The loader drops and counts such rows.
        """

    def parse(self, text: str) -> Hashable | None:
        """Returns the answer in a completion, or `None` if there is none. By default the answer is the whole text."""
        return text.strip() or None

    def is_correct(self, completion: Completion, row: dict) -> bool:
        """Returns whether a completion answers a row (with `ground_truth` and `extra_columns`) correctly."""
        answer = self._answer(completion)
        return answer is not None and answer == self.parse(row["ground_truth"])

    def is_same(self, completion: Completion, other: Completion, row: dict) -> bool:
        """Returns whether completions of a row have the same answer or, if neither has an answer, the same text."""
        answer, other_answer = self._answer(completion), self._answer(other)
        return completion.text == other.text if answer is None and other_answer is None else answer == other_answer

    def _answer(self, completion: Completion) -> Hashable | None:
        # The last word of a truncated completion may be incomplete.
        return self.parse(re.sub(r"\S+$", "", completion.text) if completion.is_cut else completion.text)

    def extra_scores(self, completions: list[Completion], rows: Dataset) -> dict:
        """Returns the scores to report besides the accuracy. `n_cut` is the number of truncated completions."""
        return {"n_cut": sum(completion.is_cut for completion in completions)}

    def baselines(self, rows: Dataset) -> list[dict]:
        """Returns baselines that need no model, each with `name`, `model` (empty), `accuracy`, `ci95` and `n`."""
        return []

    def report_sections(
        self, results: ExperimentResult, test: Dataset, completions: dict[str, list[Completion]], output_dir: Path
    ) -> list[str]:
        """
        Returns additional sections of the report, in Markdown. The task may write figures to `output_dir`.

        Args:
            results ([`ExperimentResult`]): The results of all seeds.
            test ([`~datasets.Dataset`]): Test rows of the first seed.
            completions (`dict[str, list[Completion]]`): Completions of the test rows by model: `weak`, `ceiling`, and
                each student under the name of its method.
            output_dir (`Path`): The directory of the report.
        """
        return []

    def load(self, **options) -> TaskSplits:
        """Loads and splits the rows. Accepts the options of [`load_completions`]."""
        return load_completions(self, **options)


class CompletionLoader(Loader):
    """
    Loads prompts and completions. Rows that the task cannot use, and prompts that leave no room for a completion, are
    dropped and counted.

    Args:
        task ([`GenerationTask`]): The task.
        tokenizers (`Sequence[PreTrainedTokenizerBase]`): Tokenizers of all models.
        max_length (`int`, *optional*): Maximum length of prompt and completion together, in tokens.
        max_new_tokens (`int`, *optional*): Maximum length of a completion, in tokens.
    """

    task: GenerationTask
    completion, held_out = "completion", "rows"  # for messages
    columns = COMPLETION_COLUMNS

    def __init__(
        self,
        task: GenerationTask,
        tokenizers: Sequence[PreTrainedTokenizerBase],
        max_length: int | None,
        max_new_tokens: int | None,
    ):
        super().__init__(task)
        self.tokenizers, self.max_length, self.max_new_tokens = tokenizers, max_length, max_new_tokens
        self.rows_are, self.further_columns = task.rows, (*task.extra_columns, "group")

    def has_test(self, raw: DatasetDict, dataset_path: str | None) -> bool:
        """Returns whether the dataset has a test split, and warns if not."""
        has_test = any(name in raw for name in self.task.test_split or ())
        if not has_test:
            logger.warning(
                f"{self.task.name}: the dataset has no test split. A fifth of the {self.held_out} is held out for "
                "testing"
            )
        return has_test

    def read(self, split: str, rows: Dataset, numbers: np.ndarray) -> list[dict]:
        """
        Returns the examples of a split, sorted by id.

        Raises:
            ValueError: The task's `example` returns an invalid example. Its `is_correct` rejects a ground truth. A
                completion is longer than `max_new_tokens`. No row is left.
        """
        examples: list[dict] = []
        for row in tqdm(rows, desc=f"Reading {split}"):
            try:
                example = self.task.example(row)
            except BrokenRowError as error:
                self.n_dropped[str(error)] += 1
                continue
            self._check_example(example, row)
            prompt, content = example["prompt"], f"{example['prompt']}\0{example['ground_truth']}"
            # Two prompts may differ in case or spacing alone. The comparison of texts ignores these differences, but a
            # hash does not.
            defaults = {"id": _hash(content)[:16], "text": _hash(prompt), "keys": [f"prompt: {prompt}"]}
            examples.append(defaults | example)
        for tokenizer in self.tokenizers:
            examples = self._drop_long_prompts(examples, tokenizer)
        self._check_is_correct(split, examples)
        return self.sorted_by_id(split, examples)

    def _check_example(self, example: dict, row: dict) -> None:
        """Raises `ValueError` if an example lacks a text or a column, or its `id` or `text` is not a string."""
        for name in ("prompt", "ground_truth", *({"id", "text"} & set(example))):
            if not isinstance(example.get(name), str):
                raise ValueError(
                    f"{self.task.name}: got {example.get(name)!r} as the `{name}` of an example, expected text. "
                    f"Correct `example`, or raise BrokenRowError in it for rows without text. The row is {row}."
                )
        missing = [name for name in self.task.extra_columns if name not in example]
        if missing:
            raise ValueError(
                f"{self.task.name}: got an example without {missing[0]!r}, expected all `extra_columns`. Add it to "
                "the dict that `example` returns."
            )

    def _check_is_correct(self, split: str, examples: list[dict]) -> None:
        """Raises `ValueError` if the task rejects a ground truth, because no model could answer such a row."""
        answers = [
            self.task.is_correct(Completion(example["ground_truth"], is_cut=False), example) for example in examples
        ]
        faulty = [n for n, answer in enumerate(answers) if not (isinstance(answer, bool | np.bool_) and answer)]
        if faulty:
            first = examples[faulty[0]]
            raise ValueError(
                f"{self.task.name}: got {answers[faulty[0]]!r} from `is_correct` for the ground truth "
                f"{first['ground_truth']!r} of the prompt {first['prompt'][-60:]!r}, expected True ({len(faulty)} of "
                f"{len(examples)} {self.rows_are} of the split {split!r}). Correct `parse` or `is_correct`, or raise "
                "BrokenRowError in `example` for such rows."
            )

    def _drop_long_prompts(self, examples: list[dict], tokenizer: PreTrainedTokenizerBase) -> list[dict]:
        """Returns the examples whose prompts leave room for a completion, and counts the dropped examples."""
        prompts, completions = completion_lengths(
            [example["prompt"] for example in examples], [example["ground_truth"] for example in examples], tokenizer
        )
        n_new = self.max_new_tokens
        if n_new is not None and len(completions) and completions.max() > n_new:
            longest = examples[int(completions.argmax())]["ground_truth"]
            raise ValueError(
                f"{self.task.name}: got the {self.completion} {longest!r} of {completions.max()} tokens with its "
                f"end-of-text token, expected at most {n_new} (--max_new_tokens). Set --max_new_tokens "
                f"{completions.max()}."
            )
        if self.max_length is None:
            return examples
        n_prompt = self.max_length - (n_new or 0)
        fits = prompts <= n_prompt
        self.n_dropped[f"a prompt of more than {n_prompt} tokens"] += int((~fits).sum())
        return [example for example, is_short in zip(examples, fits, strict=True) if is_short]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def load_completions(
    task: GenerationTask,
    *,
    tokenizers: Sequence[PreTrainedTokenizerBase] = (),
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    **options: Unpack[SplitOptions],
) -> TaskSplits:
    """
    Loads prompts and completions, drops broken rows, and splits the rest.

    Args:
        task ([`GenerationTask`]): The task.
        tokenizers (`Sequence[PreTrainedTokenizerBase]`, *optional*): Tokenizers of all models. Without tokenizers, no
            length is checked.
        max_length (`int`, *optional*): Maximum length of prompt and completion together, in tokens. Prompts that leave
            no room for `max_new_tokens` are dropped.
        max_new_tokens (`int`, *optional*): Maximum length of a completion, in tokens.
        options: The options of [`w2s_hf.tasks.SplitOptions`]: `dataset_path`, `raw`, `n_train`, `n_weak`,
            `n_validation`, `n_test`, `n_links`, `seed`.

    Returns:
        [`TaskSplits`] whose parts have the columns `COMPLETION_COLUMNS`, the task's `extra_columns`, `group` and
        `ground_truth`.

    Raises:
        FileNotFoundError, ConnectionError: See [`w2s_hf.tasks.loading.load_raw`].
        ValueError: A column is missing, there are too few rows, or `max_new_tokens` is too small for the completions.
    """
    return CompletionLoader(task, tokenizers, max_length, max_new_tokens).load(**options)
