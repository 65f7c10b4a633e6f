"""Tasks by name: where their rows come from, how a row becomes text, and how rows are split."""

import runpy
import sys
from pathlib import Path
from typing import TypeVar, Unpack, overload

from ..command_line import did_you_mean
from .classification import CLASSIFICATION_TASKS
from .generation import GenerationTask
from .multiple_choice import MULTIPLE_CHOICE_TASKS
from .preferences import PREFERENCE_TASKS, PreferenceTask, load_pairs
from .prompt import PromptFormat
from .splits import Half, SplitOptions, TaskSplits
from .task import AnyTask, Source, Task, sources_of
from .texts import TextLoader
from .tokenizing import COMPLETION_COLUMNS, PAIR_COLUMNS, TEXT_COLUMNS, tokenize_pairs, tokenize_rows

__all__ = [
    "COMPLETION_COLUMNS",
    "PAIR_COLUMNS",
    "PREFERENCE_TASKS",
    "TASKS",
    "TEXT_COLUMNS",
    "GenerationTask",
    "Half",
    "PreferenceTask",
    "PromptFormat",
    "Source",
    "SplitOptions",
    "Task",
    "TaskSplits",
    "find_task",
    "load_pairs",
    "load_task",
    "task_table",
    "tokenize_pairs",
    "tokenize_rows",
]

_AnyTask = TypeVar("_AnyTask", bound=AnyTask)

TASKS: dict[str, Task] = {task.name: task for task in (*CLASSIFICATION_TASKS, *MULTIPLE_CHOICE_TASKS)}


@overload
def find_task(name: str) -> Task: ...


@overload
def find_task(name: str, kind: type[_AnyTask]) -> _AnyTask: ...


def find_task(name: str, kind: type[AnyTask] = Task) -> AnyTask:
    """
    Finds a task by name, or your own by the path of the Python file that defines it.

    Args:
        name (`str`): One of [`TASKS`] or [`PREFERENCE_TASKS`], or `my_task.py`, or `my_task.py:NAME` where the file
            has several tasks.
        kind (`type`, *optional*, defaults to [`Task`]): Or [`PreferenceTask`], or [`GenerationTask`].

    Returns:
        The task, of this kind.

    Raises:
        ValueError: there is no such task; the known names are in the message.
        FileNotFoundError: there is no such file.
    """
    if name.endswith(".py"):
        return _task_in_file(Path(name), "", kind)
    if ".py:" in name:
        path, _, wanted = name.rpartition(":")
        return _task_in_file(Path(path), wanted, kind)
    tasks: tuple[AnyTask, ...] = (*TASKS.values(), *PREFERENCE_TASKS.values())
    known = {task.name: task for task in tasks if isinstance(task, kind)}
    if name not in known:
        if Path(f"{name}.py").is_file():
            raise ValueError(f"task: got {name!r}, expected a task or a file. Did you mean '{name}.py'?")
        names = f"one of {', '.join(sorted(known))}, or " if known else ""
        raise ValueError(
            f"task: got {name!r}, expected {names}the path of a Python file that defines a {_public_name(kind)}."
            f"{did_you_mean(name, known)}"
        )
    return known[name]


def _public_name(kind: type[AnyTask]) -> str:
    return "w2s_hf.Task" if kind is Task else f"w2s_hf.tasks.{kind.__name__}"


def _task_in_file(path: Path, wanted: str, kind: type[AnyTask]) -> AnyTask:
    if not path.is_file():
        raise FileNotFoundError(f"task: there is no file {str(path)!r}.")
    sys.path.insert(0, str(path.parent.resolve()))  # as `python my_task.py` would: it may import its neighbours
    found = {name: value for name, value in runpy.run_path(str(path)).items() if isinstance(value, kind)}
    if wanted and wanted not in found or not wanted and len(found) != 1:
        raise ValueError(
            f"task: {str(path)!r} defines {', '.join(found) or f'no {_public_name(kind)}'}"
            + (f", and no {wanted!r}." if wanted else f"; expected one, or say which by {path}:NAME.")
        )
    return found[wanted] if wanted else next(iter(found.values()))


# Configurations that a dataset has if it has only one.
_UNNAMED = (None, "", "default", "plain_text")


def task_table() -> str:
    """Returns a table of all tasks: name, splits, sources and description."""
    header = ("task", "train / test", "rows", "what it asks")
    lines = [
        (
            task.name,
            f"{task.train_split[0]} / {(task.test_split or ('held out',))[0]}",
            # Some are read at another revision where the first one does not load.
            ", else ".join(
                dict.fromkeys(
                    " ".join(name for name in (source.id, source.config) if name not in _UNNAMED)
                    for source in sources_of(task)
                )
            ),
            task.description,
        )
        for task in sorted(TASKS.values(), key=lambda task: task.name)
    ]
    widths = [max(len(line[column]) for line in (header, *lines)) for column in range(len(header) - 1)]
    rule = tuple("-" * width for width in (*widths, len(header[-1])))
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, (*widths, 0), strict=True))
        for line in (header, rule, *lines)
    )


def load_task(task: str | Task, *, conversion: str = "pairs", **options: Unpack[SplitOptions]) -> TaskSplits:
    """
    Loads, formats, deduplicates, halves and balances the rows of a task.

    Every part has equally many rows of both classes. (The paper, A.1, balances the test set and any dataset whose
    majority is above 55 %; we balance all, so that chance is one half everywhere.) Rows of one group stay on one side,
    a training row whose text or group is in the test set is dropped, and the answers to a question stay together.
    An odd number of rows has one more of class 0. Neither the order of the rows nor their split changes which answer
    of a question is taken.

    Args:
        task (`str` or [`Task`]): Your own, or as in [`find_task`].
        conversion (`str`, *optional*, defaults to `"pairs"`): `"pairs"` makes one right and one wrong row of a
            question, `"coin_flip"` one row with either.
        options: [`SplitOptions`]: `dataset_path`, `raw`, `n_train`, `n_weak`, `n_validation`, `n_test`, `n_links`,
            `seed`.

    Returns:
        [`TaskSplits`]

    Raises:
        FileNotFoundError, ConnectionError: see [`find_task`] and [`w2s_hf.tasks.loading.load_raw`].
        ValueError: a split or column is missing, a field is empty, a label is not 0 or 1, or there are too few rows.
    """
    return TextLoader(find_task(task) if isinstance(task, str) else task, conversion).load(**options)
