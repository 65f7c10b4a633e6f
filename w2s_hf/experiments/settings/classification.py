"""The setting of classification into two classes (paper, 4.1), and the base class of settings with two classes."""

import logging
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Value
from transformers import EvalPrediction, Trainer, TrainingArguments

from ... import metrics
from ...cards.markdown import render
from ...config import WeakToStrongConfig
from ...demo.models import World
from ...demo.rows import demo_rows
from ...demo.worlds import DEMO_WORLDS, DemoWorld
from ...labels import WeakLabels
from ...methods import Method
from ...modeling import load_tokenizer
from ...modeling.spec import ModelSpec
from ...results import BaselineResult, ExperimentResult
from ...tasks import TEXT_COLUMNS, Task, TaskSplits, load_task, tokenize_rows
from ...tasks.halves import LINK_ROWS
from ...tasks.splits import TransferRows
from ...tasks.texts import TextLoader
from ...tasks.tokenizing import refuse_too_long
from ...trainers import RewardPairTrainer, WeakToStrongTrainer
from ..analysis_context import AnalysisContext
from ..config import ClassificationArguments, Own
from ..self_baselines import SELF_BASELINES, self_baseline_results, self_baselines, sharding_engine
from .base import (
    ACCURACY,
    Setting,
    Tokenize,
    add_supervisor_labels,
    add_weights,
    demo_sizes,
    on_weak_labels,
    split_options,
)

__all__ = ["CLASSIFICATION", "LINEAR_PROBE", "ClassificationSetting", "ProbabilitySetting"]

logger = logging.getLogger(__name__)

LINEAR_PROBE = "linear probe, ground truth"
_PROBE_TITLE = "linear probe of the student before finetuning"


class ProbabilitySetting(Setting):
    """
    A setting of two classes. Predictions are class probabilities `(N, 2)`.

    Attributes:
        trainer (`type`): The trainer. Its method `predict_proba` returns `(N, 2)`.
    """

    trainer: type[WeakToStrongTrainer] | type[RewardPairTrainer]
    labels = WeakLabels
    label_column = "labels"
    chance = 0.5
    control = {"learning_rate": 2e-3}

    def arguments_of(self, method: Method) -> dict:
        """Returns the loss and the training arguments of a method."""
        return method.config

    def with_ground_truth(self, rows: Dataset) -> Dataset:
        """Returns rows with `labels`, int64."""
        rows = rows.rename_column("ground_truth", "labels")
        # A cast copies all rows and shows a progress bar.
        return rows if rows.features["labels"] == Value("int64") else rows.cast_column("labels", Value("int64"))

    def make_trainer(
        self, model, args, tokenizer, train, validation, tokenize: Tokenize, is_weak: bool = False, loss=None
    ) -> Trainer:
        """Returns the trainer; see [`Setting.make_trainer`]."""
        trainer = on_weak_labels(self.trainer) if is_weak else self.trainer
        return trainer(
            model=model,
            args=args,
            train_dataset=tokenize(train),
            eval_dataset=tokenize(validation),
            processing_class=tokenizer,
            compute_metrics=_accuracy_on_given_labels,
            loss=loss,
        )

    def predict(
        self, trainer: WeakToStrongTrainer | RewardPairTrainer, rows: Dataset, tokenize: Tokenize, directory: Path
    ) -> np.ndarray:
        """Returns class probabilities `(N, 2)`, float32."""
        return trainer.predict_proba(tokenize(rows))

    def is_correct(self, predictions: np.ndarray, rows: Dataset) -> np.ndarray:
        """Returns whether the more probable class is the true class."""
        return metrics.is_correct(predictions, np.array(rows["ground_truth"]))

    def agrees(self, predictions: np.ndarray, reference: np.ndarray, rows: Dataset) -> np.ndarray:
        """Returns whether the more probable classes are the same."""
        return metrics.is_correct(predictions, reference.argmax(axis=1))

    def extra_scores(self, predictions: np.ndarray, rows: Dataset) -> dict:
        """Returns AUROC and calibration error."""
        truth = np.array(rows["ground_truth"])
        return {
            "auroc": metrics.auroc(predictions[:, 1], truth),
            "ece": metrics.expected_calibration_error(predictions, truth),
        }

    @abstractmethod
    def load_test_rows(
        self,
        task: Own,
        args: Own,
        training_args: Own,
        readers: Sequence[ModelSpec],
        world: Own,
        splits: TaskSplits,
    ) -> TransferRows:
        """
        Loads the test rows of another task, on which models that were trained on `splits` are scored. The rows fit the
        context of the models `readers`. In the demo, they are generated from `world`, which is `None` for real rows.
        """

    def further_results(self, context: AnalysisContext) -> dict:
        """Returns the linear probe of the student before finetuning as a baseline; see `--linear_probe`."""
        if context.args.linear_probe is None and not context.args.demo and (sharding := sharding_engine()):
            logger.info(
                f"The linear probe of the student is skipped with {sharding}. To compute it, set --linear_probe true."
            )
        if not self._has_probe(context.args):
            return {}
        with context.finetuner.cache.progress.group(_PROBE_TITLE):
            predictions = context.linear_probe()
        student, scores = context.models.student, self.scores(predictions, context.test)
        baseline = {"name": LINEAR_PROBE, "model": student.name, "revision": student.revision, **scores}
        return {"baselines": [BaselineResult.from_dict(baseline)]}

    def further_steps(self, args: Own) -> list[str]:
        """Returns the title of the linear probe, if it will be computed."""
        return [_PROBE_TITLE] if self._has_probe(args) else []

    @staticmethod
    def _has_probe(args: Own) -> bool:
        if args.linear_probe is None:
            return not args.demo and sharding_engine() is None
        return args.linear_probe


