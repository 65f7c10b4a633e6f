"""Artificial results of an experiment, and their card."""

from pathlib import Path

from w2s_hf import StudentCard

CARDS = Path(__file__).parents[2] / "model_cards"


def results(name: str = "boolq", **changes) -> dict:
    """Returns results of one seed and one student."""
    common = {"n": 100, "ci95": [0.1, 0.9], "revision": None}
    student = {
        "method": "naive", "model": name, "accuracy": 0.7, **common, "pgr": 0.5, "pgr_ci95": [0.2, 0.8],
        "pgr_undefined": None, "output": "students/naive-seed0", "weak_labels": "weak_labels/seed0", "hardware": "CPU",
        "agreement": {"overall": 0.8, "supervisor_right": 0.9, "supervisor_wrong": 0.25},
    }  # fmt: skip
    run = {
        "seed": 0, "controls": [], "weak": {"model": name, "accuracy": 0.6, **common}, "students": [student | changes],
        "ceiling": {"model": name, "accuracy": 0.8, **common},
    }  # fmt: skip
    sizes = dict.fromkeys(("n_weak_half", "n_student_half", "n_validation", "n_test"), 10)
    return {
        "schema": 1, "run_name": None, "chance": 0.05,
        "task": name, "setting": "classification", "preset": "custom", "description": f"{name}.", "runs": [run],
        "dataset": {"id": name, "revision": name, **sizes}, "text_form": name, "class_names": [name, name],
        "summary": [{
            "method": "naive", "accuracy_mean": 0.7, "n_seeds": 1, "n_undefined": 0, "pgr_median": 0.5,
            "pgr_ci95": [0.2, 0.8],
        }],
        "settings": {
            "training": {"learning_rate": 1e-3}, "student": {"use_peft": True}, "losses": {},
            "loading": {"dtype": "float32"},
        },
        "versions": {"torch": "2.13"}, "wall_seconds": {"students/naive-seed0": 100.0},
    }  # fmt: skip


def card_of(results: dict) -> StudentCard:
    return StudentCard.from_results(results, results["runs"][0], results["runs"][0]["students"][0])
