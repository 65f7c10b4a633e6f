"""The labels that the student of a method is trained on: the supervisor's labels, or their transform."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets

from ..labels import LabelsById, WeakLabels
from ..methods import Method
from ..modeling.spec import ModelSpec
from ..tasks import Half, TaskSplits
from ..tasks.task import AnyTask
from ..transforms import LabelContext
from ..user_code import errors_with_lines
from .finetuner import Finetuned, Finetuner, prompt_of_head
from .model_queries import PROBED, ask, hidden_states, load_arrays, on_rank_0
from .prompts import Prompts

__all__ = ["StudentRows", "labelled", "labels_of_method", "labels_title"]

T = TypeVar("T")


class Source(NamedTuple):
    """A [`RowsSource`] without the rows and their ground truth."""

    task: AnyTask
    provenance: dict


@dataclass(frozen=True)
class StudentRows(LabelContext):
    """
    The [`LabelContext`] of an experiment. Everything that it computes is a cached stage.

    It has no true label of the rows that students are trained or scored on: the rows have no column `ground_truth`.

    Args:
        half ([`Half`]): Training and validation rows of the students, without ground truth.
        test ([`~datasets.Dataset`]): The test rows, without ground truth. Hidden states are computed together.
        weak ([`Half`]): The rows of the supervisors, with ground truth.
        weak_labels ([`WeakLabels`]): The labels of the supervisors, or their mean.
        trained (`tuple` of [`Finetuned`]): The supervisors.
        student ([`ModelSpec`]): The student before finetuning.
        prompts ([`Prompts`], *optional*): The prompts of the rows. `None` for pairs and completions.
        source ([`Source`]): The task and the provenance of the rows.
        seed (`int`): The seed of the experiment.
        finetuner ([`Finetuner`]): Trains further models.
    """

    half: Half
    test: Dataset
    weak: Half
    weak_labels: Any
    trained: tuple[Finetuned, ...]
    student: ModelSpec
    prompts: Prompts | None
    source: Source
    seed: int
    finetuner: Finetuner

    @classmethod
    def of(
        cls,
        half: Half,
        weak: Finetuned,
        trained: tuple[Finetuned, ...],
        splits: TaskSplits,
        student: ModelSpec,
        prompts: Prompts | None,
        seed: int,
        finetuner: Finetuner,
    ) -> "StudentRows":
        """Returns the context of rows with ground truth, which it removes. See [`labels_of_method`]."""
        return cls(
            half=half.map(_without_truth),
            test=_without_truth(splits.test),
            weak=splits.weak,
            weak_labels=weak.predictions,
            trained=trained,
            student=student,
            prompts=prompts,
            source=Source(splits.task, splits.provenance),
            seed=seed,
            finetuner=finetuner,
        )

    @cached_property
    def rows(self) -> Dataset:
        """The training rows, then the validation rows."""
        return concatenate_datasets(list(self.half))

    @cached_property
    def is_train(self) -> np.ndarray:  # type: ignore[override]
        """Whether each row is a training row, `(N,)` bool."""
        return np.arange(len(self.rows)) < len(self.half.train)

    @property
    def supervisors(self) -> tuple[WeakLabels, ...]:  # type: ignore[override]
        """The labels of each supervisor."""
        return tuple(cast(WeakLabels, supervisor.predictions) for supervisor in self.trained)

    def zero_shot(self) -> np.ndarray:
        """
        Returns the zero-shot probabilities of the student before finetuning, `(N, 2)`.

        Raises:
            ValueError: The rows have no prompt with two answers.
        """
        if self.prompts is None:
            raise ValueError(
                f"zero_shot: got rows of {self.source.task.name}, which have no prompt with two answers, expected "
                "text classification. Use another method."
            )
        return ask(self.finetuner, self.student, self.prompts.zero_shot(self.rows["text"][:]), self.prompts.format)

    def hidden_states(self) -> np.ndarray:
        """Returns the last hidden states of the student before finetuning, `(N, hidden size)`."""
        parts = dict(zip(PROBED, (*self.half, self.test), strict=True))
        form = prompt_of_head(self.student, self.source.task)
        arrays = load_arrays(hidden_states(self.finetuner, self.student, parts, seed=self.seed, form=form))
        return np.concatenate([arrays[name] for name in PROBED[:2]])

    def supervisor_validation(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mean probabilities of the supervisors for their validation rows, and the true classes."""
        rows = self.weak.map(self.finetuner.setting.with_ground_truth)
        predictions = [
            self.finetuner.predict(
                "supervisor-validation",
                supervisor,
                rows,
                [self.weak.validation],
                title=f"labels of {supervisor.spec.name} for its own validation rows",
            )
            for supervisor in self.trained
        ]
        ids = list(self.weak.validation["id"])
        probabilities = np.mean([cast(WeakLabels, of_one).of(ids) for of_one in predictions], axis=0)
        return probabilities.astype(np.float32), np.array(self.weak.validation["ground_truth"])

    def train_student(self, labels: LabelsById, predict: Dataset) -> Any:
        """Trains a new student by naive finetuning on the rows of `labels`, and returns its predictions of rows."""
        student = self.finetuner.finetune(
            "student-for-labels",
            self.student,
            labelled(self.half, labels).map(with_validation(labels, self).join),
            [predict],
            splits=self.source,
            seed=self.seed,
            labels={"student": labels},
            title="student for new labels",
        )
        return student.predictions.of(list(predict["id"]))

    def once(self, make: Callable[[], T]) -> T:
        """Calls a function on rank 0 and returns its result on every rank."""
        return on_rank_0(make)


