"""What the settings of the paper differ in: how a model learns labels, makes them, and is scored by them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from datasets import Dataset, Value
from peft import PeftModel
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from ... import metrics
from ..._compat import next_log
from ...config import METHODS
from ...labels import LabelsById, WeakLabels, as_probabilities
from ...tasks import PAIR_COLUMNS, TEXT_COLUMNS, tokenize_pairs, tokenize_rows
from ...trainers import RewardPairTrainer, WeakToStrongTrainer

__all__ = ["CLASSIFICATION", "REWARD", "ProbabilitySetting", "Setting", "metric_name", "on_weak_labels"]

# What the share of validation rows whose label a model predicts is called in logs, of true labels and of weak ones.
_ACCURACY, _WEAK_AGREEMENT = "accuracy", "weak_agreement"

# What [`Workbench.tokenize`] does for one model.
Tokenize = Callable[[Dataset], Dataset]


class Setting(ABC):
    """
    A setting. What a model answers to `N` rows is, of whatever kind, what [`labels`] holds.

    Attributes:
        name (`str`): In results.
        rows (`str`): What its rows are called.
        task_type (`str`): Of [`load_student`].
        columns (`tuple[str]`): What a model is given of a row.
        labels (`type`): [`WeakLabels`] or [`WeakCompletions`].
        label_column (`str`): The column of training rows that its `join` adds.
        chance (`float`, *optional*): Accuracy of guessing, where it is the same for all rows.
        control (`dict`): Training arguments of the control that was not pretrained: all its weights learn.
    """

    name: str
    rows: str
    task_type: str
    columns: tuple[str, ...]
    labels: type[LabelsById]
    label_column: str
    chance: float | None = None
    control: dict

    @abstractmethod
    def arguments_of(self, method: str) -> dict:
        """Training arguments of a method."""

    @abstractmethod
    def with_ground_truth(self, rows: Dataset) -> Dataset:
        """Rows to learn from ground truth."""

    @abstractmethod
    def make_trainer(
        self,
        model: PreTrainedModel | PeftModel,
        args: TrainingArguments,
        tokenizer: PreTrainedTokenizerBase,
        train: Dataset,
        validation: Dataset,
        tokenize: Tokenize,
        is_weak: bool = False,
    ) -> Trainer:
        """Its trainer, on rows with `columns` and the label column; `is_weak` where the labels are a model's."""

    @abstractmethod
    def answer(self, trainer: Trainer, rows: Dataset, tokenize: Tokenize, directory: Path):
        """What the trainer's model answers to rows with `columns`; `directory` may keep what is done of it."""

    @abstractmethod
    def is_correct(self, answers, rows: Dataset) -> np.ndarray:
        """Which answers are right, `(N,)` bool; rows with `ground_truth`."""

    @abstractmethod
    def is_same(self, answers, others, rows: Dataset) -> np.ndarray:
        """Which answers to the same rows are the same, `(N,)` bool."""

    @abstractmethod
    def extra_scores(self, answers, rows: Dataset) -> dict:
        """What is reported besides the accuracy."""

    def scores(self, answers, rows: Dataset) -> dict:
        """Accuracy with its interval, and what else is reported of the test rows."""
        correct = self.is_correct(answers, rows)
        return {
            "accuracy": float(correct.mean()),
            "ci95": list(metrics.accuracy_interval(correct)),
            "n": len(correct),
            **self.extra_scores(answers, rows),
        }


