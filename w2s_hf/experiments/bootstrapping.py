"""Bootstrapping: a chain of students from small to large, each trained on labels of the one before (paper, 4.3.1)."""

import logging
from functools import partial

from datasets import concatenate_datasets

from ..modeling.spec import ModelSpec
from ..tasks import Half, TaskSplits
from .config import BOOTSTRAP
from .finetuner import Finetuned, Finetuner

__all__ = ["bootstrap"]

logger = logging.getLogger(__name__)


def bootstrap(
    models: list[ModelSpec], weak: Finetuned, splits: TaskSplits, link_rows: str, seed: int, finetuner: Finetuner
) -> dict[str, Finetuned]:
    """
    Trains a chain: the first model on the supervisor's labels, each other one on those of the model before it.

    Every link is a cached step, so that an interrupted chain is resumed, and chains that begin alike share their
    beginning. A base is released before the next one is loaded. Nothing but labels goes from link to link.

    Args:
        models (`list` of [`ModelSpec`]): The links, small to large, the student last.
        weak ([`Finetuned`]): The supervisor.
        splits ([`TaskSplits`]): The rows.
        link_rows (`str`): `"fresh"`: each link but the last has rows that no other model is trained on; `"same"`: all
            are trained on the student half.
        seed (`int`): Seeds heads, adapters and row order.
        finetuner ([`Finetuner`]): Trains the models.

    Returns:
        `dict[str, Finetuned]`: `link_1`, `link_2`, ..., and the last link as `bootstrap`. With fresh rows also
        `direct_all`: the student trained directly on the supervisor's labels of the rows of all links, which are as
        many rows as the chain has seen.
    """
    finetune = partial(finetuner.finetune, splits=splits, seed=seed)
    has_fresh_rows = link_rows == "fresh"
    names = [f"link_{number}" for number in range(1, len(models))]
    parts = [*(names if has_fresh_rows else ["student"] * len(names)), "student"]
    rows = {"student": splits.student}
    supervisor_labels = {"student": weak.predictions}
    if has_fresh_rows:
        rows |= {name: splits.bootstrap(number) for number, name in enumerate(names, start=1)}
        # A step of its own, so that the supervisor is the same step with a chain and without one.
        link_labels = finetuner.predict(
            "weak-link-labels",
            weak,
            splits.weak.map(finetuner.setting.with_ground_truth),
            [part for name in names for part in rows[name]],
        )
        supervisor_labels |= dict.fromkeys(names, link_labels)

    trained: dict[str, Finetuned] = {}
    labels = supervisor_labels[parts[0]]
    for number, (role, model, part) in enumerate(zip([*names, BOOTSTRAP], models, parts, strict=True), start=1):
        is_last = role == BOOTSTRAP
        logger.info(
            f"Seed {seed}: link {number} of {len(models)}, {model.name} on {len(rows[part].train)} labels of "
            f"{labels.provenance['model']}"
        )
        step = "student-bootstrap" if is_last else "link"
        predict = [splits.test] if is_last else [*rows[parts[number]], splits.test]
        trained[role] = finetune(step, model, rows[part].map(labels.join), predict, labels={part: labels})
        labels = trained[role].predictions

    if has_fresh_rows:
        logger.info(f"Seed {seed}: {models[-1].name} directly on the supervisor's labels of all links' rows")
        labelled = [rows[part].map(supervisor_labels[part].join) for part in parts]
        all_rows = Half(*(concatenate_datasets(list(of_parts)) for of_parts in zip(*labelled, strict=True)))
        direct_labels = {part: supervisor_labels[part] for part in parts}
        trained["direct_all"] = finetune("student-direct", models[-1], all_rows, [splits.test], labels=direct_labels)
    return trained
