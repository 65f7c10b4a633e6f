"""Classification: texts with a yes or a no (paper, 4.1), and what it shares with other settings of probabilities."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from datasets import Dataset, DatasetDict, Value
from transformers import EvalPrediction, PreTrainedTokenizerBase, Trainer, TrainingArguments

from ... import metrics
from ...config import METHODS
from ...demo.models import World
from ...demo.rows import demo_rows
from ...demo.worlds import DEMO_WORLDS, DemoWorld
from ...labels import WeakLabels
from ...modeling.spec import ModelSpec
from ...results import ExperimentResult
from ...tasks import TEXT_COLUMNS, Task, TaskSplits, load_task, tokenize_rows
from ...tasks.halves import LINK_ROWS
from ...trainers import WeakToStrongTrainer
from ..analysis_context import AnalysisContext
from ..config import ClassificationArguments
from .base import ACCURACY, Setting, Tokenize, on_weak_labels, split_options

__all__ = ["CLASSIFICATION", "ClassificationSetting", "ProbabilitySetting"]

_DEMO_TEXT = """
## What this demo shows, and what it does not

The rows are generated, in the columns of {task}: short facts about made-up entities, and the question whether one of
them is alive. No label is ever stated in the text that the student was pretrained on; whether an entity is alive can
be told only from the kind of things that are said about it. The weak supervisor was never pretrained, and learns from
few labelled rows.

- Where the supervisor is better than chance, it shows the effect itself, measured live: the student was taught by
  labels of the accuracy in the first row, and is better than its teacher because of what it had learned before. The
  control, the same architecture taught by the same labels without pretraining, has nothing to add to them.
- It does not show that size helps: pretraining drives the gain here, and the supervisor has none.
- It does not show that one method beats another: which one is ahead changes from seed to seed. Use `--seeds`.
- It does not show a hard task: the same entities occur in training and in test rows, and the ceiling is near 1, so
  that a few hundred true labels would have taught this student everything.
- Each seed is another world with other models, so numbers differ from seed to seed by more than their intervals.
"""

_LADDER_TEXT = """
## What this demo shows, and what it does not

The rows are generated, in the columns of {task}: short facts about made-up entities, and the question whether one of
them is alive. No label is ever stated in the text that students were pretrained on; whether an entity is alive can be
told from its kind, and there are many kinds, which a narrow model does not keep apart. Half of the questions have a
hint among their facts that a supervisor which has read nothing can learn, too. All test questions are about entities
that no training row asks about: what a student knows of them it has from pretraining.

- Students of three widths have read the same text, so that they differ in size alone. The widest, and its ceiling, is
  the best in the mean over seeds and not in each one; the two others differ less than seeds do. One seed shows no law
  of size.
- Where the supervisor is better than chance, a student that is better than its teacher shows the effect itself. The
  control, the same architecture taught by the same labels without pretraining, has only the hints to go by.
- Bootstrapping is here to be measured and not to win. The first link is a narrow model that knows little more than the
  supervisor, and what it gets wrong the next ones learn: in most seeds the chain is worse than direct training. The
  paper, too, found it of little use on its text tasks.
