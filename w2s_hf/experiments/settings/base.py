"""The interface of a setting: how its rows are loaded, and how models are trained, predict and are scored."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from datasets import Dataset, Value
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from ... import metrics
from ...analysis import last_hidden_states
from ...demo.models import DEMO_MODELS, DemoModel, World
from ...labels import WeakCompletions, WeakLabels
from ...losses import RowLoss
from ...methods import Method
from ...modeling import load_tokenizer
from ...modeling.spec import ModelSpec
from ...results import ExperimentResult
from ...tasks import TaskSplits
from ...trainers.evaluation import OrderedEvaluation
from ..config import ExperimentArguments, Own

if TYPE_CHECKING:
    from ..analysis_context import AnalysisContext
    from ..finetuner import Finetuner
    from ..seed import Models

__all__ = [
    "ACCURACY", "Setting", "Tokenize", "add_supervisor_labels", "add_weights", "demo_sizes", "metric_name",
    "on_weak_labels", "split_options", "tokenizers_of",
]  # fmt: skip

# In logs, these names stand for the share of validation rows whose label a model predicts, for true and for weak
# labels.
ACCURACY, _WEAK_AGREEMENT = "accuracy", "weak_agreement"

_AnyTrainer = TypeVar("_AnyTrainer", bound=Trainer)

# A function of this type tokenizes rows for one model, as [`Finetuner.tokenize`] does.
Tokenize = Callable[[Dataset], Dataset]


class Setting(ABC):
    """
    Defines how the rows of a setting are loaded, and how a model is trained on labels, predicts them and is scored.

    The predictions of `N` rows are the content of `labels`: an array `(N, C)` of probabilities, or `N` completions.

    Attributes:
        name (`str`): The name in results.
        rows (`str`): The word for its rows in logs.
        arguments, training (`type`): The classes of the experiment's and the trainer's arguments.
        task_type (`str`): As in [`load_student`].
        columns (`tuple[str]`): The columns that models read.
        labels (`type`): [`WeakLabels`] or [`WeakCompletions`].
        label_column (`str`): The column of training rows that `labels.join` adds.
        chance (`float`, *optional*): Accuracy of guessing; `None` if it differs between rows.
        control (`dict`): Training arguments of the control without pretraining, which is trained without adapters.
        demo_models (`dict[str, DemoModel]`): The models of the embedded demo.
    """

    name: str
    rows: str
    arguments: type[ExperimentArguments]
    training: type[TrainingArguments]
    task_type: str
    columns: tuple[str, ...]
    labels: type[WeakLabels] | type[WeakCompletions]
    label_column: str
    chance: float | None = None
    control: dict
    demo_models: dict[str, DemoModel] = DEMO_MODELS

    # ---- Rows and models ----

    @abstractmethod
    def load_rows(
        self,
        task: Own,
        args: Own,
        training_args: Own,
        readers: Sequence[ModelSpec],
    ) -> TaskSplits:
        """Loads the rows of a task. All rows fit the context of the models `readers`."""

    @abstractmethod
    def demo_world(self, args: Own, seed: int) -> World:
        """Returns the world from which the demo of a seed is generated."""

    @abstractmethod
    def load_demo_rows(self, task: Own, args: Own, training_args: Own, world: Own) -> TaskSplits:
        """Generates rows in the columns of a task."""

    def prepare_models(
        self, models: "Models", splits: TaskSplits, args: Own, seed: int, finetuner: "Finetuner"
    ) -> "Models":
        """Returns the models after training that precedes the experiment. By default, nothing is trained."""
        return models

    # ---- Training and prediction, as the finetuner calls them ----

    @abstractmethod
    def arguments_of(self, method: Method) -> dict:
        """Returns the training arguments of a method, as keyword arguments of `training`."""

    def class_names(self, task: Own) -> list[str] | None:
        """Returns the names of the outputs of a classifier, or `None` if the models have none (the default)."""
        return None

    @abstractmethod
    def with_ground_truth(self, rows: Dataset) -> Dataset:
        """Returns rows with the ground truth in the label column."""

    @abstractmethod
    def tokenize(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Dataset:
        """Adds the token columns of the trainer to rows with `columns`."""

    @abstractmethod
    def add_labels(self, tokenized: Dataset, rows: Dataset) -> Dataset:
        """Adds the labels of `rows`, and their weights, to the tokenized rows, in the form that the trainer reads."""

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
        loss: RowLoss | None = None,
    ) -> Trainer:
        """
        Returns a trainer for rows with `columns` and the label column. `is_weak` is true for weak labels. A `loss`
        replaces the loss of the arguments.
        """

    @abstractmethod
    def predict(self, trainer: Own, rows: Dataset, tokenize: Tokenize, directory: Path):
        """Returns the predictions of the trainer's model for rows. Finished batches may be cached in `directory`."""

    # ---- Scores ----

    @abstractmethod
    def is_correct(self, predictions: Own, rows: Dataset) -> np.ndarray:
        """Returns which predictions are correct, `(N,)` bool, for rows with `ground_truth`."""

    @abstractmethod
    def agrees(self, predictions: Own, reference: Own, rows: Dataset) -> np.ndarray:
        """Returns for which rows predictions agree with the predictions of a supervisor (`reference`), `(N,)` bool."""

    @abstractmethod
    def extra_scores(self, predictions: Own, rows: Dataset) -> dict:
        """Returns the scores besides the accuracy."""

    def scores(self, predictions: Own, rows: Dataset) -> dict:
        """Returns accuracy with its interval, and the further scores."""
        correct = self.is_correct(predictions, rows)
        return {
            "accuracy": float(correct.mean()),
            "ci95": list(metrics.accuracy_interval(correct)),
            "n": len(correct),
            **self.extra_scores(predictions, rows),
        }

    # ---- Results ----

    def hidden_states(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        tokenized: Dataset,
        batch_size: int,
    ) -> np.ndarray:
        """Returns the features of a linear probe, `(N, hidden size)`: the input of the head of each row."""
        return last_hidden_states(model, tokenizer, tokenized, batch_size=batch_size)

    def further_steps(self, args: Own) -> list[str]:
        """Returns the titles of the steps of [`further_results`], for [`Progress.plan`]."""
        return []

    def further_results(self, context: "AnalysisContext") -> dict:
        """Returns fields of the [`SeedResult`] that only this setting has. Every rank calls this method."""
        return {}

    @abstractmethod
    def describe(
        self, results: ExperimentResult, contexts: list["AnalysisContext"], output_dir: Path
    ) -> tuple[dict, str, list[str]]:
        """
        Returns further fields of the results, the introduction of the report, and its notes in Markdown. Only
        rank 0 calls this method.

        Args:
            results ([`ExperimentResult`]): The results so far.
            contexts (`list` of [`AnalysisContext`]): One context per seed.
            output_dir (`Path`): The directory for figures.
        """


