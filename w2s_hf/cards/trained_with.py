"""The training settings in results and cards, and the fingerprint that groups students by them."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

from ..results import ExperimentResult, LinkResult, StudentResult

if TYPE_CHECKING:
    from .student_card import StudentCard

__all__ = ["DEMO_DATASET", "fingerprint_of", "method_settings", "plain", "shared_settings", "subject", "trained_with"]

DEMO_DATASET = "w2s_hf demo"  # the dataset id of the embedded demo in results and cards


def subject(task: str, is_demo: bool) -> str:
    """
    Returns the displayed name of a task. For the embedded demo it includes a note that the rows are generated.

    ```python
    subject("boolq", is_demo=True)  # "boolq (demo: generated rows)"
    ```
    """
    return f"{task} (demo: generated rows)" if is_demo else task


def method_settings(results: ExperimentResult, student: StudentResult | LinkResult, method: str) -> dict:
    """Returns the settings of a student's method: the settings of its loss, and the models and rows of its chain."""
    settings = dict(results.settings.losses.get(method, {}))
    if isinstance(student, StudentResult) and student.links:
        settings["chain"] = " > ".join(link.model for link in student.links)
        settings["chain rows"] = " > ".join(link.rows or "unknown" for link in student.links)
    return settings


def shared_settings(results: ExperimentResult) -> dict:
    """Returns the settings shared by all methods of an experiment, by name."""
    dataset, settings = results.dataset, results.settings
    row_settings = {"conversion": dataset.options.get("conversion"), "split_seed": dataset.split_seed}
    row_settings |= {name: dataset.options.get(name) for name in ("demo_world", "demo_documents")}
    model_settings = settings.training.to_dict() | settings.student.to_dict()
    return model_settings | {name: value for name, value in row_settings.items() if value is not None}


def trained_with(card: "StudentCard") -> dict:
    """Returns [`StudentCard.trained_with`]."""
    facts: dict[str, Any] = {"task": card.task, "demo": card.is_demo or None, "setting": card.setting}
    facts["method"] = card.method
    for role, score in {"weak": card.weak, "student": card.student}.items():
        facts[f"{role}_model"] = score and score.model
        facts[f"{role}_model_version"] = score and (score.revision or score.weights)
    facts |= {"labels_of": card.taught_by, "dataset": card.dataset, "rows": card.rows_fingerprint}
    if card.rows_fingerprint is None and not card.is_demo:
        facts["dataset_revision"] = card.dataset_revision
    facts |= {f"n_{name.replace(' ', '_')}": n for name, n in card.n_rows.items()}
    facts |= {"n_train": card.n_train, "w2s_hf_version": card.versions.get("w2s_hf")}
    facts |= {name: value for name, value in plain(card.settings).items() if name not in facts}
    return {name: value for name, value in facts.items() if value is not None}


def fingerprint_of(settings: dict) -> str:
    """Returns a hash of JSON values by name, 12 hexadecimal digits. Order and entries of `None` do not change it."""
    text = json.dumps(_canonical(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _canonical(value):
    """Returns JSON values in a form that is equal for equal settings: 2 and 2.0, and lists of names in any order."""
    if isinstance(value, dict):
        return {name: _canonical(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        parts = [_canonical(part) for part in value]
        return sorted(parts) if all(isinstance(part, str) for part in parts) else parts
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def plain(value):
    """Returns plain JSON values. YAML would write tuples and NumPy numbers as Python objects."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(part) for part in value)
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value.item() if hasattr(value, "item") else value  # NumPy numbers
