"""Trains a chain of students, small to large, each on the labels of the previous model (paper, 4.3.1)."""

from functools import partial

from datasets import concatenate_datasets

from ..methods import BOOTSTRAP
from ..modeling.spec import ModelSpec
from ..tasks import Half, TaskSplits
from .finetuner import Finetuned, Finetuner

__all__ = ["bootstrap", "bootstrap_kinds"]

_LINK_LABELS = "weak-link-labels"


def bootstrap(
    models: list[ModelSpec], weak: Finetuned, splits: TaskSplits, link_rows: str, seed: int, finetuner: Finetuner
) -> dict[str, Finetuned]:
    """
    Trains a chain: the first model on the supervisor's labels, each later model on the labels of the previous model.

    Every link is a cached stage, so that an interrupted chain is resumed, and chains with the same first links share
    them. A base model is released before the next model is loaded. The links share only labels.

    Args:
        models (`list` of [`ModelSpec`]): The links, small to large, the student last.
        weak ([`Finetuned`]): The supervisor.
        splits ([`TaskSplits`]): The rows.
        link_rows (`str`): With `"fresh"`, each link except the last has rows that no other model is trained on.
            With `"same"`, all links are trained on the student half.
        seed (`int`): Seeds heads, adapters and row order.
        finetuner ([`Finetuner`]): Trains the models.

    Returns:
        `dict[str, Finetuned]`: `link_1`, `link_2`, ..., and the last link as `bootstrap`. Fresh rows add
        `direct_all`: the student trained directly on the supervisor's labels of the rows of all links.
    """
    finetune = partial(finetuner.finetune, splits=splits, seed=seed)
    has_fresh_rows = link_rows == "fresh"
    names = [f"link_{number}" for number in range(1, len(models))]
    parts = [*(names if has_fresh_rows else ["student"] * len(names)), "student"]
    rows = {"student": splits.student}
    supervisor_labels = {"student": weak.predictions}
    if has_fresh_rows:
        rows |= {name: splits.bootstrap(number) for number, name in enumerate(names, start=1)}
        # This is a separate stage, so that the stage of the supervisor is the same with and without a chain.
        link_labels = finetuner.predict(
            _LINK_LABELS,
            weak,
            splits.weak.map(finetuner.setting.with_ground_truth),
            [part for name in names for part in rows[name]],
            title=f"labels of {weak.spec.name} for the rows of {len(names)} links of the chain",
        )
        supervisor_labels |= dict.fromkeys(names, link_labels)

    trained: dict[str, Finetuned] = {}
    labels = supervisor_labels[parts[0]]
    for number, (role, model, part) in enumerate(zip([*names, BOOTSTRAP], models, parts, strict=True), start=1):
        is_last = role == BOOTSTRAP
        name = "student-bootstrap" if is_last else "link"
        title = f"link {number} of {len(models)} of the chain" + (", the student (bootstrap)" if is_last else "")
        predict = [splits.test] if is_last else [*rows[parts[number]], splits.test]
        trained[role] = finetune(name, model, rows[part].map(labels.join), predict, labels={part: labels}, title=title)
        labels = trained[role].predictions

    if has_fresh_rows:
        labelled = [rows[part].map(supervisor_labels[part].join) for part in parts]
        all_rows = Half(*(concatenate_datasets(list(of_parts)) for of_parts in zip(*labelled, strict=True)))
        direct_labels = {part: supervisor_labels[part] for part in parts}
        trained["direct_all"] = finetune(
            "student-direct",
            models[-1],
            all_rows,
            [splits.test],
            labels=direct_labels,
            title="student without the chain (naive, the rows of all links)",
            kind=_on_all_rows(models[-1].name),
        )
    return trained


def bootstrap_kinds(names: list[str], link_rows: str) -> list[str]:
    """Returns the kind of each stage that [`bootstrap`] will run with models of these names, for [`Progress.plan`]."""
    return [*names, _LINK_LABELS, _on_all_rows(names[-1])] if link_rows == "fresh" else names


def _on_all_rows(name: str) -> str:
    return f"{name} on the rows of all links"
