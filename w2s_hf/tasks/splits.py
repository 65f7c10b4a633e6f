"""How the rows of a task become the parts of an experiment."""

import hashlib
import logging
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset, DatasetDict
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .loading import load_raw, pick_split
from .task import EmptyFieldError, Task, normal, random_key
from .tokenizing import TEXT_COLUMNS

__all__ = ["CONVERSIONS", "TaskSplits", "choose_answers", "group_rows", "load_splits", "read_examples", "sample_rows"]

logger = logging.getLogger(__name__)

# How a question with several answers becomes rows: one right and one wrong answer each (paper, A.1), or one row with
# either (openai/weak-to-strong, EleutherAI/w2s).
CONVERSIONS = ("pairs", "coin_flip")

# Of a larger split, so many random rows: far more than any experiment takes, and formatted in seconds.
_MAX_ROWS = 200_000
_HELD_OUT = 0.2
# Of the training rows, where no number is given.
_SHARES = {"weak_half": 0.45, "weak_validation": 0.05, "student_half": 0.45, "student_validation": 0.05}


@dataclass(frozen=True)
class TaskSplits:
    """
    The rows of an experiment.

    Columns of each part: `id`, `text`, `context_start` and `context_end` (characters of `text` that may go where it is
    too long), `shorten_from`, `group`, `question` (empty, or the same for the answers to a question) and
    `ground_truth` (0 or 1).

    Args:
        task ([`Task`]): The task.
        weak_half ([`~datasets.Dataset`]): The weak supervisor learns these, with ground truth.
        weak_validation ([`~datasets.Dataset`]): For the supervisor's early stopping.
        student_half ([`~datasets.Dataset`]): The supervisor labels these; students learn them with its labels, the
            ceiling with ground truth.
        student_validation ([`~datasets.Dataset`]): For the early stopping of students and ceiling.
        test ([`~datasets.Dataset`]): Everybody is scored on these.
        source (`dict`): `id` and `revision` of the dataset.

    Raises:
        ValueError: a part is empty or has one class, an id occurs twice, or a group is on two sides.
    """

    task: Task
    weak_half: Dataset
    weak_validation: Dataset
    student_half: Dataset
    student_validation: Dataset
    test: Dataset
    source: dict = field(default_factory=dict)

    def __post_init__(self):
        owner_of_id: dict[str, str] = {}
        owner_of_group: dict[str, str] = {}
        for name, part in self.parts.items():
            if len(part) == 0:
                raise ValueError(f"{self.task.name}: the split `{name}` is empty; ask for fewer rows elsewhere.")
            classes = sorted(set(part["ground_truth"]))
            if classes != [0, 1]:
                raise ValueError(
                    f"{self.task.name}: the split `{name}` ({len(part)} rows) has the classes {classes}, expected 0 "
                    "and 1; accuracy and PGR mean nothing on a single class."
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
        """The five parts by name."""
        names = ("weak_half", "weak_validation", "student_half", "student_validation", "test")
        return {name: getattr(self, name) for name in names}

    @property
    def fingerprint(self) -> str:
        """Hash of all that models are given of every row of every part, in order: 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for name, part in self.parts.items():
            columns = [part[column][:] for column in (*TEXT_COLUMNS, "ground_truth")]
            for row in zip(*columns, strict=True):
                digest.update(("\0".join(map(str, (name, *row))) + "\n").encode())
        return digest.hexdigest()[:16]


def load_splits(
    task: Task,
    *,
    dataset_path: str | None = None,
    raw: DatasetDict | None = None,
    n_train: int | None = None,
    n_weak: int | None = None,
    n_validation: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
    conversion: str = "pairs",
) -> TaskSplits:
    """
    Loads, formats, deduplicates, halves and balances the rows of a task.

    Every part has equally many rows of both classes. (The paper, A.1, balances the test set and any dataset whose
    majority is above 55 %; we balance all, so that chance is one half everywhere.) Rows of one group stay on one side,
    a training row whose text or group is in the test set is dropped, and the answers to a question stay together.
    An odd number of rows has one more of class 0. Neither the order of the rows nor their split changes which answer
    of a question is taken.

    Args:
        task ([`Task`]): The task.
        dataset_path (`str`, *optional*): A local directory or file in the dataset's own schema; else the rows are the
            task's own.
        raw ([`~datasets.DatasetDict`], *optional*): Rows in memory, in place of either.
        n_train (`int`, *optional*): Rows of the student half; defaults to `n_weak`, and to half of all rows.
        n_weak (`int`, *optional*): Rows of the weak half; defaults to `n_train`.
        n_validation (`int`, *optional*): Rows of both validation parts together; defaults to a tenth of the training
            rows.
        n_test (`int`, *optional*): Defaults to all.
        seed (`int`, *optional*, defaults to `0`): Of the halves.
        conversion (`str`, *optional*, defaults to `"pairs"`): `"pairs"` makes one right and one wrong row of a
            question, `"coin_flip"` one row with either.

    Returns:
        [`TaskSplits`]

    Raises:
        FileNotFoundError, ConnectionError: see [`w2s_hf.tasks.loading.load_raw`].
        ValueError: a split or column is missing, a field is empty, a label is not 0 or 1, or there are too few rows.
    """
    if raw is not None:
        source = {"id": task.sources[0].id, "revision": "generated"}
    else:
        raw, source = load_raw(task, dataset_path)
    train = _read_split(task, raw, task.train_split)
    if task.test_split is None:
        train, test = _hold_out(task, train, seed)
    else:
        test = _read_split(task, raw, task.test_split)
        group_rows(train + test)
    test = choose_answers(_unique(task, "test", test), conversion)
    train = choose_answers(_unique(task, "training", train, apart_from=test), conversion)

    wanted = _part_sizes(n_train, n_weak, n_validation)
    shares = {name: n or _SHARES[name] for name, n in wanted.items()}
    if n_train is None and n_weak is None and n_validation is not None:
        # Of the rows dealt to a part, balancing leaves twice the rarer class; a fifth more, as groups differ.
        rarer = min(np.mean([row["ground_truth"] == label for row in train]) for label in (0, 1))
        n_dealt = 1.2 * n_validation / (2 * max(rarer, 0.01))
        shares |= dict.fromkeys(("weak_validation", "student_validation"), n_dealt / 2)
        shares |= dict.fromkeys(("weak_half", "student_half"), max(1, len(train) - n_dealt) / 2)
    sides = _deal_groups(train, shares, np.random.default_rng(seed))
    parts = {name: _balance(task, name, rows, wanted[name], seed) for name, rows in sides.items()}
    return TaskSplits(task, **parts, test=_balance(task, "test", test, n_test, seed), source=source)


def _part_sizes(n_train: int | None, n_weak: int | None, n_validation: int | None) -> dict[str, int | None]:
    """Rows of each part but the test set; `None` is as many as there are."""
    n_weak = n_train if n_weak is None else n_weak
    n_train = n_weak if n_train is None else n_train
    if n_validation is None and n_train is not None:
        n_validation = max(4, (n_weak + n_train) // 10)
    n_first = None if n_validation is None else n_validation // 2
    n_second = None if n_validation is None else n_validation - n_first
    sizes = {"weak_half": n_weak, "weak_validation": n_first, "student_half": n_train, "student_validation": n_second}
    for name, n in sizes.items():
        if n is not None and n < 2:
            raise ValueError(f"{n} rows asked for in `{name}`, expected at least 2, one of each class.")
    return sizes


def read_examples(task: Task, split: str, rows: Dataset, numbers: Sequence[int] | None = None) -> list[dict]:
    """
    Every text that the rows of a split become, in an order that depends on their content alone.

    Args:
        task ([`Task`]): The task.
        split (`str`): Its name, for errors.
        rows ([`~datasets.Dataset`]): With the columns of the task.
        numbers (`Sequence[int]`, *optional*): What number each row has in the split, if these are not all of them.

    Returns:
        `list[dict]`: As [`Task.examples`], and `row`, the position among `rows`.

    Raises:
        ValueError: as [`Task.examples`], with the number of the row; or a function of the task fails on it.
    """
    examples, n_empty, index = [], 0, -1
    for batch in rows.select_columns(list(task.columns)).iter(1000):
        for values in zip(*batch.values(), strict=True):
            index += 1
            where = f"{task.name}: row {index if numbers is None else numbers[index]} of the split {split!r}"
            try:
                of_row = list(task.examples(dict(zip(batch, values, strict=True))))
            except EmptyFieldError as error:
                n_empty += 1
                if not task.drop_empty:
                    raise ValueError(
                        f"{where} {error}. Mend it, or leave such rows out: `drop_empty=True` in the task, or "
                        "--drop_empty true."
                    ) from error
            except ValueError as error:
                raise ValueError(f"{where} {error}.") from error
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{where}: a function of the task fails with {type(error).__name__}: {error}. It was given the "
                    f"columns {', '.join(task.columns)}; name others that it needs in `reads`."
                ) from error
            else:
                examples += [{**example, "row": index} for example in of_row]
    if n_empty:
        logger.warning(f"{task.name}: {n_empty} of {len(rows)} rows of {split!r} have an empty field and are left out")
    if not examples:
        raise ValueError(f"{task.name}: no row of the split {split!r} is left.")
    return sorted(examples, key=lambda example: example["id"])


def sample_rows(rows: Dataset, n: int) -> tuple[Dataset, np.ndarray]:
    """At most `n` random rows in their order, always the same, and their numbers: `(len(rows),)` int64."""
    numbers = np.arange(len(rows))
    if len(rows) > n:
        numbers = np.sort(np.random.default_rng(0).permutation(len(rows))[:n])
        rows = rows.select(numbers)
    return rows, numbers


def _read_split(task: Task, raw: DatasetDict, names: tuple[str, ...]) -> list[dict]:
    split, rows = pick_split(task, raw, names)
    if len(rows) > _MAX_ROWS:
        logger.warning(f"{task.name}: of {len(rows):,} rows of {split!r}, {_MAX_ROWS:,} random ones are read")
    rows, numbers = sample_rows(rows, _MAX_ROWS)
    examples = read_examples(task, split, rows, numbers)
    found = {example["ground_truth"] for example in examples}
    if len(found) == 1:
        raise ValueError(
            f"{task.name}: the {len(examples)} rows of the split {split!r} are all {task.class_names[found.pop()]!r}; "
            "both classes are needed."
        )
    return examples


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


def _hold_out(task: Task, rows: list[dict], seed: int) -> tuple[list[dict], list[dict]]:
    """Train and test rows of a dataset with one split, whole groups apart."""
    group_rows(rows)
    rows = _unique(task, "read", rows)
    sides = _deal_groups(rows, {"train": 1 - _HELD_OUT, "test": _HELD_OUT}, np.random.default_rng(seed))
    return sides["train"], sides["test"]


def _unique(task: Task, split: str, rows: list[dict], apart_from: Sequence[dict] = ()) -> list[dict]:
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


def choose_answers(rows: list[dict], conversion: str = "pairs") -> list[dict]:
    """
    Of the answers to each question, as many right as wrong ones, or with `"coin_flip"` one of either kind.

    Rows without a `question` stay as they are. Which answer is taken depends on the ids alone.

    Args:
        rows (`list[dict]`): As [`read_examples`] returns them.
        conversion (`str`, *optional*, defaults to `"pairs"`): As in [`load_splits`].

    Returns:
        `list[dict]`: Some of `rows`, by `id`.

    Raises:
        ValueError: there is no such conversion.
    """
    if conversion not in CONVERSIONS:
        raise ValueError(f"conversion: got {conversion!r}, expected one of {', '.join(CONVERSIONS)}.")
    kept = [row for row in rows if not row["question"]]
    answers = defaultdict(lambda: ([], []))
    for row in sorted(rows, key=lambda row: random_key(row["id"], "answer")):
        if row["question"]:
            answers[row["question"]][row["ground_truth"]].append(row)
    for question, by_truth in answers.items():
        if conversion == "pairs":
            n = min(map(len, by_truth))
            kept += [row for of_class in by_truth for row in of_class[:n]]
        else:
            side = by_truth[int(random_key(question, "coin"), 16) % 2]
            kept.append((side or by_truth[0] or by_truth[1])[0])
            kept[-1] = {**kept[-1], "question": ""}  # no second row to stay with
    return sorted(kept, key=lambda row: row["id"])


def _deal_groups(rows: list[dict], shares: dict[str, float], rng: np.random.Generator) -> dict[str, list[dict]]:
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
        n_of_class = np.bincount([row["ground_truth"] for row in group], minlength=2)
        side = int(np.argmin(counts[np.argmax(n_of_class)] / weights))
        counts[:, side] += n_of_class
        sides[names[side]] += group
    return sides


def _balance(task: Task, name: str, rows: list[dict], n: int | None, seed: int) -> Dataset:
    """
    `n` random rows, half of each class, whole questions first; by default as many as the rarer class allows.

    A larger `n` keeps the rows of a smaller one.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    by_class = [[row for row in rows if row["ground_truth"] == label] for label in (0, 1)]
    n_pairs = min(map(len, by_class))
    if not n_pairs:
        found = task.class_names[1] if by_class[1] else task.class_names[0]
        raise ValueError(
            f"{task.name}: the {len(rows)} rows of `{name}` are all {found!r}; both classes are needed."
            if rows
            else f"{task.name}: no rows are left for `{name}`."
        )
    n = 2 * n_pairs if n is None else n
    if n > 2 * n_pairs:
        raise ValueError(
            f"{task.name}: {n} rows asked for in `{name}`, {n // 2} of each class; after balancing there are at most "
            f"{2 * n_pairs} ({len(by_class[0])} {task.class_names[0]}, {len(by_class[1])} {task.class_names[1]}). "
            "Ask for fewer."
        )
    if rows[0]["question"]:
        questions = defaultdict(lambda: ([], []))
        for row in rows:
            questions[row["question"]][row["ground_truth"]].append(row)
        # As many of each class within each question, see `choose_answers`.
        pairs = [pair for of_question in questions.values() for pair in zip(*of_question, strict=True)]
    else:
        pairs = list(zip(*(_shuffled(of_class, rng)[:n_pairs] for of_class in by_class), strict=True))
    pairs = _shuffled(pairs, rng)
    chosen = [row for pair in pairs[: (n + 1) // 2] for row in pair][:n]
    columns = (*TEXT_COLUMNS, "group", "question", "ground_truth")
    return Dataset.from_list([{column: row[column] for column in columns} for row in _shuffled(chosen, rng)])


def _shuffled(rows: list, rng: np.random.Generator) -> list:
    return [rows[position] for position in rng.permutation(len(rows))]
