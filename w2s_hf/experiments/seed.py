"""The experiment of one seed: weak supervisor, weak labels, strong ceiling, students, comparisons, scores."""

import json
import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
from accelerate import PartialState

from ..labels import WeakLabels
from ..methods import BOOTSTRAP
from ..modeling.spec import ModelSpec
from ..tasks import Half, TaskSplits
from .bootstrapping import bootstrap, bootstrap_kinds
from .config import ExperimentArguments
from .finetuner import Finetuned, Finetuner
from .label_context import labelled, labels_of_method, labels_title
from .prompts import Prompts
from .report import supervisor_warning, unsure_labels
from .settings.base import Setting

__all__ = [
    "Models", "further_seeds", "label_confidence", "planned_models", "run_seed", "student_rows", "train_supervisor"
]  # fmt: skip

logger = logging.getLogger(__name__)

# This number is the distance between the seeds of the supervisors of one experiment. It is so large that no further
# supervisor has a seed of --seeds.
_FURTHER_SEEDS = 1_000_003


@dataclass(frozen=True)
class Models:
    """
    The models of one seed, before they are finetuned.

    Args:
        weak ([`ModelSpec`]): The weak supervisor.
        student ([`ModelSpec`]): The model of students and ceiling.
        chain (`tuple` of [`ModelSpec`], *optional*): The intermediate models of bootstrapping, small to large.
        control ([`ModelSpec`], *optional*): The student's architecture without its pretraining.
        sizes (`tuple` of [`ModelSpec`], *optional*): Students of several sizes to compare, including the student.
        plain_student ([`ModelSpec`], *optional*): The student before generative finetuning. A second ceiling is
            trained from it, for comparison.
    """

    weak: ModelSpec
    student: ModelSpec
    chain: tuple[ModelSpec, ...] = ()
    control: ModelSpec | None = None
    sizes: tuple[ModelSpec, ...] = ()
    plain_student: ModelSpec | None = None


def run_seed(
    models: Models,
    splits: TaskSplits,
    args: ExperimentArguments,
    seed: int,
    finetuner: Finetuner,
    prompts: Prompts | None = None,
) -> dict[str, Finetuned]:
    """
    Runs one weak-to-strong experiment (paper, section 3). Every model is a cached stage.

    Args:
        models ([`Models`]): Supervisor, student, and models to compare with.
        splits ([`TaskSplits`]): The rows. All models are scored on `splits.test`.
        args ([`ExperimentArguments`]): Methods and further options.
        seed (`int`): Seeds heads, adapters and row order.
        finetuner ([`Finetuner`]): Trains the models.
        prompts ([`Prompts`], *optional*): The prompts of the rows, for methods that use zero-shot answers.

    Returns:
        `dict[str, Finetuned]`: The models by role, with their predictions of the test rows. The roles are `weak`,
        whose predictions are the weak labels, `ceiling`, and each method. Options add `ceiling_plain` and `control`.
        Bootstrapping adds the links `link_1`, `link_2`, ... of the chain. It also adds `direct` and `direct_all`,
        which are trained on the supervisor's labels for the rows of the chain.
    """
    test, progress = splits.test, finetuner.cache.progress
    finetune = partial(finetuner.finetune, splits=splits, seed=seed)
    true_rows = splits.student.map(finetuner.setting.with_ground_truth)

    # 1. The weak supervisor is trained on ground truth. Its predictions on the student half are the weak labels.
    seeds = [seed, *further_seeds(seed, args.n_supervisors - 1)]
    supervisors = tuple(train_supervisor(models.weak, splits, args, own_seed, finetuner) for own_seed in seeds)
    weak = supervisors[0]
    if len(supervisors) > 1:
        weak = replace(weak, predictions=WeakLabels.mean([probabilities_of(supervisor) for supervisor in supervisors]))
    trained = {"weak": weak}
    if PartialState().is_main_process:  # the warnings are the same on all ranks
        for warning in _supervisor_warnings(weak, splits, args, finetuner.setting):
            logger.warning(f"Seed {seed}: {warning}")

    # 2. The strong ceiling is trained on ground truth of the student half.
    if models.plain_student is not None:
        title = "strong ceiling without generative finetuning"
        trained["ceiling_plain"] = finetune("ceiling", models.plain_student, true_rows, [test], title=title)
    trained["ceiling"] = finetune("ceiling", models.student, true_rows, [test], title="strong ceiling")

    # 3. Students are trained on the weak labels of the student half, once per method.
    rows = student_rows(splits, weak, args)
    weak_rows = rows.map(weak.predictions.join)
    for name, method in args.methods_by_name.items():
        if name == BOOTSTRAP:
            # A chain is compared with the naive method, which trains directly on the rows of the chain's last link.
            title = "student without the chain (naive)"
            labels = {"student": weak.predictions}
            trained["direct"] = finetune(
                "student-naive", models.student, weak_rows, [test], labels=labels, title=title
            )
            trained |= bootstrap([*models.chain, models.student], weak, splits, args.link_rows, seed, finetuner)
        else:
            # A method may transform the labels first. It does not get the true labels of the student half.
            step = nullcontext() if method.transform is None else progress.group(labels_title(name))
            with step:
                own_labels = labels_of_method(
                    method,
                    rows,
                    weak,
                    supervisors,
                    splits=splits,
                    student=models.student,
                    prompts=prompts,
                    seed=seed,
                    finetuner=finetuner,
                )
            trained[name] = finetune(
                f"student-{name}",
                models.student,
                labelled(rows, own_labels).map(own_labels.join),
                [test],
                labels={"student": own_labels},
                method=method,
                title=f"student ({name})",
            )

    # 4. The control is trained on the same weak labels without pretraining, to show the effect of pretraining.
    if models.control is not None:
        changes = {**finetuner.setting.control, "title": "control without pretraining", "kind": models.student.name}
        labels = {"student": weak.predictions}
        trained["control"] = finetune("control", models.control, weak_rows, [test], labels=labels, **changes)

    # 5. Scores, including PGR, are computed from the predictions of the test rows: see `scores.py`.
    return trained