def add_weights(tokenized: Dataset, rows: Dataset) -> Dataset:
    """Adds the column `weight` of `rows`, float32, to the tokenized rows, if the rows have weights."""
    if "weight" not in rows.column_names:
        return tokenized
    return tokenized.add_column("weight", rows["weight"][:], feature=Value("float32"))


def add_supervisor_labels(tokenized: Dataset, rows: Dataset) -> Dataset:
    """Adds the column `supervisor_labels` of `rows` to the tokenized rows, if the rows have it."""
    if "supervisor_labels" not in rows.column_names:
        return tokenized
    feature = rows.features["supervisor_labels"]
    return tokenized.add_column("supervisor_labels", rows["supervisor_labels"][:], feature=feature)


def split_options(args: ExperimentArguments) -> dict:
    """Returns the sizes of the parts and the seed of the split as arguments of the loaders of [`w2s_hf.tasks`]."""
    names = ("n_train", "n_weak", "n_validation", "n_test", "n_links")
    return {name: getattr(args, name) for name in names} | {"seed": args.split_seed}


def demo_sizes(args: ExperimentArguments) -> tuple[int, int, int]:
    """Returns the numbers of rows of a demo: for training, for the test, and for the links of a chain."""
    n_train, n_weak, n_validation, n_test = args.n_train, args.n_weak, args.n_validation, args.n_test
    if n_train is None or n_weak is None or n_validation is None or n_test is None:
        raise ValueError(
            "Got a demo without --n_train, --n_weak, --n_validation or --n_test, expected all four options. Set the "
            "missing options."
        )
    return n_train + n_weak + n_validation, n_test, args.n_links * (n_train + n_validation)


def tokenizers_of(models: Sequence[ModelSpec]) -> list[PreTrainedTokenizerBase]:
    """Loads the tokenizers of models."""
    return [load_tokenizer(model.path, revision=model.revision) for model in models]


class _OnWeakLabels(OrderedEvaluation):
    """Renames the accuracy of a trainer to `weak_agreement` in its metrics and logs."""

    def _add_metrics(self, metrics: dict[str, float], prefix: str) -> None:
        super()._add_metrics(metrics, prefix)
        if f"{prefix}_{ACCURACY}" in metrics:
            metrics[f"{prefix}_{_WEAK_AGREEMENT}"] = metrics.pop(f"{prefix}_{ACCURACY}")

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Renames the metrics that TRL's trainers add to their logs, and logs them as the trainer does."""
        for values in (self._next_log("train"), self._next_log("eval")):
            if ACCURACY in values:
                values[_WEAK_AGREEMENT] = values.pop(ACCURACY)
        super().log(logs, *args, **kwargs)


def on_weak_labels(trainer: type[_AnyTrainer]) -> type[_AnyTrainer]:
    """
    Returns a subclass of a trainer that logs `weak_agreement` instead of `accuracy`. On weak labels, this metric
    measures agreement with the supervisor. `metric_for_best_model` uses the same name.
    """
    kind: Any = type(trainer.__name__, (_OnWeakLabels, trainer), {})
    return kind


def metric_name(name: str | None, is_weak: bool) -> str | None:
    """
    Returns `metric_for_best_model` of one training run. In a recipe, `accuracy` and `weak_agreement` both mean the
    share of validation rows whose label the model predicts. This share is logged as `weak_agreement` if the labels
    are weak labels.
    """
    if name is None or name.removeprefix("eval_") not in (ACCURACY, _WEAK_AGREEMENT):
        return name
    return _WEAK_AGREEMENT if is_weak else ACCURACY
