"""Tasks by name: where their rows come from, how a row becomes text, and how rows are split."""

from .classification import BOOLQ, SST2
from .task import Task, TaskSplits, load_splits, tokenize_rows

__all__ = ["TASKS", "Task", "TaskSplits", "find_task", "load_task", "tokenize_rows"]

TASKS: dict[str, Task] = {task.name: task for task in (BOOLQ, SST2)}


def find_task(name: str) -> Task:
    """The task of this name. Raises `ValueError` with the known names for any other."""
    if name not in TASKS:
        raise ValueError(f"task: got {name!r}, expected one of {', '.join(sorted(TASKS))}.")
    return TASKS[name]


def load_task(name: str, **kwargs) -> TaskSplits:
    """
    Rows of a task, split for a weak-to-strong experiment.

    Args:
        name (`str`): One of [`TASKS`].
        kwargs: As in [`w2s_hf.tasks.task.load_splits`]: `dataset_path`, `n_train`, `n_weak`, `n_validation`,
            `n_test`, `seed`.
    """
    return load_splits(find_task(name), **kwargs)