- Each seed is another world with other models, so numbers differ from seed to seed by more than their intervals.
"""


class ProbabilitySetting(Setting):
    """
    A setting of two classes. Predictions are class probabilities `(N, 2)`.

    Attributes:
        trainer (`type`): Has `predict_proba`, which returns `(N, 2)`.
    """

    trainer: ClassVar[type[Trainer]]
    labels = WeakLabels
    label_column = "labels"
    chance = 0.5
    control: ClassVar[dict] = {"learning_rate": 2e-3}

    def arguments_of(self, method: str) -> dict:
        """Returns the loss of a method."""
        return {"loss_type": METHODS[method]}

    def with_ground_truth(self, rows: Dataset) -> Dataset:
        """Returns rows with `labels`, int64."""
        return rows.rename_column("ground_truth", "labels").cast_column("labels", Value("int64"))

    def make_trainer(
        self, model, args, tokenizer, train, validation, tokenize: Tokenize, is_weak: bool = False
    ) -> Trainer:
        """Makes the trainer; see [`Setting.make_trainer`]."""
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
        """Returns class probabilities `(N, 2)`, float32."""
        return trainer.predict_proba(tokenize(rows))

    def is_correct(self, answers: np.ndarray, rows: Dataset) -> np.ndarray:
        """Returns whether the more probable class is the true one."""
        return metrics.is_correct(answers, np.array(rows["ground_truth"]))

    def is_same(self, answers: np.ndarray, others: np.ndarray, rows: Dataset) -> np.ndarray:
        """Returns whether the more probable classes are the same."""
        return metrics.is_correct(answers, others.argmax(axis=1))

    def extra_scores(self, answers: np.ndarray, rows: Dataset) -> dict:
        """Returns AUROC and calibration error."""
        truth = np.array(rows["ground_truth"])
        return {
            "auroc": metrics.auroc(answers[:, 1], truth),
            "ece": metrics.expected_calibration_error(answers, truth),
        }


def _accuracy_on_given_labels(prediction: EvalPrediction) -> dict[str, float]:
    """Returns the accuracy on the labels of the rows: weak ones for a student, as in the paper's early stopping."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    labels = prediction.label_ids
    labels = labels.argmax(axis=1) if labels.ndim == 2 else np.rint(labels)  # P(class 1), or the class
    return {ACCURACY: float((logits.argmax(axis=1) == labels).mean())}


class ClassificationSetting(ProbabilitySetting):
    """Texts with a yes or a no."""

    name = "classification"
    rows = "rows"
    task_type = "SEQ_CLS"
    columns = TEXT_COLUMNS
    trainer = WeakToStrongTrainer

    def tokenize(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Dataset:
        """Tokenizes texts; see [`tokenize_rows`]."""
        return tokenize_rows(rows, tokenizer, max_length)

    def add_labels(self, tokenized: Dataset, rows: Dataset) -> Dataset:
        """Adds the column `labels`."""
        return tokenized.add_column("labels", rows["labels"][:], feature=rows.features["labels"])

    def load_rows(
        self, task: Task, args: ClassificationArguments, training_args: TrainingArguments, readers: list[ModelSpec]
    ) -> TaskSplits:
        """Loads the rows of a task; see [`load_task`]."""
        task = replace(task, drop_empty=True) if args.drop_empty else task
        return load_task(task, dataset_path=args.dataset_path, conversion=args.conversion, **split_options(args))

    def demo_world(self, args: ClassificationArguments, seed: int) -> World:
        """Returns the world of a seed."""
        return DemoWorld(DEMO_WORLDS[args.demo_world], seed=seed)

    def load_demo_rows(
        self, task: Task, args: ClassificationArguments, training_args: TrainingArguments, world: DemoWorld
    ) -> TaskSplits:
        """Generates rows in the columns of a task."""
        task = replace(task, drop_empty=True) if args.drop_empty else task
        # Texts of a question, and half as many again as asked for: balancing drops rows of the more frequent answer,
        # and groups are kept whole.
        n_texts = 2 if args.conversion == "coin_flip" else 1

        def pool(n: int) -> int:
            return n_texts * (3 * n // 2 + 100)

        raw = {
            task.train_split[0]: demo_rows(task, world, pool(args.n_train + args.n_weak + args.n_validation), "train"),
            task.test_split[0]: demo_rows(task, world, pool(args.n_test), "test", held_out=True),
        }
        if args.n_links:
            n = args.n_links * (args.n_train + args.n_validation)
            raw[LINK_ROWS] = demo_rows(task, world, pool(n), LINK_ROWS)
        return load_task(task, raw=DatasetDict(raw), conversion=args.conversion, **split_options(args))

    def describe(
        self, results: ExperimentResult, contexts: list[AnalysisContext], output_dir: Path
    ) -> tuple[dict, str, list[str]]:
        """Describes the task and, in the demo, what the demo shows."""
        task, args = contexts[0].splits.task, contexts[0].args
        notes = []
        if args.demo:
            text = _DEMO_TEXT if args.demo_world == "plain" else _LADDER_TEXT
            notes.append(text.strip().format(task=task.name))
        facts = {"text_form": task.template, "class_names": list(task.class_names)}
        return facts, f"{task.description or task.name}. Half of the rows are {task.class_names[1]!r}.", notes


CLASSIFICATION = ClassificationSetting()
