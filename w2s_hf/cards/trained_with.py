"""The settings that results and cards record of a training, and the fingerprint by which students are grouped."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

from ..results import ExperimentResult, LinkResult, StudentResult

if TYPE_CHECKING:
    from .student_card import StudentCard

__all__ = ["DEMO_DATASET", "fingerprint_of", "method_settings", "plain", "shared_settings", "subject", "trained_with"]

DEMO_DATASET = "w2s_hf demo"  # what results and cards call the rows of the embedded demo


def subject(task: str, is_demo: bool) -> str:
    """
    Returns the name of a task for readers. For the embedded demo it says that the rows are generated.

    ```python
    subject("boolq", is_demo=True)  # "boolq (demo: generated rows)"
    ```
    """
    return f"{task} (demo: generated rows)" if is_demo else task


def method_settings(results: ExperimentResult, student: StudentResult | LinkResult, method: str) -> dict:
    """Returns the settings of a student's method: those of its loss, and the chain that led to it."""
    settings = dict(results.settings.losses.get(method, {}))
    if isinstance(student, StudentResult) and student.links:
        settings["chain"] = " > ".join(link.model for link in student.links)
        settings["chain rows"] = " > ".join(link.rows or "unknown" for link in student.links)
    return settings


def shared_settings(results: ExperimentResult) -> dict:
    """Returns the settings that all methods of an experiment have in common, by name."""
    dataset, settings = results.dataset, results.settings
    of_rows = {"conversion": dataset.options.get("conversion"), "split_seed": dataset.split_seed}
    of_rows |= {name: dataset.options.get(name) for name in ("demo_world", "demo_documents")}
    of_models = settings.training.to_dict() | settings.student.to_dict()
    return of_models | {name: value for name, value in of_rows.items() if value is not None}


def trained_with(card: "StudentCard") -> dict:
    """Returns [`StudentCard.trained_with`]."""
    known: dict[str, Any] = {"task": card.task, "demo": card.is_demo or None, "setting": card.setting}
    known["method"] = card.method
    for role, score in {"weak": card.weak, "student": card.student}.items():
        known[f"{role}_model"] = score and score.model
        known[f"{role}_model_version"] = score and (score.revision or score.weights)
    known |= {"labels_of": card.taught_by, "dataset": card.dataset, "rows": card.rows_fingerprint}
    if card.rows_fingerprint is None and not card.is_demo:
        known["dataset_revision"] = card.dataset_revision
    known |= {f"n_{name.replace(' ', '_')}": n for name, n in card.n_rows.items()}
    known |= {"n_train": card.n_train, "w2s_hf_version": card.versions.get("w2s_hf")}
    known |= {name: value for name, value in plain(card.settings).items() if name not in known}
    return {name: value for name, value in known.items() if value is not None}


def fingerprint_of(settings: dict) -> str:
    """Returns twelve hexadecimal digits of JSON values by name. Neither order nor entries of `None` change them."""
    text = json.dumps(_canonical(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _canonical(value):
    """Returns JSON values that are equal where settings are equal: 2 and 2.0, and names in any order."""
    if isinstance(value, dict):
        return {name: _canonical(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        parts = [_canonical(part) for part in value]
        return sorted(parts) if all(isinstance(part, str) for part in parts) else parts
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def plain(value):
    """JSON values alone: a tuple or a NumPy number would be written into the front matter as Python objects."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(part) for part in value)
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value.item() if hasattr(value, "item") else value  # NumPy's
