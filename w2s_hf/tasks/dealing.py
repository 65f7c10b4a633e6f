"""How rows are dealt to the parts of an experiment, whatever they are: whole groups, duplicates once, no row twice."""

import hashlib
import logging
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from datasets import Dataset, DatasetDict
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .loading import pick_split
from .sizes import OPTIONS, SHARES, AnyTask, check_enough, too_many
from .task import normal
from .tokenizing import TEXT_COLUMNS

__all__ = [
    "MAX_ROWS",
    "AnyTask",
    "Half",
    "LINK_ROWS",
    "TaskSplits",
    "counted",
    "deal_groups",
    "deal_links",
    "deal_parts",
    "group_rows",
    "hold_out",
    "read_split",
    "sample_rows",
    "set_apart",
    "shuffled",
    "unique_rows",
]

logger = logging.getLogger(__name__)

# Of a larger split, so many random rows: far more than any experiment takes, and formatted in seconds.
MAX_ROWS = 200_000
_HELD_OUT = 0.2
# A split of rows in memory that serve the links of a chain and no other part, so that with a chain or without one
# everybody else has the same rows.
LINK_ROWS = "links"


class Half(NamedTuple):
    """
    The rows that one model is trained on.

    Args:
        train ([`~datasets.Dataset`]): Training rows.
        validation ([`~datasets.Dataset`]): For its early stopping.
    """

    train: Dataset
    validation: Dataset

    def map(self, function: Callable[[Dataset], Dataset]) -> "Half":
        """The half with `function` applied to both datasets."""
        return Half(function(self.train), function(self.validation))


@dataclass(frozen=True)
class TaskSplits:
    """
    The rows of an experiment.

    Columns of each part of a [`Task`]: `id`, `text`, `context_start` and `context_end` (characters of `text` that may
    go where it is too long), `shorten_from`, `group`, `question` (empty, or the same for the answers to a question)
    and `ground_truth` (0 or 1). Of a [`PreferenceTask`]: `id`, `prompt`, `first`, `second`, `group` and
    `ground_truth` (1 where the first response is the better one). Of a [`ChessTask`], see
    [`w2s_hf.tasks.chess.load_puzzles`]; there the ground truth is text.

    Args:
        task ([`Task`], [`PreferenceTask`] or [`ChessTask`]): The task.
        weak_half ([`~datasets.Dataset`]): The weak supervisor learns these, with ground truth.
        weak_validation ([`~datasets.Dataset`]): For the supervisor's early stopping.
        student_half ([`~datasets.Dataset`]): The supervisor labels these; students learn them with its labels, the
            ceiling with ground truth.
        student_validation ([`~datasets.Dataset`]): For the early stopping of students and ceiling.
        test ([`~datasets.Dataset`]): Everybody is scored on these.
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

    def __post_init__(self):
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
        """Rows that the weak supervisor learns."""
        return Half(self.weak_half, self.weak_validation)

    @property
    def student(self) -> Half:
        """Rows that the supervisor labels and students learn."""
        return Half(self.student_half, self.student_validation)

    def bootstrap(self, k: int) -> Half:
        """Rows of the `k`-th link of a bootstrapping chain, from 1, which nobody else learns."""
        return Half(self.links[f"link_{k}"], self.links[f"link_{k}_validation"])

    @property
    def fingerprint(self) -> str:
        """
        Hash of all that models are given of every row of every part but the links, in order: 16 hexadecimal digits.
        It is the same with a chain and without one.
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
        """Where the rows come from: `task`, `dataset` (its `id` and `revision`) and `split_fingerprint`."""
        return {"task": self.task.name, "dataset": self.source, "split_fingerprint": self.fingerprint}


def sample_rows(rows: Dataset, n: int) -> tuple[Dataset, np.ndarray]:
    """At most `n` random rows in their order, always the same, and their numbers: `(len(rows),)` int64."""
    numbers = np.arange(len(rows))
    if len(rows) > n:
        numbers = np.sort(np.random.default_rng(0).permutation(len(rows))[:n])
        rows = rows.select(numbers)
    return rows, numbers


