"""Scores the models of an experiment on the test rows of other tasks, without further training (--transfer_tasks)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from ..cards.trained_with import DEMO_DATASET
from ..command_line import did_you_mean
from ..demo.models import World
from ..labels import LabelsById, WeakLabels
from ..metrics import pgr_over_seeds
from ..modeling.spec import ModelSpec
from ..results import ModelScore, TransferResult, TransferStudent, TransferSummary
from ..tasks import CHESS_TASK, PREFERENCE_TASKS, TASKS, PreferenceTask, Task, TaskSplits, find_any_task
from ..tasks.splits import TransferRows
from ..user_code import split_path
from .analysis_context import AnalysisContext
from .config import ExperimentArguments, Own
from .scores import Scorer
from .seed import further_seeds, train_supervisor
from .settings.classification import ProbabilitySetting

__all__ = ["TRANSFER_TITLE", "find_transfer_tasks", "load_transfer_rows", "summarise_transfer", "with_transfer"]

TRANSFER_TITLE = "scores on other tasks"  # the title of the step

TransferTask = Task | PreferenceTask


def find_transfer_tasks(task: Own, names: Sequence[str]) -> list[TransferTask]:
    """
    Finds the tasks of `--transfer_tasks`. They have the same form of answers as the task of the experiment. Texts have
    the same class names in the same order, so that class 1 has the same meaning. All pairs have the same form.

    Args:
        task ([`Task`] or [`PreferenceTask`]): The task of the experiment.
        names (`Sequence[str]`): Names or Python files, as in [`find_any_task`].

    Raises:
        ValueError: A task does not exist, has other answers, or has the name of another task of this run. The message
            lists the tasks of the package that can be used.
    """
    known: dict[str, TransferTask] = {**(TASKS if isinstance(task, Task) else PREFERENCE_TASKS)}
    usable = [name for name, other in known.items() if _same_answers(task, other) and name != task.name]
    answers = f"the classes {' and '.join(task.class_names)}" if isinstance(task, Task) else "pairs of responses"
    of_package = f"one of {', '.join(usable)}, or " if usable else ""
    advice = f"Name {of_package}a Python file with a task of {answers}."
    tasks: dict[str, TransferTask] = {}
    for name in names:
        if split_path(name) is None and name not in (*TASKS, *PREFERENCE_TASKS, CHESS_TASK):
            raise ValueError(f"--transfer_tasks: got the unknown task {name!r}. {advice}{did_you_mean(name, usable)}")
        try:
            other = find_any_task(name)
        except (ValueError, OSError, ImportError) as error:
            raise ValueError(f"--transfer_tasks: {error} {advice}") from error
        if not isinstance(other, Task | PreferenceTask) or not _same_answers(task, other):
            has = f"the classes {' and '.join(other.class_names)}" if isinstance(other, Task) else type(other).__name__
            raise ValueError(
                f"--transfer_tasks: got {other.name} ({has}), expected the same form of answers as {task.name}. "
                f"{advice}"
            )
        if other.name in (task.name, *tasks):
            raise ValueError(
                f"--transfer_tasks: got a second task with the name {other.name}, expected different names, since "
                "results identify tasks by name. Leave it out, or rename it."
            )
        tasks[other.name] = other
    return list(tasks.values())


def _same_answers(task: TransferTask, other: TransferTask) -> bool:
    return isinstance(other, Task) == isinstance(task, Task) and other.class_names == task.class_names


def load_transfer_rows(
    tasks: Sequence[TransferTask],
    setting: ProbabilitySetting,
    args: ExperimentArguments,
    training_args: Own,
    readers: Sequence[ModelSpec],
    world: World | None,
    splits: TaskSplits,
) -> dict[str, TransferRows]:
    """
    Loads the test rows of other tasks; see [`Loader.load_test`]. The rows fit the context of the models `readers`.

    Args:
        tasks (`Sequence`): The tasks of [`find_transfer_tasks`].
        setting, args, training_args, readers, world: As in [`ProbabilitySetting.load_test_rows`].
        splits ([`TaskSplits`]): The rows of the experiment. Rows that models have seen in training are dropped.

    Returns:
        `dict[str, TransferRows]`: The rows by the name of the task.

    Raises:
        ValueError: The rows of a task cannot be loaded, or do not fit.
    """
    rows = {}
    for task in tasks:
        try:
            rows[task.name] = setting.load_test_rows(task, args, training_args, readers, world, splits)
            if world is not None:
                source = {"id": DEMO_DATASET, "revision": f"world {world.seed}"}
                rows[task.name] = rows[task.name]._replace(source=source)
        except ConnectionError as error:
            raise ValueError(
                f"--transfer_tasks {task.name}: {error} (--dataset_path has the rows of {splits.task.name}. For a "
                f"local copy of {task.name}, name a Python file with the task and the path in its `sources`.)"
            ) from error
        except (ValueError, OSError) as error:
            raise ValueError(f"--transfer_tasks {task.name}: {error}") from error
    return rows


def with_transfer(context: AnalysisContext, rows: dict[str, TransferRows]) -> AnalysisContext:
    """
    Returns the context of a seed with the scores on other tasks. Every rank calls this function.

    Args:
        context ([`AnalysisContext`]): The finished seed.
        rows (`dict[str, TransferRows]`): The test rows by task.
    """
    if not rows:
        return context
    with context.finetuner.cache.progress.group(TRANSFER_TITLE):
        scorers = {task: _scorer(context, of_task) for task, of_task in rows.items()}
    results = {task: _result(context, scorers[task], of_task) for task, of_task in rows.items()}
    return replace(context, transfer=scorers, result=replace(context.result, transfer=results))


def _scorer(context: AnalysisContext, rows: TransferRows) -> Scorer:
    """Predicts the rows with the supervisor, the students and the ceiling, each as a cached stage."""
    trained = {}
    for role in ("weak", *context.args.methods_by_name, "ceiling"):
        trained[role] = replace(context.trained[role], predictions=_predictions(context, role, rows))
    return Scorer(context.finetuner.setting, rows, trained)


def _predictions(context: AnalysisContext, role: str, rows: TransferRows) -> LabelsById:
    args, seed, splits, finetuner = context.args, context.seed, context.splits, context.finetuner
    models = [context.trained[role]]
    if role == "weak":  # the weak labels are the mean of all supervisors
        for further in further_seeds(seed, args.n_supervisors - 1):
            models.append(train_supervisor(context.models.weak, splits, args, further, finetuner))
    half = splits.student.map(finetuner.setting.with_ground_truth)
    title = f"{role}, {models[0].spec.name} on {len(rows.test)} test {finetuner.setting.rows} of {rows.task.name}"
    predictions = [finetuner.predict("transfer", model, half, [rows.test], title=title) for model in models]
    return WeakLabels.mean(cast(list[WeakLabels], predictions)) if len(predictions) > 1 else predictions[0]


def _result(context: AnalysisContext, scorer: Scorer, rows: TransferRows) -> TransferResult:
    student = (context.models.plain_student or context.models.student).named  # as in the results of the main task
    return TransferResult(
        dataset=rows.source["id"],
        revision=rows.source["revision"],
        n_shared=rows.n_shared,
        weak=ModelScore.from_dict({**context.models.weak.named, **scorer.scores("weak")}),
        ceiling=ModelScore.from_dict({**student, **scorer.scores("ceiling")}),
        students=[
            TransferStudent.from_dict({"method": method, **scorer.scores(method), **scorer.pgr(method, context.seed)})
            for method in context.args.methods_by_name
        ],
    )


def summarise_transfer(
    contexts: Sequence[AnalysisContext], method: str, same_rows: bool
) -> dict[str, TransferSummary]:
    """
    Summarizes a method over seeds on each other task, as [`w2s_hf.experiments.scores.summarise`] does.

    Args:
        contexts (`Sequence` of [`AnalysisContext`]): One context per seed, with the scores on other tasks.
        method (`str`): The method.
        same_rows (`bool`): Whether all seeds have the same rows, as with real data.
    """
    summaries = {}
    for task in contexts[0].transfer:
        correct = [context.transfer[task].correct for context in contexts]
        runs = [(of_seed["weak"], of_seed[method], of_seed["ceiling"]) for of_seed in correct]
        accuracy = sum(float(of_seed[method].mean()) for of_seed in correct) / len(correct)
        summary = {"accuracy_mean": accuracy, **pgr_over_seeds(runs, same_rows=same_rows)}
        summaries[task] = TransferSummary.from_dict(summary)
    return summaries
