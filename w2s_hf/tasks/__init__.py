"""Finds tasks by name, loads their rows, formats the rows as text and splits them."""

from pathlib import Path
from typing import Any, TypeVar, Unpack, overload

from ..command_line import did_you_mean
from ..user_code import find_in_file, split_path
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
    "CHESS_TASK",
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
    "find_any_task",
    "find_task",
    "load_pairs",
    "load_task",
    "task_table",
    "tokenize_pairs",
    "tokenize_rows",
]

_AnyTask = TypeVar("_AnyTask", bound=AnyTask)

TASKS: dict[str, Task] = {task.name: task for task in (*CLASSIFICATION_TASKS, *MULTIPLE_CHOICE_TASKS)}


# Chess is imported only when its task is used, because it needs python-chess.
CHESS_TASK = "chess_puzzles"


@overload
def find_task(name: str) -> Task: ...


@overload
def find_task(name: str, kind: type[_AnyTask]) -> _AnyTask: ...


def find_task(name: str, kind: type[AnyTask] = Task) -> AnyTask:
    """
    Finds a task by name, or a task of your own by the path of the Python file that defines it.

    Args:
        name (`str`):
            The name of a task of the package (see [`task_table`]), or the path of a Python file. If the file defines
            several tasks, append the variable: `my_task.py:NAME`.
        kind (`type`, *optional*, defaults to [`Task`]):
            The kind of task: [`Task`], [`PreferenceTask`] or [`GenerationTask`].

    Returns:
        The task.

    Raises:
        ValueError: No task has this name (the message lists the known names), or the file raises an error.
        FileNotFoundError: The file does not exist.
        ModuleNotFoundError: The task is `chess_puzzles` and python-chess is not installed.
    """
    return _find(name, kind)


def find_any_task(name: str) -> Task | PreferenceTask | GenerationTask:
    """Finds a task of any kind, by name or by path as in [`find_task`]."""
    return _find(name, AnyTask)


def _find(name: str, kind: type) -> Any:
    place = split_path(name)
    if place is not None:
        return find_in_file(*place, kind, what="task", kind_name=_public_name(kind))
    if name == CHESS_TASK and kind in (AnyTask, GenerationTask):
        return _chess_task()
    tasks: tuple[AnyTask, ...] = (*TASKS.values(), *PREFERENCE_TASKS.values())
    known = {task.name: task for task in tasks if isinstance(task, kind)}
    if name not in known:
        if Path(f"{name}.py").is_file():
            raise ValueError(f"task: got {name!r}, expected a task or a file. Did you mean '{name}.py'?")
        names = [*sorted(known), *([CHESS_TASK] if issubclass(GenerationTask, kind) else [])]
        one_of = f"one of {', '.join(names)}, or " if names else ""
        raise ValueError(
            f"task: got {name!r}, expected {one_of}the path of a Python file that defines a {_public_name(kind)}."
            f"{did_you_mean(name, names)}"
        )
    return known[name]


def _chess_task() -> AnyTask:
    try:
        from .chess import CHESS_PUZZLES
    except ModuleNotFoundError as error:
        if error.name not in ("chess", "chess.pgn", "chess.svg"):
            raise
        raise ModuleNotFoundError(
            f"{CHESS_TASK}: got {error}, expected python-chess. Run `pip install 'chess>=1.11,<2'`.", name=error.name
        ) from error
    return CHESS_PUZZLES


def _public_name(kind: type) -> str:
    if kind is AnyTask:
        return "w2s_hf.Task, w2s_hf.tasks.PreferenceTask or w2s_hf.tasks.GenerationTask"
    return "w2s_hf.Task" if kind is Task else f"w2s_hf.tasks.{kind.__name__}"


# The table of tasks omits these default configurations.
_UNNAMED = (None, "", "default", "plain_text")


def task_table(sources: bool = True) -> str:
    """
    Returns a table of all tasks, as text.

    Args:
        sources (`bool`, *optional*, defaults to `True`): Whether to add the splits and datasets of each task.
    """
    header = ("task", "train / test", "rows", "description")
    lines = [_line_of(task) for task in sorted(TASKS.values(), key=lambda task: task.name)]
    lines += [_line_of(task) for task in PREFERENCE_TASKS.values()]
    lines += [_CHESS_LINE]
    table = [header, *lines] if sources else [(line[0], line[-1]) for line in (header, *lines)]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]) - 1)]
    rule = tuple("-" * width for width in (*widths, len(header[-1])))
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, (*widths, 0), strict=True))
        for line in (table[0], rule, *table[1:])
    )


_CHESS_LINE = (
    CHESS_TASK, "train / test", "EleutherAI/lichess-puzzles",
    "What is the best move in this chess position? (needs python-chess)",
)  # fmt: skip


def _line_of(task: Task | PreferenceTask) -> tuple[str, str, str, str]:
    # Some sources are listed again with another revision, in case the first revision does not load.
    names = [
        " ".join(name for name in (source.id, source.config) if name not in _UNNAMED) for source in sources_of(task)
    ]
    splits = f"{_first(task.train_split)} / {_first(task.test_split) if task.test_split else 'held out'}"
    return task.name, splits, ", else ".join(dict.fromkeys(names)), task.description


def _first(split: str | tuple[str, ...]) -> str:
    return split if isinstance(split, str) else split[0]


def load_task(task: str | Task, *, conversion: str = "pairs", **options: Unpack[SplitOptions]) -> TaskSplits:
    """
    Loads the rows of a task, formats them as text, drops duplicates, balances the classes and splits the rows.

    Every part has equally many rows of both classes. If its number of rows is odd, class 0 has one more row. The paper
    (A.1) balances only the test set and datasets whose majority class exceeds 55 %. Here all parts are balanced, so
    that chance is one half.

    Rows of one group stay in one split. Answers to a question stay in one split, too. A training row whose text or
    group is in the test set is dropped. The choice of answers to a question depends neither on the order of the rows
    nor on the split.

    Args:
        task (`str` or [`Task`]): The task, or its name as in [`find_task`].
        conversion (`str`, *optional*, defaults to `"pairs"`):
            How a multiple-choice question becomes rows. `"pairs"`: one row with a right answer and one with a wrong
            answer. `"coin_flip"`: one row with a right or a wrong answer, at random.
        options: [`SplitOptions`]: `dataset_path`, `raw`, `n_train`, `n_weak`, `n_validation`, `n_test`, `n_links`,
            `seed`.

    Returns:
        [`TaskSplits`] whose parts have the columns of a [`Task`].

    Raises:
        FileNotFoundError, ConnectionError: See [`find_task`] and [`w2s_hf.tasks.loading.load_raw`].
        ValueError: A split or column is missing, a field is empty, a label is not 0 or 1, or there are too few rows.
    """
    return TextLoader(find_task(task) if isinstance(task, str) else task, conversion).load(**options)
