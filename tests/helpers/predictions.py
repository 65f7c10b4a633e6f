"""Checks the predictions of a run against its `results.json`, and writes synthetic predictions."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from w2s_hf.experiments.settings.classification import LINEAR_PROBE
from w2s_hf.results import PREDICTIONS, SELF_TRAINED, ExperimentResult, SeedResult, read_predictions
from w2s_hf.results.predictions import predictions_table, write_predictions

_DIRECT = {"same_rows": "direct", "all_rows": "direct_all"}


def scores_of(run: SeedResult) -> dict:
    """Returns the score of each model of a seed by its role in the predictions."""
    scores = {"weak": run.weak, "ceiling": run.ceiling, "ceiling_plain": run.ceiling_plain}
    scores |= dict.fromkeys(["control"], *run.controls)
    for student in run.students:
        scores[student.method] = student
        scores |= {f"link_{number}": link for number, link in enumerate(student.links[:-1], start=1)}
        scores |= {_DIRECT[rows]: score for rows, score in student.direct.items()}
    names = {LINEAR_PROBE, *run.analyses.get("prompting", {}).get("prompted", {})}
    scores |= {each.name: each for each in run.baselines if each.name in names or each.name.endswith(", balanced")}
    scores[SELF_TRAINED] = run.self_trained
    return {role: score for role, score in scores.items() if score is not None}


def check_predictions(folder: Path) -> pd.DataFrame:
    """Checks that the predictions of a folder give all accuracies of its `results.json`. Returns the predictions."""
    results, predictions = ExperimentResult.read(folder / "results.json"), read_predictions(folder / PREDICTIONS)
    accuracies = predictions.groupby(["seed", "role"])["correct"].agg(["mean", "size"])
    expected = {(run.seed, role): score for run in results.runs for role, score in scores_of(run).items()}
    assert set(accuracies.index) == set(expected)
    for key, score in expected.items():
        assert accuracies.loc[key].tolist() == [pytest.approx(score.accuracy), score.n], key
    assert not predictions.duplicated(["seed", "role", "id"]).any()
    if results.setting in ("classification", "reward"):
        probabilities = np.stack(list(predictions["prediction"]))
        assert probabilities.dtype == np.float32 and probabilities.shape == (len(predictions), 2)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    else:
        assert predictions["prediction"].isna().all(), "completions are text"
    return predictions


def write_made_up(folder: Path, seeds: list[int], predictions: dict[str, list[float]]) -> pd.DataFrame:
    """Writes predictions for rows of class 1, given P(class 1) by role, and returns them as they are read."""
    tables = []
    for seed in seeds:
        by_role = {role: np.array([[1 - p, p] for p in values]) for role, values in predictions.items()}
        ids = [f"{number:016x}" for number in range(len(next(iter(predictions.values()))))]
        correct = {role: values.argmax(axis=1) == 1 for role, values in by_role.items()}
        tables.append(predictions_table(seed, ids, by_role, correct))
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(tables, folder / PREDICTIONS)
    return read_predictions(folder / PREDICTIONS)