@dataclass(frozen=True)
class ProbabilitySetting(Setting):
    """
    Yes or no, with a probability: the answers are `(N, 2)`.

    Args:
        name, rows, task_type, columns: See [`Setting`].
        trainer (`type`): Its `predict_proba` returns `(N, 2)`.
        tokenize (`Callable`): Of rows with `columns`, a tokenizer and a longest length.
        add_labels (`Callable`): Tokenized rows with the `labels` of others, as the trainer wants them.
    """

    name: str
    rows: str
    task_type: str
    columns: tuple[str, ...]
    trainer: type
    tokenize: Callable[..., Dataset]
    add_labels: Callable[[Dataset, Dataset], Dataset]
    labels: type[LabelsById] = WeakLabels
    label_column: str = "labels"
    chance: float | None = 0.5
    control: dict = field(default_factory=lambda: {"learning_rate": 2e-3})

    def arguments_of(self, method: str) -> dict:
        """Which loss."""
        return {"loss_type": METHODS[method]}

    def with_ground_truth(self, rows: Dataset) -> Dataset:
        """`labels` as int64."""
        return rows.rename_column("ground_truth", "labels").cast_column("labels", Value("int64"))

    def make_trainer(
        self, model, args, tokenizer, train, validation, tokenize: Tokenize, is_weak: bool = False
    ) -> Trainer:
        """See [`Setting.make_trainer`]."""
        trainer = on_weak_labels(self.trainer) if is_weak else self.trainer
        return trainer(
            model=model,
            args=args,
            train_dataset=tokenize(train),
            eval_dataset=tokenize(validation),
            processing_class=tokenizer,
            compute_metrics=_accuracy_on_given_labels,
        )

    def answer(self, trainer: Trainer, rows: Dataset, tokenize: Tokenize, directory: Path) -> np.ndarray:
        """Class probabilities `(N, 2)` float32."""
        return trainer.predict_proba(tokenize(rows))

    def is_correct(self, answers: np.ndarray, rows: Dataset) -> np.ndarray:
        """Is the more probable class the true one?"""
        return metrics.is_correct(answers, np.array(rows["ground_truth"]))

    def is_same(self, answers: np.ndarray, others: np.ndarray, rows: Dataset) -> np.ndarray:
        """Are the more probable classes the same?"""
        return metrics.is_correct(answers, others.argmax(axis=1))

    def extra_scores(self, answers: np.ndarray, rows: Dataset) -> dict:
        """AUROC and calibration error."""
        truth = np.array(rows["ground_truth"])
        return {
            "auroc": metrics.auroc(answers[:, 1], truth),
            "ece": metrics.expected_calibration_error(answers, truth),
        }


def _accuracy_on_given_labels(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy against the labels of the rows: weak ones for a student, as in the paper's early stopping."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    labels = prediction.label_ids
    labels = labels.argmax(axis=1) if labels.ndim == 2 else np.rint(labels)  # P(class 1), or the class
    return {_ACCURACY: float((logits.argmax(axis=1) == labels).mean())}


class _OnWeakLabels:
    """Calls a trainer's accuracy `weak_agreement`, in its metrics and in its logs."""

    def evaluation_loop(self, *args, **kwargs) -> EvalLoopOutput:
        """As in the trainer, under the other name."""
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        if f"{prefix}_{_ACCURACY}" in output.metrics:
            output.metrics[f"{prefix}_{_WEAK_AGREEMENT}"] = output.metrics.pop(f"{prefix}_{_ACCURACY}")
        return output

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """As in the trainer, under the other name also for what TRL's trainers add."""
        for kept in (next_log(self, "train"), next_log(self, "eval")):
            if _ACCURACY in kept:
                kept[_WEAK_AGREEMENT] = kept.pop(_ACCURACY)
        super().log(logs, *args, **kwargs)


@cache
def on_weak_labels(trainer: type[Trainer]) -> type[Trainer]:
    """
    A trainer for labels that a model made. What the trainer calls `accuracy`, the share of rows whose label the model
    predicts, is then no accuracy: logs and `metric_for_best_model` call it `weak_agreement`.
    """
    return type(trainer.__name__, (_OnWeakLabels, trainer), {})


def metric_name(name: str | None, is_weak: bool) -> str | None:
    """
    `metric_for_best_model` of one training. In a recipe `accuracy` and `weak_agreement` both mean the share of
    validation rows whose label the model predicts; it is logged as `weak_agreement` where labels are weak.
    """
    if name is None or name.removeprefix("eval_") not in (_ACCURACY, _WEAK_AGREEMENT):
        return name
    return _WEAK_AGREEMENT if is_weak else _ACCURACY


def _add_labels(tokenized: Dataset, rows: Dataset) -> Dataset:
    return tokenized.add_column("labels", rows["labels"][:], feature=rows.features["labels"])


def _add_soft_label(tokenized: Dataset, rows: Dataset) -> Dataset:
    first_is_better = as_probabilities(rows["labels"][:])[:, 1]
    return tokenized.add_column("soft_label", first_is_better.tolist(), feature=Value("float32"))


CLASSIFICATION = ProbabilitySetting(
    "classification", "rows", "SEQ_CLS", TEXT_COLUMNS, WeakToStrongTrainer, tokenize_rows, _add_labels
)
# Class 1 of a pair: the first response is the better one. It is the trainer's `chosen`, whatever the truth is.
REWARD = ProbabilitySetting(
    "reward", "pairs", "REWARD", PAIR_COLUMNS, RewardPairTrainer, tokenize_pairs, _add_soft_label
)
