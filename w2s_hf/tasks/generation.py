"""Generative tasks: a model writes a completion of a prompt, and the task says whether the answer in it is right."""

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
    """A row that a task cannot use. The loader leaves it out and counts it under the message."""


@dataclass(frozen=True)
class GenerationTask(AnyTask):
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
        train_split, test_split (`str` or `tuple[str]`):
            Names of the splits, the first that is there. Without a test split (`None`, or none is there), a fifth is
            held out.
        description (`str`, *optional*): One line for people.

    Attributes:
        setting (`str`): The setting of its results and cards, which a task of your own leaves as it is.
        rows (`str`): What its rows are called in logs.
        columns (`tuple[str]`): Columns that every row of the dataset must have.
        extra_columns (`tuple[str]`): Columns of its examples that its scores need, beside prompt and ground truth.
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
        Returns an example of a row of the dataset.

        Args:
            row (`dict`): A row of the dataset.

        Returns:
            `dict` with `prompt`, `ground_truth` (the completion to train on, with its leading space) and
            `extra_columns`. Optional: `id` (default: a hash of prompt and completion), `text` (default: a hash of the
            prompt; examples whose texts are equal up to case and spacing are duplicates) and `keys` (default: the
            prompt; examples that share one stay in one part).

        Raises:
            BrokenRowError: the row cannot be used.
        """

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
        self, results: ExperimentResult, test: Dataset, completions: dict[str, list[Completion]], output_dir: Path
    ) -> list[str]:
        """
        Returns sections of the report, in Markdown. May write figures to `output_dir`.

        Args:
            results ([`ExperimentResult`]): The results of all seeds.
            test ([`~datasets.Dataset`]): Test rows of the first seed.
            completions (`dict[str, list[Completion]]`): Completions of the test rows, by model: `weak`, `ceiling`, and
                students by their method.
            output_dir (`Path`): The directory of the report.
        """
        return []

    def load(self, **options) -> TaskSplits:
        """Loads and splits the rows, see [`load_completions`] for the options."""
        return load_completions(self, **options)


class CompletionLoader(Loader):
    """
    Prompts and their completions. Rows that a task cannot use, and prompts that leave no room for a completion, are
    left out and counted.

    Args:
        task ([`GenerationTask`]): The task.
        tokenizers (`Sequence[PreTrainedTokenizerBase]`): Tokenizers of all models.
        max_length (`int`, *optional*): Tokens of prompt and completion.
        max_new_tokens (`int`, *optional*): Tokens of a completion.
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
        """Returns whether there is a split to test on, and warns if not."""
        has_test = any(name in raw for name in self.task.test_split or ())
        if not has_test:
            logger.warning(
                f"{self.task.name}: there is no split to test on; a fifth of the {self.held_out} is held out"
            )
        return has_test

    def read(self, split: str, rows: Dataset, numbers: np.ndarray) -> list[dict]:
        """
        Returns the examples of a split, sorted by id.

        Raises:
            ValueError: the task makes no example as it should or rejects a ground truth, a completion is longer than
                `max_new_tokens`, or no row is left.
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
            # Prompts may differ by case or spacing alone, which comparisons of texts ignore: so a hash.
            defaults = {"id": _hash(content)[:16], "text": _hash(prompt), "keys": [f"prompt: {prompt}"]}
            examples.append(defaults | example)
        for tokenizer in self.tokenizers:
            examples = self._fitting(examples, tokenizer)
        self._check_is_correct(split, examples)
        return self.sorted_by_id(split, examples)

    def _check_example(self, example: dict, row: dict) -> None:
        """Raises `ValueError` where a text or a column is missing in the example of a row, or `id` is no text."""
        for name in ("prompt", "ground_truth", *({"id", "text"} & set(example))):
            if not isinstance(example.get(name), str):
                raise ValueError(
                    f"{self.task.name}: got {example.get(name)!r} as the `{name}` of an example, expected text; or "
                    f"raise BrokenRowError for rows without one. The row: {row}"
                )
        missing = [name for name in self.task.extra_columns if name not in example]
        if missing:
            raise ValueError(
                f"{self.task.name}: got an example without {missing[0]!r}, which is in `extra_columns`. Add it to "
                "what `example` returns."
            )

    def _check_is_correct(self, split: str, examples: list[dict]) -> None:
        """Raises `ValueError` where the task rejects a ground truth: no model could answer such a row."""
        answers = [
            self.task.is_correct(Completion(example["ground_truth"], is_cut=False), example) for example in examples
        ]
        faulty = [n for n, answer in enumerate(answers) if not (isinstance(answer, bool | np.bool_) and answer)]
        if faulty:
            first = examples[faulty[0]]
            raise ValueError(
                f"{self.task.name}: got {answers[faulty[0]]!r} from `is_correct` for the ground truth "
                f"{first['ground_truth']!r} of the prompt {first['prompt'][-60:]!r}, expected True ({len(faulty)} of "
                f"{len(examples)} {self.rows_are} of the split {split!r}). Correct `parse` or `is_correct`; or raise "
                "BrokenRowError in `example` for such rows."
            )

    def _fitting(self, examples: list[dict], tokenizer: PreTrainedTokenizerBase) -> list[dict]:
        """Returns the examples whose prompts leave room for a completion."""
        prompts, completions = completion_lengths(
            [example["prompt"] for example in examples], [example["ground_truth"] for example in examples], tokenizer
        )
        n_new = self.max_new_tokens
        if n_new is not None and len(completions) and completions.max() > n_new:
            longest = examples[int(completions.argmax())]["ground_truth"]
            raise ValueError(
                f"{self.task.name}: the {self.completion} {longest!r} is {completions.max()} tokens with its "
                f"end-of-text token, and completions are cut after {n_new}: set --max_new_tokens {completions.max()}."
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
    Loads prompts and completions, leaves out broken rows, and splits the rest.

    Args:
        task ([`GenerationTask`]): The task.
        tokenizers (`Sequence[PreTrainedTokenizerBase]`, *optional*): Tokenizers of all models.
        max_length (`int`, *optional*): Tokens of prompt and completion. A prompt that leaves no room for
            `max_new_tokens` is left out.
        max_new_tokens (`int`, *optional*): Tokens of a completion.
        options: [`w2s_hf.tasks.SplitOptions`]: `dataset_path`, `raw`, `n_train`, `n_weak`, `n_validation`, `n_test`,
            `n_links`, `seed`.

    Returns:
        [`TaskSplits`] whose parts have `COMPLETION_COLUMNS`, the task's `extra_columns`, `group` and `ground_truth`.

    Raises:
        FileNotFoundError, ConnectionError: see [`w2s_hf.tasks.loading.load_raw`].
        ValueError: a column is missing, there are too few rows, or `max_new_tokens` is too small for the completions.
    """
    return CompletionLoader(task, tokenizers, max_length, max_new_tokens).load(**options)
