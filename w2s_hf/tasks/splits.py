"""Loads the rows of a task and splits them into the parts of an experiment, for texts, pairs and completions."""

import hashlib
import logging
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

import numpy as np
from datasets import Dataset, DatasetDict

from .halves import (
    LINK_ROWS,
    OPTIONS,
    SHARES,
    check_enough,
    counted,
    group_rows,
    hold_out,
    link_sizes,
    part_sizes,
    read_split,
    set_apart,
    shuffled,
    split_groups,
    split_links,
    too_many,
    unique_rows,
)
from .loading import load_raw
from .task import AnyTask, normal, sources_of
from .tokenizing import TEXT_COLUMNS

__all__ = ["Half", "Loader", "SplitOptions", "TaskSplits", "TransferRows"]

logger = logging.getLogger(__name__)


class SplitOptions(TypedDict, total=False):
    """
    The options of all functions that load and split rows, such as [`w2s_hf.tasks.load_task`].

    Args:
        dataset_path (`str`, *optional*): A local directory or file with the columns of the task's dataset. Defaults to
            the `sources` of the task.
        raw ([`~datasets.DatasetDict`], *optional*): Rows in memory, used instead of `sources` and `dataset_path`. The
            rows of a split named `links` are used only for the links of a chain. The links also use the training rows
            that no other part uses.
        n_train (`int`, *optional*): Rows of the student half. Defaults to `n_weak`. If neither `n_train` nor `n_weak`
            is set, each half gets 45 % of the training rows.
        n_weak (`int`, *optional*): Rows of the weak half. Defaults to `n_train`.
        n_validation (`int`, *optional*): Rows of both validation parts together. Defaults to a tenth of the rows of
            both halves.
        n_test (`int`, *optional*): Test rows. Defaults to all.
        n_links (`int`, *optional*, defaults to 0): Number of links (intermediate models of a bootstrapping chain) that
            have separate training rows. Each link gets as many rows as the student half. The rows of the other parts
            do not depend on `n_links`.
        seed (`int`, *optional*, defaults to 0): Seed of the split.
    """

    dataset_path: str | None
    raw: DatasetDict | None
    n_train: int | None
    n_weak: int | None
    n_validation: int | None
    n_test: int | None
    n_links: int
    seed: int


class Half(NamedTuple):
    """
    The rows that a model is trained on.

    Args:
        train ([`~datasets.Dataset`]): Training rows.
        validation ([`~datasets.Dataset`]): Rows for early stopping.
    """

    train: Dataset
    validation: Dataset

    def map(self, function: Callable[[Dataset], Dataset]) -> "Half":
        """Returns the half with `function` applied to both datasets."""
        return Half(function(self.train), function(self.validation))


