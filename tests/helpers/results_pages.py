"""Synthetic results of several seeds and methods, and a `tables.yaml` for them."""

import json
from pathlib import Path

import numpy as np
import yaml

from w2s_hf.experiments.settings.classification import LINEAR_PROBE
from w2s_hf.metrics import accuracy_interval, agreement_shares, performance_gap_recovered, pgr_interval, pgr_over_seeds
from w2s_hf.results import PREDICTIONS
from w2s_hf.results.predictions import predictions_table, write_predictions

N_TEST, WEAK, CEILING = 400, 0.75, 0.85
GAINS = {"naive": 0.03, "confidence": -0.06, "product": 0.05, "adaptive_confidence": 0.0}


def score(model: str, correct: np.ndarray) -> dict:
    """Returns the entry of a model in `results.json`."""
    ends = accuracy_interval(correct)
    return {"model": model, "revision": None, "accuracy": correct.mean(), "ci95": list(ends), "n": len(correct)}


def made_up_results(
    seeds: list[int], methods: list[str], weak: float = WEAK, ceiling: float = CEILING, zero_shot: bool = True
) -> dict:
    """Returns the content of a `results.json` with about these accuracies. Students are above `weak` by `GAINS`."""
    runs, correct = [], _correct(seeds, methods, weak, ceiling)
    for seed, right in zip(seeds, correct, strict=True):
        students = []
        for name in methods:
            ends = pgr_interval(right["weak"], right[name], right["ceiling"], n_resamples=50)
            pgr = performance_gap_recovered(*(right[role].mean() for role in ("weak", name, "ceiling")))
            same = right[name] == right["weak"]
            students.append({
                "method": name,
                **score("smollm2-135m", right[name]),
                "pgr": pgr,
                "pgr_ci95": None if ends is None else list(ends),
                "pgr_undefined": "no gap" if pgr is None else None,
                "agreement": agreement_shares(same, right["weak"]),
                "output": f"students/{name}-seed{seed}",
                "weak_labels": f"weak_labels/seed{seed}",
                "hardware": "CPU",
            })  # fmt: skip
        prompt = score("smollm2-135m", right["zero-shot"]) | {"accuracy_at_median": 0.7}
        baselines = [{"name": LINEAR_PROBE, **score("smollm2-135m", right[LINEAR_PROBE])}]
        baselines += [{"name": "zero-shot", **prompt}] if zero_shot else []
        runs.append({
            "seed": seed,
            "weak": score("minilm-l6", right["weak"]) | {"weights": "745078320039"},
            "ceiling": score("smollm2-135m", right["ceiling"]) | {"weights": "3d709c7c6d01"},
            "students": students,
            "controls": [],
            "baselines": baselines,
            **({"analyses": {"prompting": {"prompted": {"zero-shot": prompt}}}} if zero_shot else {}),
        })  # fmt: skip
    summary = [
        {
            "method": name,
            "accuracy_mean": float(np.mean([right[name].mean() for right in correct])),
            **pgr_over_seeds([(right["weak"], right[name], right["ceiling"]) for right in correct], n_resamples=50),
        }
        for name in methods
    ]
    rows = {"n_weak_half": 200, "n_student_half": 640, "n_validation": 60, "n_test": N_TEST}
    content = {
        "schema": 1,
        "run_name": None,
        "task": "sst2",
        "setting": "classification",
        "preset": "custom",
        "chance": 0.5,
        "dataset": {"id": "stanfordnlp/sst2", "revision": "local", **rows, "n_dropped": {}},
        "runs": runs,
        "summary": summary,
        "settings": {
            "training": {},
            "student": {"use_peft": True},
            "losses": {name: {"loss_type": name} for name in methods},
        },
        "versions": {"torch": "2.13.0"},
        "wall_seconds": {"weak": 10.0, "ceiling": 130.0, "total": 5.0},
    }
    return json.loads(json.dumps(content, default=float))


def _correct(seeds: list[int], methods: list[str], weak: float, ceiling: float) -> list[dict[str, np.ndarray]]:
    """Returns whether the model predicts each test row correctly, by seed and role."""
    rng = np.random.default_rng(0)
    levels = {"weak": weak, "ceiling": ceiling, **{name: weak + GAINS[name] for name in methods}}
    levels |= {"zero-shot": weak + 0.02, LINEAR_PROBE: weak + 0.05}
    return [{name: rng.random(N_TEST) < level + rng.normal(0, 0.01) for name, level in levels.items()} for _ in seeds]


def write_made_up_results(folder: Path, seeds: list[int], methods: list[str], zero_shot: bool = True) -> None:
    """Writes [`made_up_results`] and the predictions behind them. All rows have class 1."""
    folder.mkdir(parents=True)
    content = made_up_results(seeds, methods, zero_shot=zero_shot)
    (folder / "results.json").write_text(json.dumps(content))
    ids = [f"{number:016x}" for number in range(N_TEST)]
    tables = []
    for seed, right in zip(seeds, _correct(seeds, methods, WEAK, CEILING), strict=True):
        right = right if zero_shot else {role: values for role, values in right.items() if role != "zero-shot"}
        probabilities = {role: np.stack([~values, values], axis=1) for role, values in right.items()}
        tables.append(predictions_table(seed, ids, probabilities, right))
    write_predictions(tables, folder / PREDICTIONS)


def write_tables(folder: Path, tables: dict, options: dict) -> Path:
    """Writes a `tables.yaml` and returns its path."""
    content = {
        "models": {"org/student": {"directory": "smollm2-135m", "weights": "3d709c7c6d01", "local": "rounded"}},
        "local_rows": {"all": "A part of the rows.", "sst2": "rows of SST-2"},
        "options": options,
        "tables": tables,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tables.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "tables.yaml"
