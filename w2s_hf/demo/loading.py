"""Loads the rows and models of the demo, for code that does not run a recipe."""

import os
from pathlib import Path
from typing import NamedTuple

from accelerate import PartialState
from datasets import Dataset, DatasetDict

from ..tasks import Task, TaskSplits, find_task, load_task
from .models import DEMO_MODELS, build_demo_model
from .rows import demo_rows
from .worlds import DemoWorld

__all__ = ["Demo", "load_demo"]

_WEAK_MODEL, _STUDENT_MODEL = "scratch-32x1", "pretrained-64x2"


class Demo(NamedTuple):
    """
    The rows and models of the demo.

    Args:
        splits ([`w2s_hf.tasks.TaskSplits`]): Generated rows in the columns of a task, as [`load_task`] returns them.
        weak_model (`str`): Directory of the untrained weak model.
        student_model (`str`): Directory of the pretrained student.
    """

    splits: TaskSplits
    weak_model: str
    student_model: str


def load_demo(
    task: str | Task = "boolq",
    directory: str | Path = "outputs/demo_models",
    *,
    n_weak: int = 400,
    n_train: int = 2000,
    n_validation: int = 400,
    n_test: int = 1500,
    n_documents: int | None = None,
    seed: int = 0,
) -> Demo:
    """
    Generates the rows of the demo and builds its models, without a download and without a GPU.

    The rows have the columns of a task, and are about a made-up world. The student is pretrained on
    texts about this world, and the weak model is not. The first call pretrains the student, in about half a minute on
    an idle CPU. Later calls load it from `directory`.

    Args:
        task (`str` or [`Task`], *optional*, defaults to `"boolq"`): A classification task of the package.
        directory (`str` or `Path`, *optional*, defaults to `"outputs/demo_models"`): The directory of the models.
        n_weak, n_train, n_validation, n_test (`int`, *optional*): Numbers of rows, as in [`load_task`]. The defaults
            are the same as in the recipes.
        n_documents (`int`, *optional*): Length of the pretraining in documents. Defaults to 40,000, as in the
            recipes.
        seed (`int`, *optional*, defaults to 0): Seed of world, models and splits.

    Returns:
        [`Demo`]: `splits, weak_model, student_model`.

    Raises:
        ValueError: The demo has no rows for this task.

    Example:

    ```python
    splits, weak_model, student_model = load_demo()
    trainer = WeakToStrongTrainer(weak_model, train_dataset=splits.weak_half.rename_column("ground_truth", "labels"))
    ```
    """
    task = find_task(task) if isinstance(task, str) else task
    world = DemoWorld(seed=seed)

    # The function generates 1.5 times `n` rows, because balancing the classes drops rows and groups stay whole.
    def generate(n: int, stream: str, held_out: bool) -> Dataset:
        return demo_rows(task, world, 3 * n // 2 + 100, stream, held_out=held_out)

    raw = {
        task.train_split[0]: generate(n_weak + n_train + n_validation, "train", held_out=False),
        (task.test_split or ("test",))[0]: generate(n_test, "test", held_out=True),
    }
    splits = load_task(
        task,
        raw=DatasetDict(raw),
        n_weak=n_weak,
        n_train=n_train,
        n_validation=n_validation,
        n_test=n_test,
        seed=seed,
    )
    weak_model, student_model = (
        _build(name, world, Path(directory), n_documents) for name in (_WEAK_MODEL, _STUDENT_MODEL)
    )
    return Demo(splits, weak_model, student_model)


def _build(name: str, world: DemoWorld, directory: Path, n_documents: int | None) -> str:
    """Builds a model, unless its directory exists, and returns the directory."""
    model = DEMO_MODELS[name]
    is_short = n_documents is not None and model.n_documents is not None
    target = directory / f"{name}-seed{world.seed}{f'-{n_documents}_documents' if is_short else ''}"
    if not target.is_dir():
        aside = target.with_name(f"{target.name}.partial")  # an interrupted pretraining resumes from this directory
        build_demo_model(model, world, aside, n_documents=n_documents if is_short else None)
        state = PartialState()
        state.wait_for_everyone()
        if state.is_main_process:
            os.replace(aside, target)
        state.wait_for_everyone()
    return str(target)