@dataclass(frozen=True)
class TaskSplits:
    """
    The rows of an experiment, split into parts.

    The columns of each part depend on the kind of task:

    - [`Task`]: `id`, `text`, `context_start`, `context_end`, `shorten_from`, `group`, `question` and `ground_truth`
      (0 or 1). A text that is too long is truncated between `context_start` and `context_end`. All answers to a
      question have the same `question`, which is empty for independent rows.
    - [`PreferenceTask`]: `id`, `prompt`, `first`, `second`, `group` and `ground_truth` (1 if the first response is
      better, else 0).
    - [`GenerationTask`]: `id`, `prompt`, the task's `extra_columns`, `group` and `ground_truth` (the completion).

    Args:
        task ([`AnyTask`]): The task, a [`Task`], [`PreferenceTask`] or [`GenerationTask`].
        weak_half ([`~datasets.Dataset`]): Training rows of the weak supervisor, with ground truth.
        weak_validation ([`~datasets.Dataset`]): Rows for the supervisor's early stopping.
        student_half ([`~datasets.Dataset`]): Training rows of students and ceiling. Students are trained on the
            supervisor's labels of these rows, the ceiling on ground truth.
        student_validation ([`~datasets.Dataset`]): Rows for the early stopping of students and ceiling.
        test ([`~datasets.Dataset`]): Rows that all models are scored on.
        source (`dict`): `id` and `revision` of the dataset.
        columns (`tuple[str]`): The columns that models get as input.
        n_dropped (`dict[str, int]`):
            The number of unusable rows that were dropped before the split, by reason. Duplicates are not included.
            Their number is logged.
        links (`dict[str, Dataset]`, *optional*):
            The rows of the links of a bootstrapping chain, which no other model is trained on: `link_1` and
            `link_1_validation`, `link_2`, ...
        training_keys (`frozenset[str]`, *optional*):
            Hashes of the texts and groups of all rows except the test rows. They find rows of another task that
            models have seen in training.

    Raises:
        ValueError: A part is empty or has only one class, an id occurs twice, or a group is in two parts.
    """

    task: AnyTask
    weak_half: Dataset
    weak_validation: Dataset
    student_half: Dataset
    student_validation: Dataset
    test: Dataset
    source: dict = field(default_factory=dict)
    columns: tuple[str, ...] = TEXT_COLUMNS
    n_dropped: dict[str, int] = field(default_factory=dict)
    links: dict[str, Dataset] = field(default_factory=dict)
    training_keys: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        owner_of_id: dict[str, str] = {}
        owner_of_group: dict[str, str] = {}
        for name, part in self.parts.items():
            if len(part) == 0:
                raise ValueError(
                    f"{self.task.name}: got no rows for `{name}`, expected at least one. Set fewer rows for the other "
                    "parts, or add rows to the dataset."
                )
            classes = sorted(set(part["ground_truth"][:]))
            if not isinstance(classes[0], str) and classes != [0, 1]:
                raise ValueError(
                    f"{self.task.name}: the split `{name}` ({len(part)} rows) has the classes {classes}, expected 0 "
                    "and 1. Accuracy and PGR are not meaningful for a single class. Use more rows"
                    + (f" ({OPTIONS[name]})." if name in OPTIONS else ".")
                )
            for row_id, group in zip(part["id"][:], part["group"][:], strict=True):
                if row_id in owner_of_id:
                    raise ValueError(
                        f"{self.task.name}: got the row {row_id!r} in `{owner_of_id[row_id]}` and in `{name}`, "
                        "expected it in one split. Make the ids unique."
                    )
                owner_of_id[row_id] = name
                if owner_of_group.setdefault(group, name) != name:
                    raise ValueError(
                        f"{self.task.name}: got the group of row {row_id!r} in `{owner_of_group[group]}` and in "
                        f"`{name}`, expected it in one split. Move all rows of a group to one split."
                    )

    @property
    def parts(self) -> dict[str, Dataset]:
        """The five parts by name, then the links."""
        names = ("weak_half", "weak_validation", "student_half", "student_validation", "test")
        return {name: getattr(self, name) for name in names} | self.links

    @property
    def weak(self) -> Half:
        """The rows that the weak supervisor is trained on."""
        return Half(self.weak_half, self.weak_validation)

    @property
    def student(self) -> Half:
        """The rows that the supervisor labels. Students and ceiling are trained on them."""
        return Half(self.student_half, self.student_validation)

    def bootstrap(self, k: int) -> Half:
        """Returns the rows of the `k`-th link (from 1) of a bootstrapping chain. No other model is trained on them."""
        return Half(self.links[f"link_{k}"], self.links[f"link_{k}_validation"])

    @property
    def fingerprint(self) -> str:
        """
        A hash of the `columns` and labels of all parts, in order, with 16 hexadecimal digits. Links are not included,
        so that the hash does not depend on a chain.
        """
        digest = hashlib.sha256()
        for name, part in self.parts.items():
            if name in self.links:
                continue
            columns = [part[column][:] for column in (*self.columns, "ground_truth")]
            for row in zip(*columns, strict=True):
                digest.update(("\0".join(map(str, (name, *row))) + "\n").encode())
        return digest.hexdigest()[:16]

    @property
    def provenance(self) -> dict:
        """The source of the rows: `task`, `dataset` (its `id` and `revision`) and `split_fingerprint`."""
        return {"task": self.task.name, "dataset": self.source, "split_fingerprint": self.fingerprint}


class TransferRows(NamedTuple):
    """
    The test rows of a task on which models of another task are scored.

    Args:
        task ([`AnyTask`]): The task of the rows.
        test ([`~datasets.Dataset`]): The rows, with the columns of [`TaskSplits`].
        source (`dict`): `id` and `revision` of the dataset.
        n_shared (`int`): Number of test rows that were dropped, because they share their text or a group with a
            training row of the other task.
    """

    task: AnyTask
    test: Dataset
    source: dict
    n_shared: int


def _hashed_keys(row: dict) -> set[str]:
    """Returns hashes of the text and of the groups of a row, with 16 hexadecimal digits."""
    return {hashlib.sha256(key.encode()).hexdigest()[:16] for key in (*row["keys"], normal(row["text"]))}