def _accuracy_on_given_labels(prediction: EvalPrediction) -> dict[str, float]:
    """Returns the accuracy on the labels of the rows, which are weak labels for a student (paper, early stopping)."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    labels = np.asarray(prediction.label_ids)
    labels = labels.argmax(axis=1) if labels.ndim == 2 else np.rint(labels)  # P(class 1), or the class
    return {ACCURACY: float((logits.argmax(axis=1) == labels).mean())}


class ClassificationSetting(ProbabilitySetting):
    """The setting of texts with two classes."""

    name = "classification"
    rows = "rows"
    arguments, training = ClassificationArguments, WeakToStrongConfig
    tokenize = staticmethod(tokenize_rows)
    task_type = "SEQ_CLS"
    columns = TEXT_COLUMNS
    trainer = WeakToStrongTrainer

    def class_names(self, task: Task) -> list[str]:
        """Returns the names of the two classes."""
        return list(task.class_names)

    def add_labels(self, tokenized: Dataset, rows: Dataset) -> Dataset:
        """Adds the column `labels`, and `weight` and `supervisor_labels` if the rows have these columns."""
        labelled = tokenized.add_column("labels", rows["labels"][:], feature=rows.features["labels"])
        return add_supervisor_labels(add_weights(labelled, rows), rows)

    def load_rows(
        self,
        task: Task,
        args: ClassificationArguments,
        training_args: WeakToStrongConfig,
        readers: Sequence[ModelSpec],
    ) -> TaskSplits:
        """Loads the rows of a task; see [`load_task`]. Raises `ValueError` if a row is longer than `max_length`."""
        task = _with_options(task, args)
        splits = load_task(task, dataset_path=args.dataset_path, conversion=args.conversion, **split_options(args))
        _check_lengths(splits.parts.values(), training_args.max_length, readers)
        return splits

    def load_test_rows(
        self,
        task: Task,
        args: ClassificationArguments,
        training_args: WeakToStrongConfig,
        readers: Sequence[ModelSpec],
        world: DemoWorld | None,
        splits: TaskSplits,
    ) -> TransferRows:
        """Loads the test rows of another task; see [`ProbabilitySetting.load_test_rows`]."""
        raw = None
        if world is not None:
            n = _n_generated(args.n_test or 0, args)
            raw = DatasetDict(
                {(task.test_split or task.train_split)[0]: demo_rows(task, world, n, "test", held_out=True)}
            )
        loader = TextLoader(_with_options(task, args), args.conversion)
        rows = loader.load_test(splits, raw=raw, n_test=args.n_test, seed=args.split_seed)
        _check_lengths([rows.test], training_args.max_length, readers)
        return rows

    def demo_world(self, args: ClassificationArguments, seed: int) -> World:
        """Returns the world of a seed."""
        return DemoWorld(DEMO_WORLDS[args.demo_world], seed=seed)

    def load_demo_rows(
        self, task: Task, args: ClassificationArguments, training_args: TrainingArguments, world: DemoWorld
    ) -> TaskSplits:
        """Generates rows in the columns of a task."""
        task = replace(task, drop_empty=True) if args.drop_empty else task
        n_train, n_test, n_links = (_n_generated(n, args) for n in demo_sizes(args))
        raw = {
            task.train_split[0]: demo_rows(task, world, n_train, "train"),
            (task.test_split or ("test",))[0]: demo_rows(task, world, n_test, "test", held_out=True),
        }
        if args.n_links:
            raw[LINK_ROWS] = demo_rows(task, world, n_links, LINK_ROWS)
        return load_task(task, raw=DatasetDict(raw), conversion=args.conversion, **split_options(args))

    def further_results(self, context: AnalysisContext) -> dict:
        """Returns the baselines: the linear probe, and the student's own answers; see `--self_baselines`."""
        further = super().further_results(context)
        if not context.args.self_baselines:
            return further
        with context.finetuner.cache.progress.group(SELF_BASELINES):
            own = self_baseline_results(context, self_baselines(context))
        return {**further, **own, "baselines": [*further.get("baselines", []), *own["baselines"]]}

    def further_steps(self, args: ClassificationArguments) -> list[str]:
        """Returns the titles of the baselines that are computed, if the student can be prompted."""
        is_wanted = args.self_baselines
        if is_wanted is None:
            is_wanted = not args.demo and sharding_engine() is None
        return [*super().further_steps(args), *[SELF_BASELINES] * is_wanted]

    def describe(
        self, results: ExperimentResult, contexts: list[AnalysisContext], output_dir: Path
    ) -> tuple[dict, str, list[str]]:
        """Describes the task, and explains the demo if it runs."""
        task, args = contexts[0].task, contexts[0].args
        notes = []
        if args.demo:
            text = "demo_classification.md" if args.demo_world == "plain" else "demo_ladder.md"
            notes.append(render(text, task=task.name))
        facts = {"text_form": task.form, "class_names": self.class_names(task)}
        about = task.description or task.name
        about += "" if about.endswith("?") else "."
        return facts, f"{about} Half of the rows are {task.class_names[1]!r}.", notes


def _with_options(task: Task, args: ClassificationArguments) -> Task:
    """Returns a task with `--drop_empty` and `--use_prompts`."""
    task = replace(task, drop_empty=True) if args.drop_empty else task
    return task.prompted() if args.use_prompts else task


def _check_lengths(parts: Iterable[Dataset], max_length: int | None, readers: Sequence[ModelSpec]) -> None:
    """Raises `ValueError` if a row is too long for a model, even with a truncated context."""
    parts = list(parts)
    for reader in readers:
        tokenizer = load_tokenizer(reader.path, revision=reader.revision)
        try:
            for rows in parts:
                refuse_too_long(rows, tokenizer, max_length)
        except ValueError as error:
            raise ValueError(f"{reader.name}: {error}") from error


def _n_generated(n: int, args: ClassificationArguments) -> int:
    """
    Returns the number of texts that the demo generates for `n` rows. It generates 1.5 times the requested rows, since
    balancing drops rows of the more frequent answer and groups are not divided. With the coin flip, each question has
    two texts.
    """
    return (2 if args.conversion == "coin_flip" else 1) * (3 * n // 2 + 100)


CLASSIFICATION = ClassificationSetting()
