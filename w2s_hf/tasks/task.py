"""What a task is, and how its rows become a weak half, a student half, a validation set and a test set."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, load_dataset
from datasets.fingerprint import generate_random_fingerprint
from transformers import PreTrainedTokenizerBase

from ..hub import ensure_available

__all__ = ["Source", "Task", "TaskSplits", "load_splits", "tokenize_rows"]


@dataclass(frozen=True)
class Source:
    """A dataset on the Hub: repository, configuration, revision."""

    id: str
    config: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Task:
    """
    A binary task as data.

    Args:
        name (`str`): Its name on the command line.
        description (`str`): One line for people.
        sources (`tuple[Source]`): Where its rows are on the Hub; the next one is tried when one does not load.
        columns (`tuple[str]`): Columns that `format` reads.
        format (`Callable[[dict], dict]`):
            A row to `text` and `ground_truth` (0 or 1), and where there is one its `group` (rows that share a passage
            or a question share a side of every split) and the `context` inside `text` that may be shortened.
        class_names (`tuple[str, str]`): What 0 and 1 mean.
        train_split, test_split (`str`): Names of the splits; the test split is never trained on.
    """

    name: str
    description: str
    sources: tuple[Source, ...]
    columns: tuple[str, ...]
    format: Callable[[dict], dict]
    class_names: tuple[str, str]
    train_split: str = "train"
    test_split: str = "validation"


@dataclass(frozen=True)
class TaskSplits:
    """
    The rows of an experiment. Columns of each part: `id`, `text`, `context`, `group`, `ground_truth` (0 or 1).

    Args:
        task ([`Task`]): The task.
        weak_half ([`~datasets.Dataset`]): The weak supervisor learns these, with ground truth.
        student_half ([`~datasets.Dataset`]): The supervisor labels these; students learn them with its labels, the
            ceiling with ground truth.
        validation ([`~datasets.Dataset`]): For early stopping.
        test ([`~datasets.Dataset`]): Everybody is scored on these.
        source (`dict`): `id` and `revision` of the dataset.

    Raises:
        ValueError: a part is empty or has one class, an id occurs twice, or a group is on two sides.
    """

    task: Task
    weak_half: Dataset
    student_half: Dataset
    validation: Dataset
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
        return {
            "weak_half": self.weak_half,
            "student_half": self.student_half,
            "validation": self.validation,
            "test": self.test,
        }

    @property
    def fingerprint(self) -> str:
        """Hash of every row of every part, in order: 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for name, part in self.parts.items():
            for row_id, text, truth in zip(part["id"], part["text"], part["ground_truth"], strict=True):
                digest.update(f"{name}\0{row_id}\0{text}\0{truth}\n".encode())
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
) -> TaskSplits:
    """
    Loads, formats, deduplicates, halves and balances the rows of a task.

    Every part has equally many rows of both classes. (The paper, A.3, balances the test set and any dataset whose
    majority is above 55 %; we balance all, so that chance is one half everywhere.) Rows of one group stay on one side,
    and a training row whose text or group is in the test set is dropped.

    Args:
        task ([`Task`]): The task.
        dataset_path (`str`, *optional*): A local directory in the dataset's own schema; else the rows are the Hub's.
        raw ([`~datasets.DatasetDict`], *optional*): Rows in memory, in place of either.
        n_train (`int`, *optional*): Rows of the student half; defaults to `n_weak`, and to half of all rows.
        n_weak (`int`, *optional*): Rows of the weak half; defaults to `n_train`.
        n_validation (`int`, *optional*): Defaults to a tenth of the training rows.
        n_test (`int`, *optional*): Defaults to all.
        seed (`int`, *optional*, defaults to `0`): Of the halves.

    Raises:
        FileNotFoundError, ConnectionError: see [`w2s_hf.hub.ensure_available`].
        ValueError: a split or column is missing, a label is not 0 or 1, or there are too few rows.
    """
    if raw is not None:
        source = {"id": task.sources[0].id, "revision": "generated"}
    elif dataset_path is not None:
        raw = _load_local(task, dataset_path)
        source = {"id": task.sources[0].id, "revision": "local"}
    else:
        raw, source = _load_from_hub(task)
    missing = [name for name in (task.train_split, task.test_split) if name not in raw]
    if missing:
        raise ValueError(f"{task.name}: no split {missing[0]!r}; the splits found are {', '.join(raw) or 'none'}.")
    test = _unique(_format(task, raw[task.test_split], task.test_split))
    train = _unique(_format(task, raw[task.train_split], task.train_split), apart_from=test)

    n_weak = n_train if n_weak is None else n_weak
    n_train = n_weak if n_train is None else n_train
    if n_train is None:
        wanted = {"weak_half": None, "student_half": None, "validation": n_validation}
        shares = {"weak_half": 0.45, "student_half": 0.45, "validation": 0.1}
    else:
        wanted = {
            "weak_half": n_weak,
            "student_half": n_train,
            "validation": n_validation or max(2, (n_weak + n_train) // 10),
        }
        shares = wanted
    rng = np.random.default_rng(seed)
    sides = _assign_groups(train, shares, rng)
    parts = {name: _balance(task, name, sides[name], wanted[name], rng) for name in sides}
    return TaskSplits(task, **parts, test=_balance(task, "test", test, n_test, rng), source=source)


def _load_local(task: Task, dataset_path: str) -> DatasetDict:
    if not Path(dataset_path).is_dir():
        raise FileNotFoundError(
            f"--dataset_path: got {dataset_path!r}, which is no directory; expected one that "
            f"`datasets.load_dataset` reads, with the columns {', '.join(task.columns)}."
        )
    return load_dataset(dataset_path)


def _load_from_hub(task: Task) -> tuple[DatasetDict, dict]:
    failures = []
    for source in task.sources:
        try:
            # A Hub that does not answer ends this at once; a repository that is gone has a successor.
            commit = ensure_available(
                source.id, repo_type="dataset", option="--dataset_path", revision=source.revision
            )
        except FileNotFoundError as error:
            failures.append(f"{source.id}: {error}")
            continue
        try:
            revision = commit or source.revision
            raw = load_dataset(source.id, source.config, revision=revision)
            return raw, {"id": source.id, "revision": revision or "cached"}
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a dataset that is a script
            failures.append(f"{source.id}: {type(error).__name__}: {error}")
    raise ConnectionError(
        f"{task.name}: none of its datasets loads ({'; '.join(failures)}). Give --dataset_path a local copy, "
        "or run the recipe with no model and no data named: the embedded demo needs no network."
    )


def _format(task: Task, rows: Dataset, split: str) -> Dataset:
    missing = [name for name in task.columns if name not in rows.column_names]
    if missing:
        raise ValueError(
            f"{task.name}: the split {split!r} has no column {missing[0]!r}; it has {', '.join(rows.column_names)}, "
            f"expected {', '.join(task.columns)}."
        )
    formatted = []
    for index, row in enumerate(rows.select_columns(list(task.columns))):
        row_id = f"{split}-{index}"
        empty = [name for name in task.columns if row[name] is None]
        if empty:
            raise ValueError(f"{task.name}: the row {row_id} has no {empty[0]!r}.")
        example = task.format(row)
        if example["ground_truth"] not in (0, 1):
            # -1 marks the unlabelled test splits of GLUE and others.
            raise ValueError(
                f"{task.name}: the row {row_id} has the label {example['ground_truth']}, expected 0 or 1."
            )
        formatted.append({"id": row_id, "context": "", "group": row_id, **example})
    if not formatted:
        raise ValueError(f"{task.name}: the split {split!r} is empty.")
    return Dataset.from_list(formatted)


def _normal(texts: list[str]) -> list[str]:
    return [" ".join(text.casefold().split()) for text in texts]


def _unique(rows: Dataset, apart_from: Dataset | None = None) -> Dataset:
    """The first of rows with equal text up to case and spacing; none whose text or group is in `apart_from`."""
    seen = set() if apart_from is None else set(_normal(apart_from["text"]))
    foreign = set() if apart_from is None else set(_normal(apart_from["group"]))
    kept = []
    for index, (text, group) in enumerate(zip(_normal(rows["text"]), _normal(rows["group"]), strict=True)):
        if text not in seen and group not in foreign:
            kept.append(index)
            seen.add(text)
    return rows.select(kept)


def _assign_groups(rows: Dataset, shares: dict[str, float], rng: np.random.Generator) -> dict[str, Dataset]:
    """Deals whole groups, in random order, to the side that is furthest behind its share."""
    members: dict[str, list[int]] = {}
    for index, group in enumerate(_normal(rows["group"])):
        members.setdefault(group, []).append(index)
    groups = list(members.values())
    names = list(shares)
    weights = np.array([shares[name] for name in names], dtype=float)
    counts = np.zeros(len(names))
    sides: dict[str, list[int]] = {name: [] for name in names}
    for position in rng.permutation(len(groups)):
        side = int(np.argmin(counts / weights))
        counts[side] += len(groups[position])
        sides[names[side]] += groups[position]
    return {name: rows.select(sides[name]) for name in names}


def _balance(task: Task, name: str, rows: Dataset, n: int | None, rng: np.random.Generator) -> Dataset:
    """`n` random rows, half of each class; by default as many as the rarer class allows."""
    truth = np.array(rows["ground_truth"], dtype=int)
    by_class = [np.flatnonzero(truth == label) for label in (0, 1)]
    n_pairs = min(len(indices) for indices in by_class)
    wanted = (n_pairs, n_pairs) if n is None else (n - n // 2, n // 2)
    short = [label for label in (0, 1) if len(by_class[label]) < wanted[label]]
    if short and n_pairs:
        raise ValueError(
            f"{task.name}: {n} rows asked for in `{name}`, {n // 2} of each class; after balancing there are at most "
            f"{2 * n_pairs} ({len(by_class[0])} {task.class_names[0]}, {len(by_class[1])} {task.class_names[1]}). "
            "Ask for fewer."
        )
    if not n_pairs:
        found = task.class_names[1] if len(by_class[1]) else task.class_names[0]
        raise ValueError(
            f"{task.name}: the {len(truth)} rows of `{name}` are all {found!r}"
            if len(truth)
            else f"{task.name}: no rows are left for `{name}`"
        )
    chosen = [rng.permutation(indices)[:count] for indices, count in zip(by_class, wanted, strict=True)]
    # A copy, not a view: columns are added to it again and again, and each time a view would be copied first.
    return Dataset.from_dict(rows[rng.permutation(np.concatenate(chosen))], features=rows.features)


def tokenize_rows(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Dataset:
    """
    Adds `input_ids` and what else the tokenizer makes, for rows with `text`, `context` and `id`.

    Where a text is longer than `max_length` tokens, its context is shortened from the end; question and answer stay
    whole, and no row is dropped, so that everybody is tested on the same rows. A text without context is truncated.

    Raises:
        ValueError: what is left without the context does not fit; the row is named.
    """

    def encode(batch: dict) -> dict:
        encoded = tokenizer(batch["text"])
        if max_length is None:
            return encoded
        for position, ids in enumerate(encoded["input_ids"]):
            if len(ids) > max_length:
                shorter = _shorten(
                    tokenizer, batch["text"][position], batch["context"][position], max_length, batch["id"][position]
                )
                for key in encoded:
                    encoded[key][position] = shorter[key]
        return encoded

    # datasets would hash `encode`, and the tokenizer with it, to name a cache file that rows in memory do not have; a
    # Ctrl-C in that tenth of a second is lost (`except:` in datasets.fingerprint).
    return rows.map(encode, batched=True, desc="Tokenizing", new_fingerprint=generate_random_fingerprint())


def _shorten(tokenizer: PreTrainedTokenizerBase, text: str, context: str, max_length: int, row_id: str) -> dict:
    if not context:
        return tokenizer(text, truncation=True, max_length=max_length)
    before, after = text.split(context, 1)
    ends = [
        end for _, end in tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ]
    n_excess = len(tokenizer(text)["input_ids"]) - max_length
    # Cutting can merge characters into other tokens at the seam: cut one token more until the text fits.
    for n_kept in range(len(ends) - n_excess, -1, -1):
        shorter = tokenizer(before + context[: ends[n_kept - 1] if n_kept else 0] + after)
        if len(shorter["input_ids"]) <= max_length:
            return shorter
    n_left = len(tokenizer(before + after)["input_ids"])
    raise ValueError(
        f"The row {row_id} is {n_left} tokens long without its context, more than max_length {max_length}; raise "
        "--max_length."
    )
