"""Compares the predictions of two runs, and merges their results."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from w2s_hf.experiments.settings.classification import LINEAR_PROBE
from w2s_hf.results import PREDICTIONS, ExperimentResult, SeedResult, read_predictions

__all__ = ["compare_predictions", "merge"]

T = TypeVar("T")


def compare_predictions(predictions: pd.DataFrame, others: pd.DataFrame) -> list[dict]:
    """
    Compares predictions of the same test rows.

    Args:
        predictions (`pandas.DataFrame`): Predictions as returned by [`read_predictions`]. All models are compared.
        others (`pandas.DataFrame`): The predictions to compare with. They have all seeds and roles of `predictions`.

    Returns:
        A `dict` for each seed and role:

        - `seed`, `role`, and `n`, the number of test rows;
        - `accuracy`, `other_accuracy`;
        - `largest_difference` and `mean_difference`, the maximum and the mean over rows of the largest absolute
          difference of a probability; `None` for completions;
        - `n_different`, the number of rows with another predicted class. For completions, it is the number of rows for
          which only one of the two completions is correct.

    Raises:
        ValueError: `others` lacks a seed and role, or has different test rows.
    """
    by_model = dict(iter(others.groupby(["seed", "role"])))
    comparisons = []
    for (seed, role), first in predictions.groupby(["seed", "role"], sort=False):
        if (seed, role) not in by_model:
            raise ValueError(
                f"Got no predictions of seed {seed}, {role} in the second run, expected all models of the first run. "
                "Compare runs with the same seeds and methods."
            )
        first, second = first.set_index("id"), by_model[seed, role].set_index("id")
        missing = first.index.symmetric_difference(second.index)
        if len(missing):
            raise ValueError(
                f"Got other test rows for seed {seed}, {role}, expected the same test rows. {len(missing)} ids, such "
                f"as {missing[0]}, are in only one of the two files. Use the same dataset, models and split."
            )
        second = second.loc[first.index]
        largest = mean = None
        is_different = (first["correct"] != second["correct"]).to_numpy()
        if first["prediction"].notna().all() and second["prediction"].notna().all():
            here, there = (np.stack(list(of_one["prediction"])).astype(float) for of_one in (first, second))
            differences = np.abs(here - there).max(axis=1)
            largest, mean = float(differences.max()), float(differences.mean())
            is_different = here.argmax(axis=1) != there.argmax(axis=1)
        comparisons.append({
            "seed": int(seed),
            "role": role,
            "n": len(first),
            "accuracy": float(first["correct"].mean()),
            "other_accuracy": float(second["correct"].mean()),
            "largest_difference": largest,
            "mean_difference": mean,
            "n_different": int(is_different.sum()),
        })  # fmt: skip
    return comparisons


def merge(published: Path, added: Path) -> tuple[ExperimentResult, pd.DataFrame]:
    """
    Merges the results of a run with published results of the same seeds. Both runs have the supervisor, the ceiling
    and the naive student. The predictions of all models that both runs have must be equal. The students of both runs
    are then those of one run with all methods. The linear probe must have the same predicted classes, because its
    libraries may round differently.

    Args:
        published (`Path`): The folder of the published `results.json` and `predictions.parquet`.
        added (`Path`): The output directory of the run with other methods.

    Returns:
        The results with the methods of both runs, and their predictions. Predictions, durations and scores of
        baselines that both runs have are those of the published run. Other scores are computed from equal predictions.

    Raises:
        ValueError: The runs differ in seeds, rows, settings or versions, or a model of both runs has other
            predictions.
    """
    old, new = (ExperimentResult.read(folder / "results.json") for folder in (published, added))
    facts: dict[str, list[Any]] = {
        "seeds": [[run.seed for run in each.runs] for each in (old, new)],
        "splits": [[run.split_fingerprint for run in each.runs] for each in (old, new)],
        "dataset": [each.dataset for each in (old, new)],
        "settings": [replace(each.settings, losses={}) for each in (old, new)],
        "versions": [each.versions for each in (old, new)],
    }
    for name, (one, other) in facts.items():
        if one != other:
            raise ValueError(
                f"Got {name} {other}, expected the {name} of the published run, {one}. Train all methods again, "
                "without --only_methods."
            )
    before, after = (read_predictions(folder / PREDICTIONS) for folder in (published, added))
    is_shared = _models(after).isin(_models(before))
    for model in compare_predictions(after[is_shared], before):
        if model["n_different"] or model["role"] != LINEAR_PROBE and model["largest_difference"]:
            raise ValueError(
                f"Got other predictions of {model['role']}, seed {model['seed']}, expected the published predictions "
                f"({model['n_different']} of {model['n']} classes differ). Train all methods again, without "
                "--only_methods."
            )
    results = replace(
        new,
        runs=[_merge_seed(*runs) for runs in zip(old.runs, new.runs, strict=True)],
        summary=_merged(old.summary, new.summary, "method"),
        self_trained=new.self_trained or old.self_trained,
        settings=replace(new.settings, losses=old.settings.losses | new.settings.losses),
        wall_seconds=new.wall_seconds | old.wall_seconds,
    )
    return results, pd.concat([before, after[~is_shared]], ignore_index=True)


def _models(predictions: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(predictions[["seed", "role"]])


def _merged(old: Sequence[T], new: Sequence[T], key: str) -> list[T]:
    """Returns the entries of both runs, in the order of `old`. Entries of `new` replace those with the same key."""
    entries = {getattr(each, key): each for each in old} | {getattr(each, key): each for each in new}
    return list(entries.values())


def _merge_seed(old: SeedResult, new: SeedResult) -> SeedResult:
    """Returns the results of one seed with the models of both runs. Baselines of both runs are those of `old`."""
    transfer = dict(old.transfer)
    known = {each.name for each in old.baselines}
    for task, of_task in new.transfer.items():
        students = _merged(old.transfer[task].students, of_task.students, "method") if task in transfer else None
        transfer[task] = of_task if students is None else replace(of_task, students=students)
    return replace(
        new,
        students=_merged(old.students, new.students, "method"),
        baselines=[*old.baselines, *(each for each in new.baselines if each.name not in known)],
        self_trained=new.self_trained or old.self_trained,
        analyses=old.analyses | new.analyses,
        transfer=transfer,
    )
