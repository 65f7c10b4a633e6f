"""The labels that the student of a method is trained on: the supervisor's labels, or their transform."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from transformers import set_seed

from ..labels import LabelsById, WeakLabels
from ..methods import Method
from ..modeling.spec import ModelSpec
from ..tasks import Half, TaskSplits
from ..tasks.task import AnyTask
from ..transforms import LabelContext
from ..user_code import errors_with_lines
from .finetuner import Finetuned, Finetuner, prompt_of_head
from .generative_finetuning import check_decoder
from .model_queries import PROBED, ask, hidden_states, load_arrays, on_rank_0
from .prompts import Prompts

__all__ = ["StudentRows", "labelled", "labels_of_method", "labels_title"]

T = TypeVar("T")

# Transforms compute with these libraries. Their versions are not in the keys of other stages.
_LIBRARIES = ("numpy", "scipy", "scikit-learn")


class Source(NamedTuple):
    """A [`RowsSource`] without the rows and their ground truth."""

    task: AnyTask
    provenance: dict


@dataclass(frozen=True)
class StudentRows(LabelContext):
    """
    The [`LabelContext`] of an experiment. Everything that it computes is a cached stage.

    It has no true label of the rows that students are trained or scored on. The rows have no columns `ground_truth`,
    `group` and `question`. Their ids are their positions, because the ids of a task may depend on its labels.

    Args:
        weak_labels ([`WeakLabels`]): The labels of the supervisors, or their mean.
        supervisors (`tuple` of [`WeakLabels`]): The labels of each supervisor.
        seed (`int`): The seed of the experiment.
        _half ([`Half`]): Training and validation rows of the students, without ground truth, with their own ids.
        _test ([`~datasets.Dataset`]): The test rows, without ground truth. Hidden states are computed together.
        _weak ([`Half`]): The rows of the supervisors, with ground truth.
        _trained (`tuple` of [`Finetuned`]): The supervisors.
        _student ([`ModelSpec`]): The student before finetuning.
        _prompts ([`Prompts`], *optional*): The prompts of the rows. `None` for pairs and completions.
        _source ([`Source`]): The task and the provenance of the rows.
        _finetuner ([`Finetuner`]): Trains further models.
    """

    weak_labels: Any
    supervisors: tuple[Any, ...]
    seed: int
    _half: Half
    _test: Dataset
    _weak: Half
    _trained: tuple[Finetuned, ...]
    _student: ModelSpec
    _prompts: Prompts | None
    _source: Source
    _finetuner: Finetuner

    @classmethod
    def of(
        cls,
        half: Half,
        weak: Finetuned,
        trained: tuple[Finetuned, ...],
        *,
        splits: TaskSplits,
        student: ModelSpec,
        prompts: Prompts | None,
        seed: int,
        finetuner: Finetuner,
    ) -> "StudentRows":
        """Returns the context of rows with ground truth, which it removes. See [`labels_of_method`]."""
        names = _positions_of([*half.train["id"], *half.validation["id"]])
        return cls(
            weak_labels=weak.predictions.renamed(names),
            supervisors=tuple(supervisor.predictions.renamed(names) for supervisor in trained),
            seed=seed,
            _half=half.map(_without_truth),
            _test=_without_truth(splits.test),
            _weak=splits.weak,
            _trained=trained,
            _student=student,
            _prompts=prompts,
            _source=Source(splits.task, splits.provenance),
            _finetuner=finetuner,
        )

    @cached_property
    def rows(self) -> Dataset:
        """The training rows, then the validation rows. Their ids are their positions."""
        rows = concatenate_datasets(list(self._half))
        return _with_ids(rows, list(map(str, range(len(rows)))))

    @cached_property
    def is_train(self) -> np.ndarray:  # type: ignore[override]
        """Returns whether each row is a training row, `(N,)` bool."""
        return np.arange(len(self.rows)) < len(self._half.train)

    @cached_property
    def _names(self) -> dict[str, str]:
        """The own ids of the rows by their ids in this context."""
        own = _positions_of([*self._half.train["id"], *self._half.validation["id"]])
        return {position: row_id for row_id, position in own.items()}

    def with_own_ids(self, labels: Any, what: str) -> Any:
        """
        Returns labels of rows of this context with the own ids of the rows.

        Raises:
            ValueError: Labels belong to other rows.
        """
        unknown = [row_id for row_id in labels.ids if row_id not in self._names]
        if unknown:
            raise ValueError(
                f"{what}: got labels for {len(unknown)} rows that are not rows of the context, such as "
                f"{unknown[0]!r}, expected only rows of the context. Return context.labels(probabilities)."
            )
        return labels.renamed({row_id: self._names[row_id] for row_id in labels.ids})

    def zero_shot(self) -> np.ndarray:
        """
        Returns the zero-shot probabilities of the student before finetuning, `(N, 2)`.

        Raises:
            ValueError: The rows have no prompt with two answers, or the student is not a decoder.
        """
        if self._prompts is None:
            raise ValueError(
                f"zero_shot: got rows of {self._source.task.name}, which have no prompt with two answers, expected "
                "text classification. Use hidden_states(), or another task."
            )
        check_decoder(self._student, "zero_shot")
        prompts = self._prompts.zero_shot(self.rows["text"][:])
        return ask(self._finetuner, self._student, prompts, self._prompts.format)

    def hidden_states(self) -> np.ndarray:
        """Returns the last hidden states of the student before finetuning, `(N, hidden size)`."""
        parts = dict(zip(PROBED, (*self._half, self._test), strict=True))
        form = prompt_of_head(self._student, self._source.task)
        arrays = load_arrays(hidden_states(self._finetuner, self._student, parts, seed=self.seed, form=form))
        return np.concatenate([arrays[name] for name in PROBED[:2]])

    def supervisor_validation(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mean probabilities of the supervisors for their validation rows, and the true classes."""
        rows = self._weak.map(self._finetuner.setting.with_ground_truth)
        predictions = [
            self._finetuner.predict(
                "supervisor-validation",
                supervisor,
                rows,
                [self._weak.validation],
                title=f"labels of {supervisor.spec.name} for its own validation rows",
            )
            for supervisor in self._trained
        ]
        ids = list(self._weak.validation["id"])
        probabilities = np.mean([cast(WeakLabels, of_one).of(ids) for of_one in predictions], axis=0)
        return probabilities.astype(np.float32), np.array(self._weak.validation["ground_truth"])

    def train_student(self, labels: LabelsById, predict: Dataset) -> Any:
        """Trains a new student by naive finetuning on the rows of `labels`, and returns its predictions of rows."""
        labels = self.with_own_ids(labels, "train_student")
        unknown = [row_id for row_id in predict["id"] if row_id not in self._names]
        if unknown:
            raise ValueError(
                f"train_student: got rows to predict that are not rows of the context, such as {unknown[0]!r}, "
                "expected rows of the context. Select them from context.rows."
            )
        ids = [self._names[row_id] for row_id in predict["id"]]
        student = self._finetuner.finetune(
            "student-for-labels",
            self._student,
            labelled(self._half, labels).map(self.with_validation(labels).join),
            [_with_ids(predict, ids)],
            splits=self._source,
            seed=self.seed,
            labels={"student": labels},
            title="student for new labels",
        )
        return student.predictions.of(ids)

    def with_validation(self, labels: Any) -> Any:
        """
        Returns labels with own ids, and the supervisor's labels of the validation rows that have no other labels.
        """
        known = set(labels.ids)
        missing = [row_id for row_id in self._half.validation["id"] if row_id not in known]
        of_supervisor = self.with_own_ids(self.weak_labels, "weak labels")
        return labels.extended(of_supervisor, missing) if missing else labels

    def once(self, make: Callable[[], T]) -> T:
        """Calls a function on rank 0 and returns its result on every rank."""
        return on_rank_0(make)


