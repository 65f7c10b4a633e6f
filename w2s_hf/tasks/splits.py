"""The rows of a task as the parts of an experiment, in one frame for texts, pairs and completions."""

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
from .task import AnyTask, sources_of
from .tokenizing import TEXT_COLUMNS

__all__ = ["Half", "Loader", "SplitOptions", "TaskSplits"]

logger = logging.getLogger(__name__)


class SplitOptions(TypedDict, total=False):
    """
    Options of all functions that load and split rows, such as [`w2s_hf.tasks.load_task`].

    Args:
        dataset_path (`str`, *optional*): A local directory or file in the dataset's own schema; by default the rows
            come from the `sources` of the task.
        raw ([`~datasets.DatasetDict`], *optional*): Rows in memory, instead of either. The rows of a split `links` are
            for the links alone, in addition to the training rows that no part uses.
        n_train (`int`, *optional*): Rows of the student half; defaults to `n_weak`, and to about half of the training
            rows.
        n_weak (`int`, *optional*): Rows of the weak half; defaults to `n_train`.
        n_validation (`int`, *optional*): Rows of both validation parts together; defaults to a tenth of the training
            rows.
        n_test (`int`, *optional*): Test rows; defaults to all.
        n_links (`int`, *optional*, defaults to 0): Links of a bootstrapping chain that get rows of their own, each as
            many as the student half. They get rows that are left; no row of another part moves.
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
    The rows that one model is trained on.

    Args:
        train ([`~datasets.Dataset`]): Training rows.
        validation ([`~datasets.Dataset`]): Rows for its early stopping.
    """

    train: Dataset
    validation: Dataset

    def map(self, function: Callable[[Dataset], Dataset]) -> "Half":
        """Returns the half with `function` applied to both datasets."""
        return Half(function(self.train), function(self.validation))


@dataclass(frozen=True)
class TaskSplits:
    """
    The rows of an experiment.

    The columns of each part depend on the task:

    - [`Task`]: `id`, `text`, `context_start` and `context_end` (characters of `text` that may be cut where it is too
      long), `shorten_from`, `group`, `question` (empty, or the same for the answers to a question) and `ground_truth`
      (0 or 1).
    - [`PreferenceTask`]: `id`, `prompt`, `first`, `second`, `group` and `ground_truth` (1 where the first response is
      the better one).
    - [`GenerationTask`]: `id`, `prompt`, the task's `extra_columns`, `group` and `ground_truth` (the completion).

    Args:
        task ([`AnyTask`]): The task, a [`Task`], [`PreferenceTask`] or [`GenerationTask`].
        weak_half ([`~datasets.Dataset`]): Training rows of the weak supervisor, with ground truth.
        weak_validation ([`~datasets.Dataset`]): Rows for the supervisor's early stopping.
        student_half ([`~datasets.Dataset`]): Rows that the supervisor labels. Students are trained on its labels, the
            ceiling on ground truth.
        student_validation ([`~datasets.Dataset`]): Rows for the early stopping of students and ceiling.
        test ([`~datasets.Dataset`]): Rows that all models are scored on.
        source (`dict`): `id` and `revision` of the dataset.
        columns (`tuple[str]`): Those that models are given.
        n_dropped (`dict[str, int]`):
            Rows left out before splitting because nothing can be made of them, by the reason. (Duplicates are not
            counted here, but in the log.)
        links (`dict[str, Dataset]`, *optional*):
            For bootstrapping: `link_1` and `link_1_validation`, `link_2`, ...: rows that nobody else learns.

    Raises:
        ValueError: a part is empty or has one class, an id occurs twice, or a group is on two sides.
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

    def __post_init__(self) -> None:
        owner_of_id: dict[str, str] = {}
        owner_of_group: dict[str, str] = {}
        for name, part in self.parts.items():
            if len(part) == 0:
                raise ValueError(
                    f"{self.task.name}: got no rows for `{name}`. Ask for fewer rows in the other parts, or add rows."
                )
            classes = sorted(set(part["ground_truth"]))
            if not isinstance(classes[0], str) and classes != [0, 1]:
                raise ValueError(
                    f"{self.task.name}: the split `{name}` ({len(part)} rows) has the classes {classes}, expected 0 "
                    "and 1: accuracy and PGR mean nothing on a single class. Take more rows"
                    + (f", {OPTIONS[name]}." if name in OPTIONS else ".")
                )
            for row_id, group in zip(part["id"], part["group"], strict=True):
                if row_id in owner_of_id:
                    raise ValueError(
                        f"{self.task.name}: the row {row_id!r} is in `{owner_of_id[row_id]}` and again in `{name}`."
                    )
                owner_of_id[row_id] = name
                if owner_of_group.setdefault(group, name) != name:
                    raise ValueError(
                        f"{self.task.name}: the group of row {row_id!r} is in `{owner_of_group[group]}` and in "
                        f"`{name}`; rows that share a passage or question must stay on one side."
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
        """The rows that the supervisor labels and students are trained on."""
        return Half(self.student_half, self.student_validation)

    def bootstrap(self, k: int) -> Half:
        """Returns the rows of the `k`-th link of a bootstrapping chain, from 1, which no other model is trained on."""
        return Half(self.links[f"link_{k}"], self.links[f"link_{k}_validation"])

    @property
    def fingerprint(self) -> str:
        """
        The hash of the `columns` and labels of all parts but the links, in order: 16 hexadecimal digits. It does not
        depend on a chain.
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


