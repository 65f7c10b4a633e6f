"""Artificial tables of sweeps."""

import itertools

import numpy as np
import pandas as pd

from w2s_hf.sweep.plots import plot_accuracy_by_size, plot_agreement, plot_pgr_by_size, plot_pgr_distribution

ALL_PLOTS = [plot_accuracy_by_size, plot_pgr_by_size, plot_agreement, plot_pgr_distribution]

SIZES = {
    "Qwen/Qwen2.5-0.5B": 494_000_000,
    "Qwen/Qwen2.5-1.5B": 1_540_000_000,
    "Qwen/Qwen2.5-7B": 7_620_000_000,
    "Qwen/Qwen2.5-14B": 14_800_000_000,
    "Qwen/Qwen2.5-72B": 72_700_000_000,
}
MODELS = list(SIZES)


def make_table(
    *, tasks=("boolq", "sciq"), weak=MODELS[:2], students=MODELS[2:], methods=("naive", "confidence", "bootstrap"),
    seeds=range(3), sizes=SIZES, setting="classification", n_test=3270,
):  # fmt: skip
    """Returns a sweep in which larger students recover more, and confidence helps the largest. It is deterministic."""
    rng = np.random.default_rng(0)
    rows = []
    ceilings = {}
    for number, task in enumerate(tasks):
        for weak_model, student, method, seed in itertools.product(weak, students, methods, seeds):
            ease = 0.04 * (number % 5)
            weak_accuracy = 0.60 + 0.05 * np.log10(sizes[weak_model] / 5e8) + ease + 0.004 * seed
            gap = 0.10 + 0.05 * np.log10(sizes[student] / 5e8)
            key = (task, student, seed)
            ceilings.setdefault(key, min(0.985, 0.62 + ease + 2 * gap * 0.6 + rng.normal(0, 0.006)))
            ceiling = ceilings[key]
            share = {"naive": 0.35, "confidence": 0.3 + 0.15 * np.log10(sizes[student] / 1e9)}.get(method, 0.5)
            accuracy = weak_accuracy + share * (ceiling - weak_accuracy) + rng.normal(0, 0.012)
            half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / n_test)
            pgr = (accuracy - weak_accuracy) / (ceiling - weak_accuracy)
            right = min(0.99, 0.93 + rng.normal(0, 0.01))
            rows.append(
                {
                    "task": task, "setting": setting, "weak_model": weak_model, "student_model": student,
                    "method": method, "seed": seed, "status": "done", "weak_parameters": sizes[weak_model],
                    "student_parameters": sizes[student], "n_test": n_test,
                    "chance": np.nan if setting == "chess" else 0.5, "weak_accuracy": weak_accuracy,
                    "ceiling_accuracy": ceiling, "accuracy": accuracy, "accuracy_low": accuracy - half,
                    "accuracy_high": accuracy + 0.9 * half, "pgr": pgr, "pgr_low": pgr - 0.12, "pgr_high": pgr + 0.13,
                    "pgr_undefined": None, "agreement": 0.8, "agreement_supervisor_right": right,
                    "agreement_supervisor_wrong": 0.75 - share + rng.normal(0, 0.02),
                    "direct_accuracy": accuracy - 0.02 if method == "bootstrap" else np.nan, "error": None,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


NUMBERS = [
    "n_test", "chance", "weak_accuracy", "ceiling_accuracy", "accuracy", "accuracy_low", "accuracy_high", "pgr",
    "pgr_low", "pgr_high", "agreement", "agreement_supervisor_right", "agreement_supervisor_wrong", "direct_accuracy",
]  # fmt: skip


def fail(table, rows, error="CUDA out of memory"):
    """Returns a table in which some cells failed."""
    table = table.astype({"n_test": float, "pgr_undefined": object, "error": object})
    table.loc[rows, "status"] = "failed"
    table.loc[rows, NUMBERS] = np.nan
    table.loc[rows, "error"] = error
    return table


def undefine(table, rows):
    """Returns a table in which some cells have no gap, so that PGR is undefined."""
    table = table.astype({"pgr_undefined": object})
    table.loc[rows, "weak_accuracy"] = table.loc[rows, "ceiling_accuracy"]
    table.loc[rows, ["pgr", "pgr_low", "pgr_high"]] = np.nan
    table.loc[rows, "pgr_undefined"] = "the ceiling is not above the weak supervisor: there is no gap to recover"
    return table


def as_written(table):
    """Returns a table with the column types of a sweep."""
    words = ["task", "setting", "weak_model", "student_model", "method", "status", "pgr_undefined", "error"]
    whole = ["weak_parameters", "student_parameters", "n_test"]
    return table.astype(dict.fromkeys(words, "string") | dict.fromkeys(whole, "Int64"))


ONE_OF_EACH = {"tasks": ["boolq"], "weak": MODELS[:1], "students": MODELS[4:], "methods": ["naive"], "seeds": [0]}