def labelled(half: Half, labels: LabelsById) -> Half:
    """Returns the rows of a half whose training rows have labels. All validation rows are kept."""
    known = set(labels.ids)
    is_known = [row_id in known for row_id in half.train["id"]]
    train = half.train if all(is_known) else half.train.select(np.flatnonzero(is_known))
    return Half(train, half.validation)


def labels_of_method(
    method: Method,
    half: Half,
    weak: Finetuned,
    trained: tuple[Finetuned, ...],
    *,
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
    context = StudentRows.of(
        half, weak, trained, splits=splits, student=student, prompts=prompts, seed=seed, finetuner=finetuner
    )
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
        "libraries": {name: version(name) for name in _LIBRARIES},
    }

    def build(directory: Path) -> None:
        what = f"method {method.name}"
        set_seed(seed)  # the state of the random numbers would depend on the stages that were cached
        with errors_with_lines(what, transform):
            labels = transform(context)
        labels = context.with_validation(on_rank_0(lambda: _checked(labels, context, half, what)))
        provenance = {**labels.provenance, "method": method.name, "method_code": method.transform_code}
        if PartialState().is_main_process:
            replace(labels, provenance=provenance).save(directory / "labels")

    directory = finetuner.cache.run(f"labels-{method.name}", settings, build, title="")
    return finetuner.setting.labels.load(directory / "labels")


def labels_title(method: str) -> str:
    """Returns the title of the step that computes the labels of a method, which is also its kind."""
    return f"labels of the method {method}"


def _without_truth(rows: Dataset) -> Dataset:
    # Groups and questions are numbers and hashes of ids, which depend on the labels of some tasks.
    hidden = {"ground_truth", "group", "question"}
    return rows.remove_columns([name for name in rows.column_names if name in hidden])


def _with_ids(rows: Dataset, ids: list[str]) -> Dataset:
    return rows.remove_columns("id").add_column("id", ids, feature=rows.features["id"])


def _positions_of(ids: list[str]) -> dict[str, str]:
    """Returns the position of each row, as text, by its id."""
    return {row_id: str(position) for position, row_id in enumerate(ids)}


def _checked(labels: Any, context: StudentRows, half: Half, what: str) -> Any:
    """
    Returns the result of a transform with the own ids of the rows. Raises `ValueError` if it does not label training
    rows of the context.
    """
    kind = type(context.weak_labels)
    if not isinstance(labels, kind):
        result = "context.labels(probabilities)" if kind is WeakLabels else "WeakCompletions(context.ids, completions)"
        raise ValueError(
            f"{what}: got a transform that returns {type(labels).__name__}, expected {kind.__name__}. Return {result}."
        )
    labels = context.with_own_ids(labels, what)
    if not len(labelled(half, labels).train):
        raise ValueError(
            f"{what}: got no label for a training row, expected labels for at least one. Keep more training rows."
        )
    return labels