class Loader(ABC):
    """
    The frame that all kinds of tasks share: rows are read, grouped, held out, made unique and split into parts. A
    subclass says what is special about its kind.

    Args:
        task ([`AnyTask`]): A [`Task`], [`PreferenceTask`] or [`GenerationTask`], as the subclass takes it.
    """

    row, rows_are = "row", "texts"  # for messages
    columns: tuple[str, ...] = TEXT_COLUMNS  # those that models are given
    further_columns: tuple[str, ...] = ("group",)

    def __init__(self, task: AnyTask):
        self.task = task
        self.n_dropped: Counter[str] = Counter()

    @abstractmethod
    def read(self, split: str, rows: Dataset, numbers: np.ndarray) -> list[dict]:
        """
        Returns the examples of a split, sorted by id. They have `id`, `text`, `keys` and `ground_truth`, and what else
        is in `columns` and `further_columns` (but `group`, which is set from `keys`).
        """

    def most_rows(self, n_wanted: int) -> int | None:
        """Returns the number of rows of a split that are read; `None` is [`MAX_ROWS`]."""
        return None

    def has_test(self, raw: DatasetDict, dataset_path: str | None) -> bool:
        """Returns whether there is a test split; if not, a fifth of the training rows is held out."""
        return self.task.test_split is not None

    def group(self, rows: list[dict]) -> None:
        """Sets `group`: rows of one group stay in one part."""
        group_rows(rows)

    def check_groups(self, rows: list[dict]) -> None:  # noqa: B027, most tasks always name them
        """Warns where rows do not tell their group."""

    def choose(self, rows: list[dict]) -> list[dict]:
        """Returns the rows that are kept, of rows without duplicates."""
        return rows

    def n_usable(self, rows: list[dict]) -> int:
        """Returns the number of rows that can be in a part."""
        return len(rows)

    def n_for_validation(self, train: list[dict], wanted: dict[str, int]) -> Mapping[str, float]:
        """
        Returns how many training rows each validation part is given before balancing. Called when --n_validation is
        the only size given.
        """
        return wanted

    def rows_of(self, name: str, rows: list[dict], n: int | None, rng: np.random.Generator) -> list[dict]:
        """Returns `n` random rows of a part; a larger `n` keeps the rows of a smaller one."""
        n = len(rows) if n is None else n
        if n > len(rows) or not rows:
            raise too_many(self.task, name, n, len(rows), "whole groups of rows stay in one part")
        return shuffled(rows, rng)[:n]

    def sorted_by_id(self, split: str, examples: list[dict]) -> list[dict]:
        """Returns the examples of a split in an order that depends on their content alone."""
        if not examples:
            raise ValueError(
                f"{self.task.name}: no {self.row} of the split {split!r} is left; left out: {counted(self.n_dropped)}."
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
        """Loads the parts of an experiment; arguments as in [`SplitOptions`]."""
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
        n_dropped = dict(+self.n_dropped)  # without those that never occurred
        if n_dropped:
            logger.warning(f"{self.task.name}: {self.rows_are} left out: {counted(n_dropped)}")

        check_enough(self.task, wanted, self.n_usable(train))
        sides = split_groups(train, self._shares(train, wanted), np.random.default_rng(seed))
        parts = {name: self._part(name, rows, wanted[name], seed) for name, rows in sides.items()}
        parts["test"] = self._part("test", test, n_test, seed)
        of_links = split_links(self.task, train + spare, parts, links, seed) if links else {}
        of_links = {name: self._part(name, rows, links[name], seed) for name, rows in of_links.items()}
        return TaskSplits(self.task, **parts, source=source, columns=self.columns, n_dropped=n_dropped, links=of_links)

    def _read_all(
        self, raw: DatasetDict, dataset_path: str | None, wanted: dict[str, int | None], seed: int
    ) -> tuple[list[dict], list[dict], list[dict]]:
        """Returns training rows, test rows and rows for the links alone, with their groups."""
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
        """Returns the shares of the training rows by part."""
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
