"""The experiment of one seed: weak supervisor, weak labels, strong ceiling, students, extras, scores."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np

from ..labels import WeakLabels
from ..modeling.spec import ModelSpec
from ..tasks import Half, TaskSplits
from .bootstrapping import bootstrap
from .config import BOOTSTRAP, ExperimentArguments
from .finetuner import Finetuned, Finetuner
from .report import unsure_labels

__all__ = ["Models", "further_seeds", "label_confidence", "run_seed", "student_rows", "train_supervisor"]

logger = logging.getLogger(__name__)

# Lies between the seeds of the supervisors of one experiment. It is so large that none of them is another seed of
# --seeds.
_FURTHER_SEEDS = 1_000_003


@dataclass(frozen=True)
class Models:
    """
    The models of one seed, before they are finetuned.

    Args:
        weak ([`ModelSpec`]): The weak supervisor.
        student ([`ModelSpec`]): The model of students and ceiling.
        chain (`tuple` of [`ModelSpec`], *optional*): The models between them for bootstrapping, small to large.
        control ([`ModelSpec`], *optional*): The student's architecture without its pretraining.
        sizes (`tuple` of [`ModelSpec`], *optional*): Students of several sizes to compare, the student among them.
        plain_student ([`ModelSpec`], *optional*): The student before generative finetuning; a second ceiling is made
            of it, to compare with.
    """

    weak: ModelSpec
    student: ModelSpec
    chain: tuple[ModelSpec, ...] = ()
    control: ModelSpec | None = None
    sizes: tuple[ModelSpec, ...] = ()
    plain_student: ModelSpec | None = None


def run_seed(
    models: Models, splits: TaskSplits, args: ExperimentArguments, seed: int, finetuner: Finetuner
) -> dict[str, Finetuned]:
    """
    Runs one weak-to-strong experiment (paper, section 3). Every model is a cached step.

    Args:
        models ([`Models`]): Supervisor, student, and models to compare with.
        splits ([`TaskSplits`]): The rows. Everybody is scored on `splits.test`.
        args ([`ExperimentArguments`]): Methods and further options.
        seed (`int`): Seeds heads, adapters and row order.
        finetuner ([`Finetuner`]): Trains the models.

    Returns:
        `dict[str, Finetuned]`: The models by role: `weak`, whose predictions are the weak labels, `ceiling`, each
        method, and where they exist `ceiling_plain`, `direct` and `direct_all` (students of the rows of a chain
        without the chain), `link_1`, `link_2`, ..., `control`. All have predicted the test rows.
    """
    test, rows = splits.test, finetuner.setting.rows
    finetune = partial(finetuner.finetune, splits=splits, seed=seed)
    true_rows = splits.student.map(finetuner.setting.with_ground_truth)
    progress = _progress(models, args, seed)

    # 1. The weak supervisor is trained on ground truth. Its predictions on the student half are the weak labels.
    weak = train_supervisor(models.weak, splits, args, seed, finetuner, next(progress))
    if args.n_supervisors > 1:
        seeds = further_seeds(seed, args.n_supervisors - 1)
        further = (train_supervisor(models.weak, splits, args, s, finetuner, next(progress)) for s in seeds)
        all_weak = [weak, *further]
        weak = replace(weak, predictions=WeakLabels.mean([probabilities_of(supervisor) for supervisor in all_weak]))
    trained = {"weak": weak}
    for warning in unsure_labels(args.methods, label_confidence(weak, splits, args)):
        logger.warning(f"Seed {seed}: {warning}")

    # 2. The strong ceiling is trained on ground truth of the student half.
    for role, model in {"ceiling_plain": models.plain_student, "ceiling": models.student}.items():
        if model is not None:
            logger.info(f"{next(progress)}: {role} {model.name} on {len(true_rows.train)} {rows}, ground truth")
            trained[role] = finetune("ceiling", model, true_rows, [test])

    # 3. Students are trained on the weak labels of the student half, once per method.
    labels = {"student": weak.predictions}
    weak_rows = student_rows(splits, weak, args).map(weak.predictions.join)
    for method in args.methods:
        logger.info(f"{next(progress)}: student {models.student.name} on {len(weak_rows.train)} weak labels, {method}")
        if method == BOOTSTRAP:
            # A chain is compared with direct training on the rows of its last link, which is the naive method.
            trained["direct"] = finetune("student-naive", models.student, weak_rows, [test], labels=labels)
            trained |= bootstrap([*models.chain, models.student], weak, splits, args.link_rows, seed, finetuner)
        else:
            trained[method] = finetune(
                f"student-{method}", models.student, weak_rows, [test], labels=labels, method=method
            )

    # 4. A control shows what the student knows from pretraining: the same weak labels, without it.
    if models.control is not None:
        logger.info(f"{next(progress)}: control {models.control.name} on the same weak labels")
        changes = finetuner.setting.control
        trained["control"] = finetune("control", models.control, weak_rows, [test], labels=labels, **changes)

    # 5. Scores, PGR among them, are computed from the predictions of the test rows: see `scores.py`.
    return trained


def _progress(models: Models, args: ExperimentArguments, seed: int) -> Iterator[str]:
    """Yields the beginning of the log line of each model, `"Seed 0, model 4 of 6"`. A chain counts as one model."""
    has_further = (models.plain_student is not None) + (models.control is not None)
    n_models = args.n_supervisors + 1 + len(args.methods) + has_further
    seeds = args.seeds if seed in args.seeds else [seed]
    start = n_models * seeds.index(seed)
    for number in range(start + 1, start + n_models + 1):
        yield f"Seed {seed}, model {number} of {n_models * len(seeds)}"


def further_seeds(seed: int, n: int) -> list[int]:
    """Returns the seeds of `n` further supervisors, below 2**32 as `set_seed` requires."""
    return [(seed + _FURTHER_SEEDS * number) % 2**32 for number in range(1, n + 1)]


def train_supervisor(
    model: ModelSpec,
    splits: TaskSplits,
    args: ExperimentArguments,
    seed: int,
    finetuner: Finetuner,
    progress: str | None = None,
) -> Finetuned:
    """
    Finetunes the weak supervisor on ground truth and lets it label the student half and the test rows. Its log line
    begins with `progress`.
    """
    setting, rows = finetuner.setting, splits.weak.train
    begin = progress or f"Seed {seed}"
    logger.info(f"{begin}: weak supervisor {model.name} on {len(rows)} {setting.rows}, ground truth")
    changes: dict[str, Any] = {
        "learning_rate": args.weak_learning_rate,
        "num_train_epochs": args.weak_num_train_epochs,
        "weight_decay": args.weak_weight_decay,
    }
    return finetuner.finetune(
        "weak",
        model,
        # It has validation rows of its own: its labels of rows that chose its checkpoint would be too good.
        splits.weak.map(setting.with_ground_truth),
        [*splits.student, splits.test],
        splits=splits,
        seed=seed,
        **{name: value for name, value in changes.items() if value is not None},
    )


def label_confidence(weak: Finetuned, splits: TaskSplits, args: ExperimentArguments) -> float | None:
    """Returns the mean larger probability of the weak labels that students are trained on; `None` for text labels."""
    if not isinstance(weak.predictions, WeakLabels):
        return None
    rows = student_rows(splits, weak, args).train
    return float(weak.predictions.of(list(rows["id"])).max(axis=1).mean())


def probabilities_of(weak: Finetuned) -> WeakLabels:
    """Returns the labels of a supervisor of two classes. The options that need them are refused for completions."""
    return cast(WeakLabels, weak.predictions)


def student_rows(splits: TaskSplits, weak: Finetuned, args: ExperimentArguments) -> Half:
    """
    Returns the rows that students are trained on: the student half, or with `--keep_confident` those with the most
    confident weak labels. The ceiling is trained on all rows.
    """
    if args.keep_confident is None:
        return splits.student
    train, validation = splits.student
    kept = probabilities_of(weak).most_confident(list(train["id"]), args.keep_confident)
    return Half(train.select(np.flatnonzero(kept)), validation)