def read_split(
    task: AnyTask, raw: DatasetDict, names: tuple[str, ...], n: int | None = None
) -> tuple[str, Dataset, np.ndarray]:
    """
    [`w2s_hf.tasks.loading.pick_split`], at most `n` random rows of it, by default more than any experiment takes; and
    their numbers.
    """
    n = MAX_ROWS if n is None else n
    split, rows = pick_split(task, raw, names)
    if len(rows) > n:
        logger.warning(f"{task.name}: of {len(rows):,} rows of {split!r}, {n:,} random ones are read")
    return split, *sample_rows(rows, n)


def group_rows(rows: list[dict]) -> None:
    """Sets `group`: rows that share one of their `keys`, directly or through other rows, get the same."""
    number_of_key: dict[str, int] = {}
    edges = [
        (i, number_of_key.setdefault(key, len(number_of_key))) for i, row in enumerate(rows) for key in row["keys"]
    ]
    row_numbers, key_numbers = np.array(edges).T
    n_nodes = len(rows) + len(number_of_key)
    graph = coo_array((np.ones(len(edges)), (row_numbers, len(rows) + key_numbers)), shape=(n_nodes, n_nodes))
    components = connected_components(graph, directed=False)[1][: len(rows)]
    for row, component in zip(rows, components.tolist(), strict=True):
        row["group"] = str(component)


def set_apart(spare: list[dict], others: list[dict]) -> list[dict]:
    """The spare rows that share no key with others, directly or through spare ones; the groups of others stay."""
    if not spare:
        return []
    others = [{**row} for row in others]
    group_rows(others + spare)
    taken = {row["group"] for row in others}
    return [{**row, "group": f"spare {row['group']}"} for row in spare if row["group"] not in taken]


def hold_out(task: AnyTask, rows: list[dict], seed: int) -> tuple[list[dict], list[dict]]:
    """Train and test rows of a dataset with one split, whole groups apart."""
    group_rows(rows)
    rows = unique_rows(task, "read", rows)
    sides = deal_groups(rows, {"train": 1 - _HELD_OUT, "test": _HELD_OUT}, np.random.default_rng(seed))
    return sides["train"], sides["test"]


def unique_rows(task: AnyTask, split: str, rows: list[dict], apart_from: Sequence[dict] = ()) -> list[dict]:
    """
    The first of rows with equal text up to case and spacing, none of rows whose labels contradict each other, and none
    whose text or group is in `apart_from`.
    """
    foreign_texts = {normal(row["text"]) for row in apart_from}
    foreign_groups = {row["group"] for row in apart_from}
    truths = defaultdict(set)
    for row in rows:
        truths[normal(row["text"])].add(row["ground_truth"])
    kept, seen, lost = [], set(), Counter()
    for row in rows:
        text = normal(row["text"])
        if len(truths[text]) > 1:
            lost["are there with both labels"] += 1
        elif text in seen:
            lost["repeat another"] += 1
        elif text in foreign_texts or row["group"] in foreign_groups:
            lost["share their text or group with a test row"] += 1
        else:
            kept.append(row)
            seen.add(text)
    if lost:
        causes = ", ".join(f"{count} {cause}" for cause, count in lost.items())
        logger.info(f"{task.name}: of {len(rows)} {split} texts, {causes}: left out")
    return kept