def planned_models(
    args: ExperimentArguments, weak: str, student: str, chain: list[str], has_control: bool
) -> list[str]:
    """
    Returns the kind of each stage that [`run_seed`] will run, for [`Progress.plan`]: usually the name of its model.

    Args:
        args ([`ExperimentArguments`]): Methods and further options.
        weak, student (`str`), chain (`list[str]`): The names of the models.
        has_control (`bool`): Whether a control without pretraining is trained.
    """
    has_second_ceiling = getattr(args, "generative_finetuning", False)
    direct = {name: method for name, method in args.methods_by_name.items() if name != BOOTSTRAP}
    kinds = [weak] * args.n_supervisors + [student] * (1 + has_second_ceiling + len(direct) + has_control)
    kinds += [labels_title(name) for name, method in direct.items() if method.transform is not None]
    if BOOTSTRAP in args.methods_by_name:
        kinds += bootstrap_kinds([*chain, student], args.link_rows)
        kinds += [student] * ("naive" not in direct)  # the student without the chain
    return kinds


def _supervisor_warnings(
    weak: Finetuned, splits: TaskSplits, args: ExperimentArguments, setting: Setting
) -> list[str]:
    """Returns warnings about the weak labels, before students are trained on them."""
    scores = setting.scores(weak.predictions.of(list(splits.test["id"])), splits.test)
    history = json.loads((weak.directory / "training.json").read_text())
    loss = next((entry["train_loss"] for entry in reversed(history) if "train_loss" in entry), None)
    chance = setting.chance or 0.0  # the accuracy at chance is unknown if it depends on the rows
    losses = {name: str(method.config["loss_type"]) for name, method in args.methods_by_name.items()}
    at_chance = supervisor_warning(scores["ci95"], chance, loss)
    return [*at_chance, *unsure_labels(losses, label_confidence(weak, splits, args))]


def further_seeds(seed: int, n: int) -> list[int]:
    """Returns the seeds of `n` further supervisors, below 2**32 as `set_seed` requires."""
    return [(seed + _FURTHER_SEEDS * number) % 2**32 for number in range(1, n + 1)]


def train_supervisor(
    model: ModelSpec, splits: TaskSplits, args: ExperimentArguments, seed: int, finetuner: Finetuner
) -> Finetuned:
    """Finetunes the weak supervisor on ground truth, and predicts the student half and the test rows with it."""
    changes: dict[str, Any] = {
        "learning_rate": args.weak_learning_rate,
        "num_train_epochs": args.weak_num_train_epochs,
        "weight_decay": args.weak_weight_decay,
    }
    return finetuner.finetune(
        "weak",
        model,
        # The supervisor has separate validation rows: its labels would be too good on rows that select its checkpoint.
        splits.weak.map(finetuner.setting.with_ground_truth),
        [*splits.student, splits.test],
        splits=splits,
        seed=seed,
        title="weak supervisor",
        **{name: value for name, value in changes.items() if value is not None},
    )


def label_confidence(weak: Finetuned, splits: TaskSplits, args: ExperimentArguments) -> float | None:
    """Returns the mean larger probability of the weak labels that students are trained on; `None` for text labels."""
    if not isinstance(weak.predictions, WeakLabels):
        return None
    rows = student_rows(splits, weak, args).train
    return float(weak.predictions.of(list(rows["id"])).max(axis=1).mean())


def probabilities_of(weak: Finetuned) -> WeakLabels:
    """Returns the weak labels, which are class probabilities. Options that need them are refused for completions."""
    return cast(WeakLabels, weak.predictions)


def student_rows(splits: TaskSplits, weak: Finetuned, args: ExperimentArguments) -> Half:
    """
    Returns the rows that students are trained on: the student half, or with `--keep_confident` its rows with the most
    confident weak labels. The ceiling is trained on all rows.
    """
    if args.keep_confident is None:
        return splits.student
    train, validation = splits.student
    is_confident = probabilities_of(weak).most_confident(list(train["id"]), args.keep_confident)
    return Half(train.select(np.flatnonzero(is_confident)), validation)
