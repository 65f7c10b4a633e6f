"""How the rows of a task become the parts of an experiment."""

import logging
import zlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from datasets import Dataset, DatasetDict

from .dealing import (
    LINK_ROWS,
    TaskSplits,
    deal_groups,
    deal_links,
    group_rows,
    hold_out,
    read_split,
    set_apart,
    shuffled,
    unique_rows,
)
from .loading import load_raw
from .sizes import SHARES, check_enough, link_sizes, part_sizes, too_many
from .task import EmptyFieldError, LabelError, Task, random_key
from .tokenizing import TEXT_COLUMNS

__all__ = ["CONVERSIONS", "choose_answers", "load_splits", "read_examples"]

logger = logging.getLogger(__name__)

# How a question with several answers becomes rows: one right and one wrong answer each (paper, A.1), or one row with
# either (openai/weak-to-strong, EleutherAI/w2s).
CONVERSIONS = ("pairs", "coin_flip")


def load_splits(
    task: Task,
    *,
    dataset_path: str | None = None,
    raw: DatasetDict | None = None,
    n_train: int | None = None,
    n_weak: int | None = None,
    n_validation: int | None = None,
    n_test: int | None = None,
    n_links: int = 0,
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
        raw ([`~datasets.DatasetDict`], *optional*): Rows in memory, in place of either. Those of a split `links` serve
            the links alone, beside what the parts leave of the training split.
        n_train (`int`, *optional*): Rows of the student half; defaults to `n_weak`, and to half of all rows.
        n_weak (`int`, *optional*): Rows of the weak half; defaults to `n_train`.
        n_validation (`int`, *optional*): Rows of both validation parts together; defaults to a tenth of the training
            rows.
        n_test (`int`, *optional*): Defaults to all.
        n_links (`int`, *optional*, defaults to 0): Links of a bootstrapping chain to deal rows for, as many to each as
            to the student half. They are dealt from what is left: no row of any other part moves.
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
    wanted = part_sizes(n_train, n_weak, n_validation)
    links = link_sizes(wanted, n_links)
    train = _read_split(task, raw, task.train_split)
    spare = []
    if task.test_split is None:
        train, test = hold_out(task, train, seed)
    else:
        test = _read_split(task, raw, task.test_split)
        spare = _read_split(task, raw, (LINK_ROWS,)) if LINK_ROWS in raw else []
        group_rows(train + test)
        spare = set_apart(spare, train + test)
    spare = choose_answers(unique_rows(task, "link", spare, apart_from=train + test), conversion)
    test = choose_answers(unique_rows(task, "test", test), conversion)
    train = choose_answers(unique_rows(task, "training", train, apart_from=test), conversion)

    check_enough(task, wanted, 2 * min(sum(row["ground_truth"] == label for row in train) for label in (0, 1)))
    shares = {name: n or SHARES[name] for name, n in wanted.items()}
    if n_train is None and n_weak is None and n_validation is not None:
        # Of the rows dealt to a part, balancing leaves twice the rarer class; a fifth more, as groups differ.
        rarer = min(np.mean([row["ground_truth"] == label for row in train]) for label in (0, 1))
        n_dealt = 1.2 * n_validation / (2 * max(rarer, 0.01))
        shares |= dict.fromkeys(("weak_validation", "student_validation"), n_dealt / 2)
        shares |= dict.fromkeys(("weak_half", "student_half"), max(1, len(train) - n_dealt) / 2)
    sides = deal_groups(train, shares, np.random.default_rng(seed))
    parts = {name: _balance(task, name, rows, wanted[name], seed) for name, rows in sides.items()}
    parts["test"] = _balance(task, "test", test, n_test, seed)
    of_links = deal_links(task, train + spare, parts, links, seed) if links else {}
    of_links = {name: _balance(task, name, rows, links[name], seed) for name, rows in of_links.items()}
    return TaskSplits(task, **parts, source=source, links=of_links)


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
            except LabelError as error:
                raise ValueError(f"{where} {error}. {_label_advice(task, rows)}") from error
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


def _label_advice(task: Task, rows: Dataset) -> str:
    """Says what to do about a column of labels that are not all of two known classes."""
    if not isinstance(task.label, str):
        return "It comes from the function `label` of the task; let it return 0 or 1."
    column = task.label
    values = sorted({str(value): value for value in rows[column] if value is not None}.values(), key=str)
    shown = ", ".join(map(repr, values[:6])) + (", ..." if len(values) > 6 else "")
    if len(values) == 2 and all(isinstance(value, str) for value in values):
        return f"The column {column!r} has these two values: set class_names=({shown}), class 1 last."
    return (
        f"The column {column!r} holds {shown}, and tasks are binary: leave the rows of other classes out, or let a "
        f"function say which values are class 1: label=lambda row: row[{column!r}] in ({values[-1]!r},), "
        f"reads={column!r}."
    )


def _read_split(task: Task, raw: DatasetDict, names: tuple[str, ...]) -> list[dict]:
    split, rows, numbers = read_split(task, raw, names)
    examples = read_examples(task, split, rows, numbers)
    found = {example["ground_truth"] for example in examples}
    if len(found) == 1:
        raise ValueError(
            f"{task.name}: the {len(examples)} rows of the split {split!r} are all {task.class_names[found.pop()]!r}; "
            "both classes are needed. Add rows of the other class, or correct the `label` of the task."
        )
    return examples


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
            f"{task.name}: got {len(rows)} rows for `{name}`{f', all {found!r}' if rows else ''}, expected both "
            "classes in each part. Add rows; those that repeat another one, that have both labels, or that share "
            "their group with a test row are not counted."
        )
    n = 2 * n_pairs if n is None else n
    if n > 2 * n_pairs:
        counts = f"{len(by_class[0])} {task.class_names[0]}, {len(by_class[1])} {task.class_names[1]}"
        raise too_many(task, name, n, 2 * n_pairs, f"after balancing {counts}")
    if rows[0]["question"]:
        questions = defaultdict(lambda: ([], []))
        for row in rows:
            questions[row["question"]][row["ground_truth"]].append(row)
        # As many of each class within each question, see `choose_answers`.
        pairs = [pair for of_question in questions.values() for pair in zip(*of_question, strict=True)]
    else:
        pairs = list(zip(*(shuffled(of_class, rng)[:n_pairs] for of_class in by_class), strict=True))
    pairs = shuffled(pairs, rng)
    chosen = [row for pair in pairs[: (n + 1) // 2] for row in pair][:n]
    columns = (*TEXT_COLUMNS, "group", "question", "ground_truth")
    return Dataset.from_list([{column: row[column] for column in columns} for row in shuffled(chosen, rng)])
