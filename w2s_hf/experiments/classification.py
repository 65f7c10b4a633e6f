"""Weak-to-strong generalization on a binary task, from rows to PGR."""

import time
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState
from datasets import DatasetDict

from ..config import StudentConfig, WeakToStrongConfig
from ..tasks import Task, TaskSplits, find_task, load_task
from ..tasks.demo import DemoWorld
from ..tasks.demo_rows import demo_rows
from .finetuning import Workbench
from .options import ClassificationArguments
from .protocol import (
    Materials,
    collect_results,
    find_demo_models,
    find_models,
    ladder_stages,
    run_seed,
    split_options,
)
from .report import write_report
from .settings import CLASSIFICATION
from .stages import Stages

__all__ = ["run_classification"]

_DEMO_TEXT = """
## What this demo shows, and what it does not

The rows are generated, in the columns of {task}: short facts about made-up entities, and the question whether one of
them is alive. No label is ever stated in the text that the student was pretrained on; whether an entity is alive can
be told only from the kind of things that are said about it. The weak supervisor was never pretrained, and learns from
few labelled rows.

- Where the supervisor is better than chance, it shows the effect itself, measured live: the student was taught by
  labels of the accuracy in the first row, and is better than its teacher because of what it had learned before. The
  control, the same architecture taught by the same labels without pretraining, has nothing to add to them.
- It does not show that size helps: pretraining drives the gain here, and the supervisor has none.
- It does not show that one method beats another: which one is ahead changes from seed to seed. Use `--seeds`.
- It does not show a hard task: the same entities occur in training and in test rows, and the ceiling is near 1, so
  that a few hundred true labels would have taught this student everything.
- Each seed is another world with other models, so numbers differ from seed to seed by more than their intervals.
"""


def run_classification(
    task: str | Task, args: ClassificationArguments, training_args: WeakToStrongConfig, student_config: StudentConfig
) -> dict:
    """
    Runs the experiment for every seed and writes everything below `training_args.output_dir`.

    Args:
        task (`str` or [`~w2s_hf.Task`]): Your own, or as in [`w2s_hf.tasks.find_task`].
        args ([`ClassificationArguments`]): Models, methods, rows, seeds.
        training_args ([`WeakToStrongConfig`]): Training of the students and the ceiling; of the weak supervisor, too,
            where `args` says nothing else.
        student_config ([`StudentConfig`]): Adapters and precision of the students and the ceiling.

    Returns:
        `dict`: The content of `results.json` (schema 1).

    Raises:
        ValueError, FileNotFoundError, ConnectionError: before anything is trained, see [`w2s_hf.tasks.load_task`] and
            [`w2s_hf.hub.ensure_available`].
    """
    started = time.monotonic()
    task = find_task(task) if isinstance(task, str) else task
    output_dir = Path(training_args.output_dir)
    bench = Workbench(Stages(output_dir / "_stages"), training_args, CLASSIFICATION)
    ladder = ladder_stages()
    if args.drop_empty:
        task = replace(task, drop_empty=True)
    splits = None
    if not args.demo:
        options = split_options(args)
        splits = load_task(task, dataset_path=args.dataset_path, conversion=args.conversion, **options)
    every = [gather_materials(task, args, student_config, seed, ladder, splits) for seed in args.seeds]
    runs = []
    for seed, materials in zip(args.seeds, every, strict=True):
        runs.append(run_seed(materials, args, seed, bench, output_dir))
    results = collect_results(task.name, args, every[0].splits, runs, bench, ladder, started)
    results["dataset"]["conversion"] = args.conversion
    if PartialState().is_main_process:
        write_report(
            results,
            output_dir,
            training_args,
            introduction=f"{task.description or task.name}. Half of the rows are {task.class_names[1]!r}.",
            notes=[_DEMO_TEXT.strip().format(task=task.name)] if args.demo else [],
        )
    PartialState().wait_for_everyone()
    return results


def gather_materials(
    task: Task,
    args: ClassificationArguments,
    student_config: StudentConfig,
    seed: int,
    ladder: Stages,
    splits: TaskSplits | None,
) -> Materials:
    """Rows and models of one seed; without `splits` the demo's, which has a world a seed."""
    if splits is not None:
        return Materials(splits, *find_models(args, student_config))

    world = DemoWorld(seed=seed)
    # Half as many again as asked for: balancing drops rows of the more frequent answer, and groups are dealt whole.
    n_pool = 3 * (args.n_train + args.n_weak + args.n_validation) // 2 + 100
    n_test_pool = 3 * args.n_test // 2 + 100
    if args.conversion == "coin_flip":  # half as many texts a question
        n_pool, n_test_pool = 2 * n_pool, 2 * n_test_pool
    raw = DatasetDict(
        {
            task.train_split[0]: demo_rows(task, world, n_pool, "train"),
            task.test_split[0]: demo_rows(task, world, n_test_pool, "test"),
        }
    )
    splits = load_task(task, raw=raw, conversion=args.conversion, **split_options(args))
    splits = replace(splits, source={"id": "w2s_hf demo", "revision": f"world {seed}"})
    return Materials(splits, *find_demo_models(args, student_config, world, ladder))
