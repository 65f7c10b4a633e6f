"""Formats the rows of a [`Task`] as texts, and balances their classes."""

import logging
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from .halves import shuffled, too_many
from .loading import check_class_names
from .splits import Loader
from .task import EmptyFieldError, LabelError, Task, random_key

__all__ = ["CONVERSIONS", "TextLoader", "choose_answers", "read_examples"]

logger = logging.getLogger(__name__)

# A question with several answers is converted to rows. `pairs` (paper, A.1) yields a row with a right answer and a row
# with a wrong answer. `coin_flip` (openai/weak-to-strong, EleutherAI/w2s) yields a single row with either answer.
CONVERSIONS = ("pairs", "coin_flip")


def read_examples(
    task: Task, split: str, rows: Dataset, numbers: Sequence[int] | np.ndarray | None = None
) -> list[dict]:
    """
    Formats the rows of a split as texts, in an order that depends only on their content.

    Args:
        task ([`Task`]): The task.
        split (`str`): The name of the split in errors.
        rows ([`~datasets.Dataset`]): Rows with the columns of the task.
        numbers (`Sequence[int]`, *optional*): The number of each row in the split, if `rows` is a part of it.

    Returns:
        `list[dict]`: The examples of [`Task.examples`], with `row`, the position in `rows`.

    Raises:
        ValueError: A row is invalid (see [`Task.examples`]), or a function of the task fails on a row. The message has
            the number of the row.
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
                        f"{where} {error}. Fill the field, or leave such rows out: `drop_empty=True` in the task, or "
                        "--drop_empty true."
                    ) from error
            except LabelError as error:
                raise ValueError(f"{where} {error}. {_label_advice(task, rows)}") from error
            except ValueError as error:
                raise ValueError(f"{where} {error}.") from error
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{where}: a function of the task fails with {type(error).__name__}: {error}. It gets the columns "
                    f"{', '.join(task.columns)}. Name other columns that it needs in `reads`."
                ) from error
            else:
                examples += [{**example, "row": index} for example in of_row]
    if n_empty:
        logger.warning(f"{task.name}: {n_empty} of {len(rows)} rows of {split!r} have an empty field and are left out")
    if not examples:
        raise ValueError(f"{task.name}: all rows of the split {split!r} have an empty field. Add complete rows.")
    return sorted(examples, key=lambda example: example["id"])


def _label_advice(task: Task, rows: Dataset) -> str:
    """Returns the advice for labels other than the two classes of a task."""
    if not isinstance(task.label, str):
        return "Correct the function `label` of the task, which must return 0 or 1."
    column = task.label
    values = sorted({str(value): value for value in rows[column] if value is not None}.values(), key=str)
    shown = ", ".join(map(repr, values[:6])) + (", ..." if len(values) > 6 else "")
    if len(values) == 2 and all(isinstance(value, str) for value in values):
        return f"The column {column!r} has these two values: set class_names=({shown}), with class 1 last."
    return (
        f"The column {column!r} holds {shown}, but tasks are binary. Leave out the rows of other classes, or map the "
        f"values to class 1 by a function: label=lambda row: row[{column!r}] in ({values[-1]!r},), reads={column!r}."
    )


def choose_answers(rows: list[dict], conversion: str = "pairs") -> list[dict]:
    """
    Chooses equally many right and wrong answers to each question, or a single answer with `"coin_flip"`.

    Rows without a `question` are all kept. The choice depends only on the ids.

    Args:
        rows (`list[dict]`): Examples from [`read_examples`].
        conversion (`str`, *optional*, defaults to `"pairs"`): As in [`w2s_hf.tasks.load_task`].

    Returns:
        `list[dict]`: The chosen rows, sorted by `id`.

    Raises:
        ValueError: The conversion is unknown.
    """
    if conversion not in CONVERSIONS:
        raise ValueError(f"conversion: got {conversion!r}, expected one of {', '.join(CONVERSIONS)}.")
    chosen = [row for row in rows if not row["question"]]
    answers: dict[str, tuple[list[dict], list[dict]]] = defaultdict(lambda: ([], []))
    for row in sorted(rows, key=lambda row: random_key(row["id"], "answer")):
        if row["question"]:
            answers[row["question"]][row["ground_truth"]].append(row)
    for question, by_truth in answers.items():
        if conversion == "pairs":
            n = min(map(len, by_truth))
            chosen += [row for of_class in by_truth for row in of_class[:n]]
        else:
            side = by_truth[int(random_key(question, "coin"), 16) % 2]
            chosen.append((side or by_truth[0] or by_truth[1])[0])
            chosen[-1] = {**chosen[-1], "question": ""}  # there is no second row in the same part
    return sorted(chosen, key=lambda row: row["id"])


class TextLoader(Loader):
    """Loads texts of two classes, with equally many rows of each class in every part."""

    task: Task
    further_columns = ("group", "question")

    def __init__(self, task: Task, conversion: str):
        super().__init__(task)
        self.conversion = conversion

    def read(self, split: str, rows: Dataset, numbers: np.ndarray) -> list[dict]:
        check_class_names(self.task, split, rows)
        examples = read_examples(self.task, split, rows, numbers)
        classes = {example["ground_truth"] for example in examples}
        if len(classes) == 1:
            raise ValueError(
                f"{self.task.name}: the {len(examples)} rows of the split {split!r} are all "
                f"{self.task.class_names[classes.pop()]!r}, expected both classes. Add rows of the other class, or "
                "correct the `label` of the task."
            )
        return examples

    def choose(self, rows: list[dict]) -> list[dict]:
        return choose_answers(rows, self.conversion)

    def n_usable(self, rows: list[dict]) -> int:
        return 2 * min(sum(row["ground_truth"] == label for row in rows) for label in (0, 1))

    def n_for_validation(self, train: list[dict], wanted: dict[str, int]) -> dict[str, float]:
        # Balancing keeps twice the rows of the rarer class. A fifth is added, because the share of
        # this class differs by group.
        rarer = min(np.mean([row["ground_truth"] == label for row in train]) for label in (0, 1))
        return dict.fromkeys(wanted, 1.2 * sum(wanted.values()) / (2 * max(rarer, 0.01)) / 2)

    def rows_of(self, name: str, rows: list[dict], n: int | None, rng: np.random.Generator) -> list[dict]:
        """
        Returns `n` random rows, half of each class, with whole questions first. By default, `n` is twice the number of
        rows of the rarer class. A larger `n` keeps the rows of a smaller `n`.
        """
        by_class = [[row for row in rows if row["ground_truth"] == label] for label in (0, 1)]
        n_pairs = min(map(len, by_class))
        if not n_pairs:
            only = self.task.class_names[1] if by_class[1] else self.task.class_names[0]
            raise ValueError(
                f"{self.task.name}: got {len(rows)} rows for `{name}`{f', all {only!r}' if rows else ''}, expected "
                "both classes in each part. Add rows. The split drops duplicates, rows that occur with both labels, "
                "and rows that share a group with a test row."
            )
        n = 2 * n_pairs if n is None else n
        if n > 2 * n_pairs:
            counts = f"{len(by_class[0])} {self.task.class_names[0]}, {len(by_class[1])} {self.task.class_names[1]}"
            raise too_many(self.task, name, n, 2 * n_pairs, f"after balancing {counts}")
        if rows[0]["question"]:
            questions: dict[str, tuple[list[dict], list[dict]]] = defaultdict(lambda: ([], []))
            for row in rows:
                questions[row["question"]][row["ground_truth"]].append(row)
            # `choose_answers` leaves equally many rows of each class in a question.
            pairs = [pair for of_question in questions.values() for pair in zip(*of_question, strict=True)]
        else:
            pairs = list(zip(*(shuffled(of_class, rng)[:n_pairs] for of_class in by_class), strict=True))
        pairs = shuffled(pairs, rng)
        chosen = [row for pair in pairs[: (n + 1) // 2] for row in pair][:n]
        return shuffled(chosen, rng)