class Loader(ABC):
    """
    The base class of the loaders. It reads the rows of a task, groups them, holds out test rows, removes duplicates
    and splits the rest into parts. Subclasses override the steps that depend on the kind of task.

    Args:
        task ([`AnyTask`]): A task of the kind that the subclass loads.
    """

    row, rows_are = "row", "texts"  # words for messages
    columns: tuple[str, ...] = TEXT_COLUMNS  # the input of models
    further_columns: tuple[str, ...] = ("group",)

    def __init__(self, task: AnyTask):
        self.task = task
        self.n_dropped: Counter[str] = Counter()

    @abstractmethod
    def read(self, split: str, rows: Dataset, numbers: np.ndarray) -> list[dict]:
        """
        Converts the rows of a split to examples, sorted by id.

        Args:
            split (`str`): The name of the split, for messages.
            rows ([`~datasets.Dataset`]): The rows of the dataset.
            numbers (`np.ndarray`): The positions of the rows in the whole split, `(len(rows),)` int64.

        Returns:
            `list[dict]` with `id`, `text`, `keys`, `ground_truth` and all `columns` and `further_columns`, except
            `group`, which is set from `keys`.
        """

    def most_rows(self, n_wanted: int) -> int | None:
        """Returns the largest number of rows to read from a split. `None` stands for `MAX_ROWS`."""
        return None

    def has_test(self, raw: DatasetDict, dataset_path: str | None) -> bool:
        """Returns whether there is a test split. If not, a fifth of the training rows is held out."""
        return self.task.test_split is not None

    def group(self, rows: list[dict]) -> None:
        """Sets the `group` of all rows. Rows of one group stay in one split."""
        group_rows(rows)

    def check_groups(self, rows: list[dict]) -> None:  # noqa: B027, the rows of most tasks always have a group
        """Warns if rows do not identify their group."""

    def choose(self, rows: list[dict]) -> list[dict]:
        """Selects the rows to use from rows without duplicates. By default, it selects all rows."""
        return rows

    def n_usable(self, rows: list[dict]) -> int:
        """Returns the number of rows that all parts together can contain."""
        return len(rows)

    def n_for_validation(self, train: list[dict], wanted: dict[str, int]) -> Mapping[str, float]:
        """
        Returns the number of training rows that each validation part needs before balancing. It is only
        called if `n_validation` is set and the sizes of the halves are not set.
        """
        return wanted

    def rows_of(self, name: str, rows: list[dict], n: int | None, rng: np.random.Generator) -> list[dict]:
        """Returns `n` random rows of a part. A larger `n` keeps the rows of a smaller `n` and adds more."""
        n = len(rows) if n is None else n
        if n > len(rows) or not rows:
            raise too_many(self.task, name, n, len(rows), "because groups of rows stay in one split")
        return shuffled(rows, rng)[:n]

    def sorted_by_id(self, split: str, examples: list[dict]) -> list[dict]:
        """Returns the examples of a split in an order that depends only on their content."""
        if not examples:
            raise ValueError(
                f"{self.task.name}: got no usable {self.row} in the split {split!r}, expected at least one. Dropped: "
                f"{counted(self.n_dropped)}. Correct the rows, or set a larger --max_length."
            )
        return sorted(examples, key=lambda example: example["id"])

    def load(
        self,
        *,
        dataset_path: str | None = None,
        raw: DatasetDict | None = None,
        n_train: int | None = None,
        n_weak: int | None = None,
        n_validation: int | None = None,
        n_test: int | None = None,
        n_links: int = 0,
        seed: int = 0,
    ) -> TaskSplits:
        """Loads the parts of an experiment. Accepts the options of [`SplitOptions`]."""
        if raw is not None:
            source = {"id": sources_of(self.task)[0].id, "revision": "generated"}
        else:
            raw, source = load_raw(self.task, dataset_path)
        wanted = part_sizes(n_train, n_weak, n_validation)
        links = link_sizes(wanted, n_links)
        train, test, spare = self._read_all(raw, dataset_path, {**wanted, **links}, seed)
        spare = self.choose(unique_rows(self.task, "link", spare, apart_from=train + test))
        test = self.choose(unique_rows(self.task, "test", test))
        train = self.choose(unique_rows(self.task, "training", train, apart_from=test))
        n_dropped = dict(+self.n_dropped)  # without counts of zero
        if n_dropped:
            logger.warning(f"{self.task.name}: dropped {self.rows_are}: {counted(n_dropped)}")

        check_enough(self.task, wanted, self.n_usable(train))
        sides = split_groups(train, self._shares(train, wanted), np.random.default_rng(seed))
        parts = {name: self._part(name, rows, wanted[name], seed) for name, rows in sides.items()}
        parts["test"] = self._part("test", test, n_test, seed)
        link_rows = split_links(self.task, train + spare, parts, links, seed) if links else {}
        link_parts = {name: self._part(name, rows, links[name], seed) for name, rows in link_rows.items()}
        ids = {row_id for part in (*parts.values(), *link_parts.values()) for row_id in part["id"][:]}
        return TaskSplits(
            self.task,
            **parts,
            source=source,
            columns=self.columns,
            n_dropped=n_dropped,
            links=link_parts,
            training_keys=frozenset(key for row in train + spare if row["id"] in ids for key in _hashed_keys(row)),
        )

    def load_test(
        self, apart_from: TaskSplits, *, raw: DatasetDict | None = None, n_test: int | None = None, seed: int = 0
    ) -> TransferRows:
        """
        Loads only test rows, for models that were trained on another task. The task needs no training split if it has
        a test split.

        Args:
            apart_from ([`TaskSplits`]): The rows of the other task. Test rows that share their text or a group with
                its training rows are dropped.
            raw ([`~datasets.DatasetDict`], *optional*): Rows in memory, used instead of the task's `sources`.
            n_test (`int`, *optional*): The largest number of test rows. Defaults to all.
            seed (`int`, *optional*, defaults to 0): Seed of the choice of rows. With the same `n_test` and seed, a run
                on this task has the same test rows, if none is dropped.

        Raises:
            ValueError: As in [`load`], or fewer than two rows are left, or rows of one class.
        """
        if raw is not None:
            source = {"id": sources_of(self.task)[0].id, "revision": "generated"}
        else:
            raw, source = load_raw(self.task)
        if self.has_test(raw, None):
            test = self.read(*read_split(self.task, raw, self.task.test_split or ()))
            self.group(test)
        else:
            train = self.read(*read_split(self.task, raw, self.task.train_split))
            self.group(train)
            _, test = hold_out(self.task, train, seed)
        unique = self.choose(unique_rows(self.task, "test", test))
        rows = [row for row in unique if apart_from.training_keys.isdisjoint(_hashed_keys(row))]
        n_shared, n_usable = len(unique) - len(rows), self.n_usable(rows)
        if len({row["ground_truth"] for row in rows}) < 2:
            raise ValueError(
                f"{self.task.name}: got {len(rows)} test rows, expected rows of both classes. {n_shared} more test "
                f"rows share their text or a group with training rows of {apart_from.task.name} and are left out. "
                "Name another task, or add rows."
            )
        if n_shared:
            logger.warning(
                f"{self.task.name}: {n_shared} of {len(unique)} test {self.rows_are} share their text or a group with "
                f"training {self.rows_are} of {apart_from.task.name} and are left out"
            )
        n = n_usable if n_test is None else min(n_test, n_usable)
        return TransferRows(self.task, self._part("test", rows, n, seed), source, n_shared)

    def _read_all(
        self, raw: DatasetDict, dataset_path: str | None, wanted: dict[str, int | None], seed: int
    ) -> tuple[list[dict], list[dict], list[dict]]:
        """Returns the training rows, the test rows and the rows that only links may use, with their groups."""
        n_most = self.most_rows(sum(n or 0 for n in wanted.values()))

        def read(names: Sequence[str]) -> list[dict]:
            return self.read(*read_split(self.task, raw, names, n_most))

        train, spare = read(self.task.train_split), []
        if self.has_test(raw, dataset_path):
            test = read(self.task.test_split or ())
            spare = read((LINK_ROWS,)) if LINK_ROWS in raw else []
            self.group(train + test)
            spare = set_apart(spare, train + test)
        else:
            self.group(train)
            train, test = hold_out(self.task, train, seed)
        self.check_groups(train + test)
        return train, test, spare

    def _shares(self, train: list[dict], wanted: dict[str, int | None]) -> dict[str, float]:
        """Returns the relative size of each part of the training rows."""
        shares: dict[str, float] = {name: n or SHARES[name] for name, n in wanted.items()}
        validation = {name: n for name, n in wanted.items() if name.endswith("validation") and n}
        halves = [name for name in wanted if not name.endswith("validation")]
        if validation and not any(wanted[name] for name in halves):
            shares |= self.n_for_validation(train, validation)
            n_rest = len(train) - sum(shares[name] for name in validation)
            shares |= dict.fromkeys(halves, max(1, n_rest) / len(halves))
        return shares

    def _part(self, name: str, rows: list[dict], n: int | None, seed: int) -> Dataset:
        rows = self.rows_of(name, rows, n, np.random.default_rng([seed, zlib.crc32(name.encode())]))
        columns = (*self.columns, *self.further_columns, "ground_truth")
        return Dataset.from_list([{column: row[column] for column in columns} for row in rows])