def deal_groups(rows: list[dict], shares: dict[str, float], rng: np.random.Generator) -> dict[str, list[dict]]:
    """
    Deals whole groups to the side that is furthest behind its share of their more frequent class, in random order.

    Groups above a hundredth of all rows go first, the largest to the largest share: late, they would overfill a side.
    """
    members = defaultdict(list)
    for row in rows:
        members[row["group"]].append(row)
    groups = list(members.values())
    order = rng.permutation(len(groups)).tolist()
    order.sort(key=lambda position: -max(len(groups[position]) - len(rows) // 100, 0))
    names = sorted(shares, key=lambda name: -shares[name])
    weights = np.array([shares[name] for name in names], dtype=float)
    counts = np.zeros((2, len(names)))
    sides: dict[str, list[dict]] = {name: [] for name in shares}
    for position in order:
        group = groups[position]
        truths = [row["ground_truth"] for row in group]
        # Text has no classes to keep in balance.
        n_of_class = np.bincount([0 if isinstance(truth, str) else truth for truth in truths], minlength=2)
        side = int(np.argmin(counts[np.argmax(n_of_class)] / weights))
        counts[:, side] += n_of_class
        sides[names[side]] += group
    return sides


def deal_links(
    task: AnyTask, rows: list[dict], parts: dict[str, Dataset], wanted: dict[str, int], seed: int
) -> dict[str, list[dict]]:
    """
    Rows for the links of a chain, of those that are left: no part has them, or another row of their group. So asking
    for links moves no row of any other part.

    Args:
        task: For messages.
        rows (`list[dict]`): All training rows, with `group` and `ground_truth`.
        parts (`dict[str, Dataset]`): The others, finished.
        wanted (`dict[str, int]`): As [`link_sizes`] has it.
        seed (`int`): Of the deal.

    Raises:
        ValueError: fewer are left than are wanted.
    """
    taken = {group for part in parts.values() for group in part["group"]}
    left = [row for row in rows if row["group"] not in taken]
    n_wanted = sum(wanted.values())
    if n_wanted > len(left):
        raise ValueError(
            f"{task.name}: --n_train: got {n_wanted} rows for the {len(wanted)} parts of a chain's links, expected at "
            f"most {len(left)}, which are left. Ask for fewer, or train all links on the same rows: --link_rows same."
        )
    return deal_groups(left, wanted, np.random.default_rng([seed, zlib.crc32(b"links")]))


def deal_parts(
    task: AnyTask,
    train: list[dict],
    test: list[dict],
    wanted: dict[str, int | None],
    n_test: int | None,
    columns: Sequence[str],
    seed: int,
    links: dict[str, int] | None = None,
    spare: Sequence[dict] = (),
) -> tuple[dict[str, Dataset], dict[str, Dataset]]:
    """
    The parts of an experiment whose classes need not be balanced: whole groups of training rows dealt to all parts but
    the test set, and of each part the number asked for; then those of the links.

    Args:
        task: For messages.
        train, test (`list[dict]`): Rows with `group`, `ground_truth` and `columns`.
        wanted (`dict`): As [`part_sizes`] has it.
        n_test (`int`, *optional*): Test rows; all by default.
        columns (`Sequence[str]`): What to keep of a row beside its group and ground truth.
        seed (`int`): Of the test set a larger number keeps the rows of a smaller one.
        links (`dict`, *optional*): As [`link_sizes`] has it.
        spare (`Sequence[dict]`, *optional*): Training rows for the links alone.

    Returns:
        The parts, and the links.

    Raises:
        ValueError: there are too few rows.
    """
    check_enough(task, wanted, len(train))
    shares = {name: n or SHARES[name] for name, n in wanted.items()}
    n_validation = sum(n or 0 for name, n in wanted.items() if name.endswith("validation"))
    if n_validation and not any(n for name, n in wanted.items() if not name.endswith("validation")):
        rest = [name for name in wanted if not name.endswith("validation")]
        shares |= dict.fromkeys(rest, max(1, len(train) - n_validation) / len(rest))

    def dataset(name: str, rows: list[dict], n: int | None) -> Dataset:
        n = len(rows) if n is None else n
        if n > len(rows) or not rows:
            raise too_many(task, name, n, len(rows), "whole groups of rows stay in one part")
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        kept = (*columns, "group", "ground_truth")
        return Dataset.from_list([{column: row[column] for column in kept} for row in shuffled(rows, rng)[:n]])

    sides = deal_groups(train, shares, np.random.default_rng(seed))
    parts = {name: dataset(name, rows, wanted[name]) for name, rows in sides.items()}
    parts["test"] = dataset("test", test, n_test)
    links = links or {}
    of_links = deal_links(task, [*train, *spare], parts, links, seed) if links else {}
    return parts, {name: dataset(name, rows, links[name]) for name, rows in of_links.items()}


def counted(n_dropped: dict[str, int]) -> str:
    """`3 with an illegal move, 1 with no solution`"""
    return ", ".join(f"{count} with {reason}" for reason, count in n_dropped.items())


def shuffled(rows: list, rng: np.random.Generator) -> list:
    """The rows in random order."""
    return [rows[position] for position in rng.permutation(len(rows))]