def labelled(half: Half, labels: LabelsById) -> Half:
    """Returns the rows of a half whose training rows have labels. All validation rows are kept."""
    known = set(labels.ids)
    is_known = [row_id in known for row_id in half.train["id"]]
    train = half.train if all(is_known) else half.train.select(np.flatnonzero(is_known))
    return Half(train, half.validation)


def with_validation(labels: Any, context: StudentRows) -> Any:
    """Returns labels with the supervisor's labels of the validation rows that have no other labels."""
    known = set(labels.ids)
    missing = [row_id for row_id in context.half.validation["id"] if row_id not in known]
    return labels.extended(context.weak_labels, missing) if missing else labels


def labels_of_method(
    method: Method,
    half: Half,
    weak: Finetuned,
    trained: tuple[Finetuned, ...],
    splits: TaskSplits,
    student: ModelSpec,
    prompts: Prompts | None,
    seed: int,
    finetuner: Finetuner,
) -> LabelsById:
    """
    Returns the labels of the student of a method, for the training rows that it keeps and for all validation rows.

    Args:
        method ([`Method`]): The method. Without a transform, the labels of the supervisor are returned.
        half ([`Half`]): Training and validation rows of the students.
        weak ([`Finetuned`]): The supervisor, whose predictions are the weak labels.
        trained (`tuple` of [`Finetuned`]): All supervisors.
        splits ([`TaskSplits`]): The rows of the experiment.
        student ([`ModelSpec`]): The student before finetuning.
        prompts ([`Prompts`], *optional*): The prompts of the rows.
        seed (`int`): The seed of the experiment.
        finetuner ([`Finetuner`]): Trains further models.

    Raises:
        ValueError: The transform raises an error (the message names file and line). Its result has no labels for
            training rows, or labels for unknown rows.
    """
    transform = method.transform
    if transform is None:
        return weak.predictions
    context = StudentRows.of(half, weak, trained, splits, student, prompts, seed, finetuner)
    settings = {
        "method": method.name,
        "code": method.transform_code,
        "weak_labels": weak.predictions.fingerprint,
        "supervisors": [supervisor.directory.name for supervisor in trained],
        "rows": [finetuner.fingerprint(part, with_labels=False) for part in half],
        "model": student.identity,
        "args": finetuner.settings_of({}),
        "prompts": repr(prompts),
        "seed": seed,
        "n_processes": PartialState().num_processes,
    }

    def build(directory: Path) -> None:
        what = f"method {method.name}"
        with errors_with_lines(what, transform):
            labels = transform(context)
        labels = on_rank_0(lambda: _checked(labels, context, what))
        labels = with_validation(labels, context)
        provenance = {**labels.provenance, "method": method.name, "method_code": method.transform_code}
        if PartialState().is_main_process:
            replace(labels, provenance=provenance).save(directory / "labels")

    directory = finetuner.cache.run(f"labels-{method.name}", settings, build, title="")
    return finetuner.setting.labels.load(directory / "labels")


def labels_title(method: str) -> str:
    """Returns the title of the step that computes the labels of a method, which is also its kind."""
    return f"labels of the method {method}"


def _without_truth(rows: Dataset) -> Dataset:
    return rows.remove_columns("ground_truth")


def _checked(labels: Any, context: StudentRows, what: str) -> Any:
    """Returns the result of a transform. Raises `ValueError` if it does not label training rows of the context."""
    kind = type(context.weak_labels)
    if not isinstance(labels, kind):
        raise ValueError(
            f"{what}: got a transform that returns {type(labels).__name__}, expected {kind.__name__}. Return "
            "context.labels(probabilities)."
        )
    known = set(context.ids)
    unknown = [row_id for row_id in labels.ids if row_id not in known]
    if unknown:
        raise ValueError(
            f"{what}: got labels for {len(unknown)} rows that are not rows of the context, such as {unknown[0]!r}, "
            "expected only rows of the context. Return context.labels(probabilities)."
        )
    if not len(labelled(context.half, labels).train):
        raise ValueError(
            f"{what}: got no label for a training row, expected labels for at least one. Keep more training rows."
        )
    return labels
