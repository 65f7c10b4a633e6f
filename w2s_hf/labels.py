"""The weak labels by row id, as class probabilities or text, with their provenance."""

import hashlib
import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, Features, List, Value
from huggingface_hub import CommitInfo, DatasetCardData, snapshot_download

from .cards.markdown import Markup, render
from .cards.trained_with import DEMO_DATASET, subject
from .hub import commit_files
from .probabilities import MAX_NAMED_ROWS, as_probabilities, as_supervisor_labels, as_weights

__all__ = [
    "Completion",
    "LabelsById",
    "WeakCompletions",
    "WeakLabels",
    "as_probabilities",
    "label_files",
    "weak_labels_card",
]

_ROWS, _PROVENANCE = "weak_labels.parquet", "provenance.json"


class LabelsById(ABC):
    """
    The base class of weak labels.

    Labels are looked up by row id, joined to rows without labels, and saved with their provenance. They can have a
    weight per row, which the trainers use as the column `weight`.
    """

    ids: list[str]
    provenance: dict
    weights: np.ndarray | None
    _columns: ClassVar[tuple[str, ...]]  # columns of the table without weights
    _optional_columns: ClassVar[tuple[str, ...]] = ()

    def _check_ids(self, n_labels: int) -> None:
        name = type(self).__name__
        object.__setattr__(self, "ids", [str(row_id) for row_id in self.ids])
        if len(self.ids) != n_labels:
            raise ValueError(
                f"{name}: got {len(self.ids)} ids for {n_labels} labels, expected one id per label. "
                "Pass one id for each label."
            )
        seen: set[str] = set()
        for row_id in self.ids:
            if row_id in seen:
                n_repeated = len(self.ids) - len(set(self.ids))
                raise ValueError(
                    f"{name}: got {n_repeated} repeated ids, such as {row_id!r}, expected unique ids. "
                    "Pass a different id for each row."
                )
            seen.add(row_id)
        if self.weights is None:
            return
        try:
            weights = as_weights(self.weights, self.ids)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if len(weights) != n_labels:
            raise ValueError(
                f"{name}: got {len(weights)} weights for {n_labels} labels, expected one weight per label. Pass one "
                "weight for each label."
            )
        object.__setattr__(self, "weights", weights)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """The hash of ids and labels, and of weights if there are weights, 16 hexadecimal digits."""

    @abstractmethod
    def of(self, ids: list[str]) -> Any:
        """Returns the labels of these rows, in this order. Raises `KeyError` for a row without a label."""

    def weights_of(self, ids: list[str]) -> np.ndarray:
        """
        Returns the weights of these rows, `(len(ids),)` float32. They are 1 if the labels have no weights. Raises
        `KeyError` for a row without a label.
        """
        positions = self._positions(ids)
        return np.ones(len(ids), dtype=np.float32) if self.weights is None else self.weights[positions]

    @abstractmethod
    def join(self, dataset: Dataset) -> Dataset:
        """Returns `dataset` with these labels, and their weights if there are weights, instead of its ground truth."""

    @abstractmethod
    def to_dataset(self) -> Dataset:
        """Returns the labels as a dataset with a column `id`, and `weight` if there are weights, one row per label."""

    @classmethod
    @abstractmethod
    def _from_columns(cls, columns: dict[str, list], provenance: dict, weights: np.ndarray | None) -> Self:
        """Creates labels from the columns of [`to_dataset`] without `weight`."""

    def renamed(self, names: Mapping[str, str]) -> Self:
        """
        Returns the labels of the rows `names`, in this order, with new ids, which are the values of `names`. Raises
        `KeyError` for a row without a label.
        """
        positions = self._positions(list(names))
        changes: dict[str, Any] = {"ids": list(names.values())}
        for part in fields(cast(Any, self)):
            value = getattr(self, part.name)
            if part.name not in ("ids", "provenance") and value is not None:
                is_array = isinstance(value, np.ndarray)
                changes[part.name] = value[positions] if is_array else [value[position] for position in positions]
        return replace(cast(Any, self), **changes)

    def extended(self, other: Self, ids: list[str]) -> Self:
        """
        Returns these labels, and the labels of `other` for further rows, with the provenance of these labels. Raises
        `KeyError` for a row without a label in `other`, and `ValueError` if only one of both has labels of each
        supervisor.
        """
        mine, theirs = self.to_dataset(), other.to_dataset().select(other._positions(ids))
        optional = [name for name in self._optional_columns if name in mine.column_names]
        if optional != [name for name in self._optional_columns if name in theirs.column_names]:
            raise ValueError(
                f"extended: got the columns {', '.join(mine.column_names)} and {', '.join(theirs.column_names)}, "
                "expected both labels with or without labels of each supervisor. Label all rows in the same way."
            )
        columns = {name: [*mine[name], *theirs[name]] for name in (*self._columns, *optional)}
        weights = None
        if self.weights is not None or other.weights is not None:
            weights = np.concatenate([self.weights_of(self.ids), other.weights_of(ids)])
        return self._from_columns(columns, self.provenance, weights)

    def _positions(self, ids: list[str]) -> list[int]:
        position = {row_id: index for index, row_id in enumerate(self.ids)}
        missing = [row_id for row_id in ids if row_id not in position]
        if missing:
            raise KeyError(
                f"Got {len(missing)} of {len(ids)} rows without a weak label, such as {missing[:MAX_NAMED_ROWS]}. "
                f"Label these rows, or select the {len(self)} rows with labels."
            )
        return [position[row_id] for row_id in ids]

    def _unlabelled(self, dataset: Dataset, label_columns: tuple[str, ...]) -> tuple[Dataset, list[int]]:
        """Returns the rows without their ground truth, and the position of the label of each row."""
        if "id" not in dataset.column_names:
            raise ValueError(
                f"join: got the columns {', '.join(dataset.column_names)}, expected a column `id`. Add the ids of the "
                "weak labels."
            )
        present = [name for name in label_columns if name in dataset.column_names]
        if present:
            raise ValueError(
                f"join: got rows with the column {', '.join(present)}, expected rows without labels. Remove it, or "
                "rename it to `ground_truth`."
            )
        if self.weights is not None and "weight" in dataset.column_names:
            raise ValueError(
                "join: got labels with weights and rows with the column `weight`, expected rows without weights. "
                "Remove the column."
            )
        ids = [str(row_id) for row_id in dataset["id"]]
        if len(set(ids)) != len(ids):
            raise ValueError(
                f"join: got {len(ids) - len(set(ids))} repeated ids in the rows, expected unique ids. Remove "
                "the repeated rows, or give each row the id of its own weak label."
            )
        positions = self._positions(ids)
        if "ground_truth" in dataset.column_names:
            dataset = dataset.remove_columns("ground_truth")
        return dataset, positions

    def _weighted(self, dataset: Dataset, positions: list[int] | slice = slice(None)) -> Dataset:
        """Adds a column `weight`, float32, with the weights at these positions, if there are weights."""
        if self.weights is None:
            return dataset
        return dataset.add_column("weight", self.weights[positions].tolist(), feature=Value("float32"))

    def save(self, directory: str | Path) -> None:
        """Writes `weak_labels.parquet` and `provenance.json`, readable by `datasets.load_dataset(directory)`."""
        directory = Path(directory)
        record = {**self.provenance, "n_rows": len(self), "fingerprint": self.fingerprint}
        text = json.dumps(record, indent=2, sort_keys=True) + "\n"  # may fail, and is done before any file is written
        directory.mkdir(parents=True, exist_ok=True)
        pq.write_table(self.to_dataset().data.table, directory / _ROWS)
        (directory / _PROVENANCE).write_text(text)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """
        Loads labels from a directory written by [`save`].

        Raises:
            FileNotFoundError: The directory has no labels.
            ValueError: The directory has labels of another class, which the message names. Rows and provenance do not
                match.
        """
        directory = Path(directory)
        missing = [name for name in (_ROWS, _PROVENANCE) if not (directory / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{directory}: got a directory without {' and '.join(missing)}, expected labels. Pass a directory "
                f"written by {cls.__name__}.save or push_to_hub."
            )
        record = json.loads((directory / _PROVENANCE).read_text())
        columns = pq.read_table(directory / _ROWS).to_pydict()
        weights = columns.pop("weight", None)
        if set(columns) - set(cls._optional_columns) != set(cls._columns):
            kinds = [
                kind
                for kind in (WeakLabels, WeakCompletions)
                if set(columns) - set(kind._optional_columns) == set(kind._columns)
            ]
            advice = f"Load it with {kinds[0].__name__}." if kinds else "Pass a directory with labels of w2s_hf."
            raise ValueError(
                f"{directory}: got the columns {', '.join(sorted(columns))}, expected the columns of "
                f"{cls.__name__}: {', '.join(sorted(cls._columns))}. {advice}"
            )
        if not isinstance(record, dict) or not {"fingerprint", "n_rows"} <= set(record):
            raise ValueError(
                f"{directory}: got a {_PROVENANCE} without `fingerprint` and `n_rows`, expected the file written by "
                f"{cls.__name__}.save. Restore it, or label the rows again."
            )
        weights = None if weights is None else np.asarray(weights, dtype=np.float32)
        labels = cls._from_columns(columns, record, weights)
        fingerprint = labels.provenance.pop("fingerprint")
        labels.provenance.pop("n_rows")
        if fingerprint != labels.fingerprint:
            raise ValueError(
                f"{directory}: got rows with the fingerprint {labels.fingerprint}, expected {fingerprint} as in the "
                "provenance. The files were changed or mixed. Label the rows again."
            )
        return labels

    def push_to_hub(
        self,
        repo_id: str,
        *,
        message: str = "Weak labels",
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> CommitInfo:
        """
        Pushes labels, provenance and a card to a dataset repository in one commit, see [`w2s_hf.hub.commit_files`].

        Raises:
            PushError: The upload failed.
        """
        with tempfile.TemporaryDirectory() as directory:
            self.save(directory)
            files = label_files(directory, repo_id)
            return commit_files(
                repo_id, files, message=message, repo_type="dataset", private=private, revision=revision, token=token
            )

    @classmethod
    def from_hub(cls, repo_id: str, *, revision: str | None = None, token: str | None = None) -> Self:
        """
        Loads labels pushed by [`push_to_hub`]. No other files of the repository are downloaded.

        Raises:
            FileNotFoundError, ValueError: See [`load`]. [`~huggingface_hub.snapshot_download`] raises other errors,
                for example for a repository that is not a dataset.
        """
        directory = snapshot_download(
            repo_id, repo_type="dataset", revision=revision, token=token, allow_patterns=[_ROWS, _PROVENANCE]
        )
        try:
            return cls.load(directory)
        except (FileNotFoundError, ValueError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"{repo_id}: {error}") from error


def label_files(directory: str | Path, repo_id: str) -> dict[str, Path | bytes]:
    """Returns the files of saved labels and their card, by path in the repository."""
    directory = Path(directory)
    rows, provenance = directory / _ROWS, directory / _PROVENANCE
    schema = pq.read_schema(rows)
    record = json.loads(provenance.read_text())
    card = weak_labels_card(record, schema.names, repo_id)
    return {rows.name: rows, provenance.name: provenance, "README.md": card.encode()}


def weak_labels_card(provenance: dict, columns: list[str], repo_id: str | None = None) -> str:
    """
    Returns the dataset card of weak labels.

    Args:
        provenance (`dict`): Provenance of the labels, with `n_rows`.
        columns (`list[str]`): Columns of their table.
        repo_id (`str`, *optional*): Repository on the Hub in the code of the card. Defaults to the current directory.
    """
    task, dataset = provenance.get("task"), provenance.get("dataset")
    is_demo = isinstance(dataset, dict) and dataset.get("id") == DEMO_DATASET
    tags = ("weak-to-strong", "weak-labels", "w2s_hf-demo" if is_demo else task)
    # Without `data_files`, the Hub would read the provenance as rows, too.
    configs = [{"config_name": "default", "data_files": _ROWS}]
    data = DatasetCardData(tags=[str(tag) for tag in tags if tag], configs=configs)
    return render(
        "weak_labels_card.md",
        metadata=Markup(data.to_yaml()),
        provenance={**{name: None for name in ("task", "model", "n_rows")}, **provenance},
        subject=subject(task, is_demo) if task else None,
        dataset=dataset.get("id") if isinstance(dataset, dict) else dataset,
        columns=columns,
        kind=Markup("WeakCompletions" if "completion" in columns else "WeakLabels"),
        source=Markup(json.dumps(repo_id or ".")),
        loader=Markup("from_hub" if repo_id else "load"),
    )


@dataclass(frozen=True, eq=False)
class WeakLabels(LabelsById):
    """
    The soft labels of a supervisor, keyed by row id.

    Args:
        ids (`list[str]`): N unique row ids.
        probabilities (`np.ndarray` of shape `(N, C)`, float32): Class probabilities; rows sum to 1.
        provenance (`dict`): Origin of the labels: model and revision, task, dataset and revision, split, seed,
            versions. Values must be JSON.
        weights (`np.ndarray` of shape `(N,)`, float32, *optional*): The weights of the rows in training, at least 0.
        supervisor_probabilities (`np.ndarray` of shape `(N, K, C)`, float32, *optional*): The class probabilities of
            each of K supervisors, K at least 2, for the loss `learned_supervisors`.

    Raises:
        ValueError: Ids repeat, the probabilities are invalid (see [`as_probabilities`]), a weight is negative or not
            finite, or the lengths differ.

    Example:

    ```python
    weak = WeakLabels(ids=rows["id"], probabilities=trainer.predict_proba(rows), provenance={"model": "gpt2"})
    student_rows = weak.join(student_half)  # column `labels`, no ground truth
    ```
    """

    _columns = ("id", "probabilities")
    _optional_columns = ("supervisor_probabilities",)

    ids: list[str]
    probabilities: np.ndarray
    provenance: dict = field(default_factory=dict)
    weights: np.ndarray | None = None
    supervisor_probabilities: np.ndarray | None = None

    def __post_init__(self):
        self._check_ids(len(self.probabilities))
        values = np.asarray(self.probabilities)
        if values.ndim != 2:
            raise ValueError(
                f"WeakLabels: got probabilities of shape {values.shape}, expected (N, C). "
                "Pass one row of C probabilities per id."
            )
        object.__setattr__(self, "probabilities", as_probabilities(values, values.shape[1], self.ids))
        if self.supervisor_probabilities is None:
            return
        try:
            of_each = as_supervisor_labels(self.supervisor_probabilities, values.shape[1], self.ids)
        except ValueError as error:
            raise ValueError(f"WeakLabels: {error}") from error
        if len(of_each) != len(self.ids):
            raise ValueError(
                f"WeakLabels: got supervisor_probabilities of {len(of_each)} rows for {len(self.ids)} ids, expected "
                "one row per id. Pass the labels of the same rows."
            )
        object.__setattr__(self, "supervisor_probabilities", of_each)

    @classmethod
    def mean(cls, members: list[Self], *, keep_supervisors: bool = False) -> Self:
        """
        Returns the mean labels of several supervisors for the same rows, in the order of the first supervisor. With
        `keep_supervisors`, the result also has the labels of each supervisor. Raises `ValueError` for labels with
        weights, or with labels of each supervisor.
        """
        if any(member.weights is not None for member in members):
            raise ValueError(
                "mean: got labels with weights, expected labels without weights. Compute the mean first, and set "
                "weights for the result."
            )
        if any(member.supervisor_probabilities is not None for member in members):
            raise ValueError(
                "mean: got labels with supervisor_probabilities, expected labels without them. Pass the labels of "
                "each supervisor as a member, with keep_supervisors=True to keep them."
            )
        first, *others = members
        of_each = [first.probabilities, *(other.of(first.ids) for other in others)]
        stages = [member.provenance.get("stage") for member in members]
        return cls(
            first.ids,
            np.mean(of_each, axis=0),
            {**first.provenance, "stage": "+".join(map(str, stages))},
            supervisor_probabilities=np.stack(of_each, axis=1) if keep_supervisors else None,
        )

    def most_confident(self, ids: list[str], share: float) -> np.ndarray:
        """Selects the `share` of rows of each predicted class with the most confident labels, `(len(ids),)` bool."""
        probabilities = self.of(ids)
        confidence, classes = probabilities.max(axis=1), probabilities.argmax(axis=1)
        is_selected = np.zeros(len(ids), dtype=bool)
        for label in np.unique(classes):
            rows = np.flatnonzero(classes == label)
            best = np.argsort(-confidence[rows], kind="stable")[: max(1, round(share * len(rows)))]
            is_selected[rows[best]] = True
        return is_selected

    @property
    def fingerprint(self) -> str:
        """The hash of ids, probabilities, weights and labels of each supervisor, 16 hexadecimal digits."""
        digest = hashlib.sha256("\n".join(self.ids).encode())
        for values in (self.probabilities, self.weights, self.supervisor_probabilities):
            if values is not None:
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:16]

    def of(self, ids: list[str]) -> np.ndarray:
        """Returns the probabilities of these rows, `(len(ids), C)`. Raises `KeyError` for a row without a label."""
        return self.probabilities[self._positions(ids)]

    def join(self, dataset: Dataset) -> Dataset:
        """
        Returns `dataset`, in its order, with a column `labels` of C probabilities instead of its ground truth. If
        there are weights, it also has a column `weight`, float32. If there are labels of each supervisor, it also has
        a column `supervisor_labels` with a list of C probabilities per supervisor.

        Args:
            dataset ([`~datasets.Dataset`]): Rows with a column `id` of unique ids. A column `ground_truth` is removed,
                because a student must not see it.

        Raises:
            KeyError: A row has no weak label.
            ValueError: There is no column `id`, ids repeat, or the rows already have a label column. Labels and rows
                both have weights.
        """
        dataset, positions = self._unlabelled(dataset, ("label", "labels", "label_ids", "supervisor_labels"))
        labels = self.probabilities[positions].tolist()
        dataset = dataset.add_column("labels", labels, feature=List(Value("float32")))
        if self.supervisor_probabilities is not None:
            of_each = self.supervisor_probabilities[positions].tolist()
            dataset = dataset.add_column("supervisor_labels", of_each, feature=List(List(Value("float32"))))
        return self._weighted(dataset, positions)

    def to_dataset(self) -> Dataset:
        """
        Returns a dataset with the columns `id` (string) and `probabilities` (list of C float32). With weights, it also
        has the column `weight` (float32). With labels of each supervisor, it also has the column
        `supervisor_probabilities` (a list of C float32 per supervisor).
        """
        features = Features({"id": Value("string"), "probabilities": List(Value("float32"))})
        columns = {"id": self.ids, "probabilities": self.probabilities.tolist()}
        if self.supervisor_probabilities is not None:
            features["supervisor_probabilities"] = List(List(Value("float32")))
            columns["supervisor_probabilities"] = self.supervisor_probabilities.tolist()
        return self._weighted(Dataset.from_dict(columns, features=features))

    @classmethod
    def _from_columns(cls, columns: dict[str, list], provenance: dict, weights: np.ndarray | None) -> Self:
        probabilities = np.asarray(columns["probabilities"], dtype=np.float32)
        of_each = None
        if "supervisor_probabilities" in columns:
            of_each = np.asarray(columns["supervisor_probabilities"], dtype=np.float32)
        return cls(columns["id"], probabilities, provenance, weights, of_each)


@dataclass(frozen=True)
class Completion:
    """
    The completion of a prompt by a model.

    Args:
        text (`str`): Text that continues the prompt, with its leading space.
        is_cut (`bool`): Whether the text was truncated at the token limit.
    """

    text: str
    is_cut: bool


@dataclass(frozen=True, eq=False)
class WeakCompletions(LabelsById):
    """
    The completions of a supervisor, keyed by row id.

    Args:
        ids (`list[str]`): N unique row ids.
        completions (`list[Completion]`): Completion of each row.
        provenance (`dict`): Origin of the completions, see [`WeakLabels`].
        weights (`np.ndarray` of shape `(N,)`, float32, *optional*): The weights of the rows in training, at least 0.

    Raises:
        ValueError: Ids repeat, a weight is negative or not finite, or the lengths differ.
    """

    _columns = ("id", "completion", "is_cut")

    ids: list[str]
    completions: list[Completion]
    provenance: dict = field(default_factory=dict)
    weights: np.ndarray | None = None

    def __post_init__(self):
        self._check_ids(len(self.completions))

    @property
    def fingerprint(self) -> str:
        """The hash of ids, completions and weights, 16 hexadecimal digits."""
        rows = [[row_id, part.text, part.is_cut] for row_id, part in zip(self.ids, self.completions, strict=True)]
        digest = hashlib.sha256(json.dumps(rows).encode())
        if self.weights is not None:
            digest.update(np.ascontiguousarray(self.weights).tobytes())
        return digest.hexdigest()[:16]

    def of(self, ids: list[str]) -> list[Completion]:
        """Returns the completions of these rows, in this order. Raises `KeyError` for a row without a completion."""
        return [self.completions[position] for position in self._positions(ids)]

    def join(self, dataset: Dataset) -> Dataset:
        """
        Returns `dataset` with a text column `completion` instead of its ground truth, as [`WeakLabels.join`] does.

        A truncated completion is joined like any other completion. A student that is trained on truncated completions
        learns to end its texts early.
        """
        dataset, positions = self._unlabelled(dataset, ("completion",))
        texts = [self.completions[position].text for position in positions]
        return self._weighted(dataset.add_column("completion", texts, feature=Value("string")), positions)

    def to_dataset(self) -> Dataset:
        """
        Returns a dataset with the columns `id`, `completion` (strings) and `is_cut` (bool). With weights, it also has
        the column `weight` (float32).
        """
        features = Features({"id": Value("string"), "completion": Value("string"), "is_cut": Value("bool")})
        columns = {
            "id": self.ids,
            "completion": [part.text for part in self.completions],
            "is_cut": [part.is_cut for part in self.completions],
        }
        return self._weighted(Dataset.from_dict(columns, features=features))

    @classmethod
    def _from_columns(cls, columns: dict[str, list], provenance: dict, weights: np.ndarray | None) -> Self:
        completions = [Completion(*pair) for pair in zip(columns["completion"], columns["is_cut"], strict=True)]
        return cls(columns["id"], completions, provenance, weights)
