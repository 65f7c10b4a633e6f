"""The runs of experiment trackers (`--report_to`): each finetuned model has a separate run."""

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from uuid import uuid4

from transformers import Trainer
from transformers.integrations import TensorBoardCallback

from .._compat import get_reporting_integration_callbacks

__all__ = ["run_path", "tracked", "untracked"]


def run_path(experiment: str | None, task: str | None, seed: int, role: str, model: str, weak: str | None) -> str:
    """
    Returns the name of the run of a model, such as `boolq/seed0/student-naive-gpt2-to-gpt2-xl`.

    Args:
        experiment (`str`, *optional*): The name of the experiment, `--run_name`.
        task (`str`, *optional*): The name of the task.
        seed (`int`): The seed of the training.
        role (`str`): The role of the model, such as `"student (naive)"`.
        model (`str`): The name of the model.
        weak (`str`, *optional*): The name of the model whose labels it is trained on; `None` for ground truth.
    """
    models = "-to-".join(Path(name).name for name in (weak, model) if name)
    levels = [experiment, task, f"seed{seed}", f"{role} {models}"]
    return "/".join(re.sub(r"[^\w.-]+", "-", level).strip("-.") for level in levels if level)


@contextmanager
def tracked(trainer: Trainer, directory: Path, logs: Path, path: str) -> Iterator[None]:
    """
    Logs the training of a model as a separate run in each tracker of `report_to`. Resumed training continues the run.

    Args:
        trainer ([`~transformers.Trainer`]): It trains inside the context. Its predictions are not logged.
        directory (`Path`): The directory of the stage, which has the id of the run in the file `run_id`.
        logs (`Path`): The directory of TensorBoard, unless `TENSORBOARD_LOGGING_DIR` names another directory.
        path (`str`): The name of the run, see [`run_path`]. An id is added, so that the same model in another
            output directory has a run with a different name.
    """
    is_tracked = trainer.args.report_to and trainer.is_world_process_zero()  # trackers log on this rank only
    with _named_run(trainer, directory, logs, path) if is_tracked else nullcontext():
        yield
    untracked(trainer)


def _named_run(trainer: Trainer, directory: Path, logs: Path, path: str) -> AbstractContextManager:
    """Sets the name of a trainer's run in its trackers. The run is open inside the returned context."""
    file = directory / "run_id"
    if not file.is_file():
        file.write_text(uuid4().hex[:8])
    run_id = file.read_text()
    path = f"{path}-{run_id}"
    args = trainer.args
    group, args.run_name = args.run_name or path.split("/")[0], path.replace("/", "-")
    if args.trackio_static_space_id is None:
        args.trackio_static_space_id = False  # otherwise each training run ends with a copy of the Space
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(Path(callback.logging_dir or logs) / path)
    if "wandb" in (args.report_to or ()):
        import wandb

        if wandb.run is None:  # the callback of transformers logs into an open run, and never closes one
            project = os.environ.get("WANDB_PROJECT", "huggingface")  # as in transformers
            return wandb.init(project=project, name=args.run_name, group=group, id=run_id, resume="allow")
    return nullcontext()


def untracked(trainer: Trainer) -> None:
    """Removes the trackers of a trainer. Otherwise, Trackio and Weights & Biases open a new run to predict."""
    for callback in get_reporting_integration_callbacks(trainer.args.report_to):
        trainer.remove_callback(callback)
