"""The setting of generation: models write completions of prompts, and the task says which of them are right."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset

from ...labels import Completion, LabelsById, WeakCompletions
from ...tasks import COMPLETION_COLUMNS, GenerationTask
from ...trainers.completion import CompletionTrainer
from .base import Setting, Tokenize, on_weak_labels

__all__ = ["GenerationSetting"]


@dataclass(frozen=True)
class GenerationSetting(Setting):
    """
    Prompts and completions: the answers are `list[Completion]`.

    Args:
        task ([`GenerationTask`]): Parses and scores the answers, and names the setting in results.
    """

    task: GenerationTask
    task_type: str = "CAUSAL_LM"
    columns: tuple[str, ...] = COMPLETION_COLUMNS
    labels: type[LabelsById] = WeakCompletions
    label_column: str = "completion"
    # A model without pretraining needs more than one epoch to learn what a completion looks like.
    control: dict = field(default_factory=lambda: {"learning_rate": 2e-3, "num_train_epochs": 12})

    @property
    def name(self) -> str:
        """The name of the setting in results."""
        return self.task.setting

    @property
    def rows(self) -> str:
        """The name of the rows in logs."""
        return self.task.rows

    def arguments_of(self, method: str) -> dict:
        """None: there is one way to learn from text."""
        return {}

    def with_ground_truth(self, rows: Dataset) -> Dataset:
        """The true completion as `completion`."""
        return rows.rename_column("ground_truth", "completion")

    def make_trainer(
        self, model, args, tokenizer, train, validation, tokenize: Tokenize, is_weak: bool = False
    ) -> CompletionTrainer:
        """See [`Setting.make_trainer`]; TRL tokenizes the rows itself."""
        train, validation = (rows.select_columns(["prompt", "completion"]) for rows in (train, validation))
        trainer = on_weak_labels(CompletionTrainer) if is_weak else CompletionTrainer
        return trainer(
            model=model, args=args, train_dataset=train, eval_dataset=validation, processing_class=tokenizer
        )

    def answer(
        self, trainer: CompletionTrainer, rows: Dataset, tokenize: Tokenize, directory: Path
    ) -> list[Completion]:
        """Greedy completions; finished batches are cached in `directory`."""
        return trainer.complete(rows["prompt"], keep=directory / "completions")

    def is_correct(self, answers: list[Completion], rows: Dataset) -> np.ndarray:
        """Which answers the task calls right, `(N,)` bool."""
        return np.array([self.task.is_correct(answer, row) for answer, row in zip(answers, rows, strict=True)])

    def is_same(self, answers: list[Completion], others: list[Completion], rows: Dataset) -> np.ndarray:
        """Which answers the task calls the same, `(N,)` bool."""
        return np.array([self.task.is_same(*columns) for columns in zip(answers, others, rows, strict=True)])

    def extra_scores(self, answers: list[Completion], rows: Dataset) -> dict:
        """The scores that the task reports beside the accuracy."""
        return self.task.extra_scores(answers, rows)
