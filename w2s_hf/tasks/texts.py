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

# How a question with several answers becomes rows: one right and one wrong answer each (paper, A.1), or one row with
# either (openai/weak-to-strong, EleutherAI/w2s).
CONVERSIONS = ("pairs", "coin_flip")


def read_examples(
    task: Task, split: str, rows: Dataset, numbers: Sequence[int] | np.ndarray | None = None
) -> list[dict]:
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


def choose_answers(rows: list[dict], conversion: str = "pairs") -> list[dict]:
    """
    Chooses as many right as wrong answers to each question, or with `"coin_flip"` one answer.

    Rows without a `question` stay as they are. Which answer is taken depends on the ids alone.

    Args:
        rows (`list[dict]`): As [`read_examples`] returns them.
        conversion (`str`, *optional*, defaults to `"pairs"`): As in [`w2s_hf.tasks.load_task`].

    Returns:
        `list[dict]`: Some of `rows`, by `id`.

    Raises:
        ValueError: there is no such conversion.
    """
    if conversion not in CONVERSIONS:
        raise ValueError(f"conversion: got {conversion!r}, expected one of {', '.join(CONVERSIONS)}.")
    kept = [row for row in rows if not row["question"]]
    answers: dict[str, tuple[list[dict], list[dict]]] = defaultdict(lambda: ([], []))
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


class TextLoader(Loader):
    """Texts with a yes or a no, equally many of both in every part."""

    task: Task
    further_columns = ("group", "question")

    def __init__(self, task: Task, conversion: str):
        super().__init__(task)
        self.conversion = conversion

    def read(self, split: str, rows: Dataset, numbers: np.ndarray) -> list[dict]:
        check_class_names(self.task, split, rows)
        examples = read_examples(self.task, split, rows, numbers)
        found = {example["ground_truth"] for example in examples}
        if len(found) == 1:
            raise ValueError(
                f"{self.task.name}: the {len(examples)} rows of the split {split!r} are all "
                f"{self.task.class_names[found.pop()]!r}; both classes are needed. Add rows of the other class, or "
                "correct the `label` of the task."
            )
        return examples

    def choose(self, rows: list[dict]) -> list[dict]:
        return choose_answers(rows, self.conversion)

    def n_usable(self, rows: list[dict]) -> int:
        return 2 * min(sum(row["ground_truth"] == label for row in rows) for label in (0, 1))

    def n_for_validation(self, train: list[dict], wanted: dict[str, int]) -> dict[str, float]:
        # Of the rows that a part is given, balancing leaves twice the rarer class; a fifth more, as groups differ.
        rarer = min(np.mean([row["ground_truth"] == label for row in train]) for label in (0, 1))
        return dict.fromkeys(wanted, 1.2 * sum(wanted.values()) / (2 * max(rarer, 0.01)) / 2)

    def rows_of(self, name: str, rows: list[dict], n: int | None, rng: np.random.Generator) -> list[dict]:
        """
        Returns `n` random rows, half of each class, whole questions first; by default as many as the rarer class
        allows. A larger `n` keeps the rows of a smaller one.
        """
        by_class = [[row for row in rows if row["ground_truth"] == label] for label in (0, 1)]
        n_pairs = min(map(len, by_class))
        if not n_pairs:
            found = self.task.class_names[1] if by_class[1] else self.task.class_names[0]
            raise ValueError(
                f"{self.task.name}: got {len(rows)} rows for `{name}`{f', all {found!r}' if rows else ''}, expected "
                "both classes in each part. Add rows; those that repeat another one, that have both labels, or that "
                "share their group with a test row are not counted."
            )
        n = 2 * n_pairs if n is None else n
        if n > 2 * n_pairs:
            counts = f"{len(by_class[0])} {self.task.class_names[0]}, {len(by_class[1])} {self.task.class_names[1]}"
            raise too_many(self.task, name, n, 2 * n_pairs, f"after balancing {counts}")
        if rows[0]["question"]:
            questions: dict[str, tuple[list[dict], list[dict]]] = defaultdict(lambda: ([], []))
            for row in rows:
                questions[row["question"]][row["ground_truth"]].append(row)
            # As many of each class within each question, see `choose_answers`.
            pairs = [pair for of_question in questions.values() for pair in zip(*of_question, strict=True)]
        else:
            pairs = list(zip(*(shuffled(of_class, rng)[:n_pairs] for of_class in by_class), strict=True))
        pairs = shuffled(pairs, rng)
        chosen = [row for pair in pairs[: (n + 1) // 2] for row in pair][:n]
        return shuffled(chosen, rng)
