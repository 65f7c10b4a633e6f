"""Reads one or many `results.json` into one tidy table."""

import glob
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ..cards import Score, StudentCard
from ..cards.trained_with import shared_settings
from .schema import SELF_TRAINED, AnyScore, ExperimentResult, SeedResult, is_results

__all__ = ["RESULT_COLUMNS", "find_results", "read_results"]

logger = logging.getLogger(__name__)

RESULT_COLUMNS = (
    "run_name", "task", "demo", "setting", "seed", "role", "method", "model", "accuracy", "accuracy_low",
    "accuracy_high", "n", "pgr", "pgr_low", "pgr_high", "pgr_undefined", "weak_model", "weak_accuracy",
    "ceiling_accuracy", "agreement", "agreement_supervisor_right", "agreement_supervisor_wrong", "fingerprint",
    "output", "source",
)  # fmt: skip
_TRAINING = ["fingerprint", "seed", "role", "method"]  # the columns that identify a trained model
_MAX_NAMED = 5  # number of students that a warning names


def read_results(sources: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """
    Reads the results of experiments and sweeps into one table, with one row per seed and evaluated model.

    ```python
    from w2s_hf import read_results

    table = read_results("outputs")  # or a file, a pattern such as "outputs/*/results.json", or a list of them
    table = table.drop_duplicates(["fingerprint", "seed", "role", "method"])
    students = table[table["role"] == "student"]
    medians = students.groupby(["fingerprint", "method", "learning_rate"])["pgr"].median()
    ```

    A model in several files has a row for each file, so that a mean over rows counts it several times. A warning names
    such students and their files. `drop_duplicates` as above keeps the row of the first file.

    Args:
        sources (`str`, `Path` or an iterable of them): Files `results.json`, directories that contain results of
            experiments or sweeps, or patterns of [`glob`](https://docs.python.org/3/library/glob.html). A file is read
            once, even if several sources contain it. Directories and patterns skip other files with a warning.

    Returns:
        `pandas.DataFrame` with [`RESULT_COLUMNS`], a column for each setting and fact in
        [`StudentCard.trained_with`], and a column for each library version, such as `torch_version`.

        - `role` is `weak`, `ceiling`, `ceiling_plain`, `student`, `link` (of a chain), `direct` (trained on the rows
          of all links, without the chain), `control` or `baseline`. `method` is the method of students and
          links, the name of a baseline, and missing for the other roles.
        - Accuracies and shares are in [0, 1]; intervals (`_low`, `_high`) are 95 %.
        - `fingerprint` is equal for all seeds of an experiment; for `weak` and `ceiling` it does not depend on the
          method.

    Raises:
        FileNotFoundError: A file does not exist, or a directory has no results.
        ValueError: A file passed by name is not a `results.json` of schema 1. A file of schema 1 lacks a key or has
            a value of another type.
    """
    by_path: dict[Path, ExperimentResult] = {}
    for source in [sources] if isinstance(sources, str | Path) else sources:
        is_pattern = glob.has_magic(str(source)) and not Path(source).exists()
        of_source: dict[Path, ExperimentResult] = {}
        for path in map(Path, sorted(glob.glob(str(source), recursive=True)) if is_pattern else [source]):
            if path.is_dir():
                of_source |= find_results(path)
            elif path.is_file():
                results = _read_if_results(path) if is_pattern else ExperimentResult.read(path)
                if results is not None:
                    of_source[path.resolve()] = results
        if not of_source:
            raise FileNotFoundError(
                f"Got {str(source)!r}, expected a results.json, a directory that contains results of experiments or "
                "sweeps, or a pattern of such paths. Check the path."
            )
        by_path |= of_source
    rows = [row for path, results in by_path.items() for row in _rows_of(results, path)]
    columns = dict.fromkeys([*RESULT_COLUMNS, *(name for row in rows for name in row)])
    table = pd.DataFrame(rows, columns=list(columns))
    _warn_of_copies(table)
    return table


def _warn_of_copies(table: pd.DataFrame) -> None:
    """Warns of students that are in several files."""
    students = table[table["role"] == "student"]
    copies = [
        f"{method}, seed {seed}, fingerprint {fingerprint}, in {' and '.join(rows['source'])}"
        for (fingerprint, seed, _, method), rows in students.groupby(_TRAINING, sort=False)
        if len(rows) > 1
    ]
    if copies:
        more = f"; and {len(copies) - _MAX_NAMED} more" if len(copies) > _MAX_NAMED else ""
        logger.warning(
            "Several files contain the same student, so the table has several rows of this student: "
            f"{'; '.join(copies[:_MAX_NAMED])}{more}. Call `table.drop_duplicates({json.dumps(_TRAINING)})` before "
            "taking means over rows."
        )


def find_results(directory: str | Path, only_sweeps: bool = False) -> dict[Path, ExperimentResult]:
    """
    Returns all results in a directory and its subdirectories, by path.

    A finished cell of a sweep counts as the results of one student. Files named `results.json` of other programs are
    skipped with a warning.

    Args:
        directory (`str` or `Path`): The directory.
        only_sweeps (`bool`, *optional*, defaults to `False`): Whether to read only cells of sweeps.

    Raises:
        ValueError: A file of schema 1 lacks a key or has a value of another type.
    """
    by_path = {}
    for path in sorted(Path(directory).rglob("*.json")):
        is_file_of_run = path.name == "results.json"
        is_cell = path.parent.name == "cells"
        if "_stages" in path.parts or not (is_file_of_run or is_cell) or is_file_of_run and only_sweeps:
            continue
        results = _read_if_results(path)
        if results is not None:
            by_path[path.resolve()] = results
    return by_path


def _read_if_results(path: Path) -> ExperimentResult | None:
    """
    Reads a `results.json` or a finished cell of a sweep, in a directory or matched by a pattern. Returns `None` for
    failed cells and other files, and warns of other files.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if is_results(content):
        return ExperimentResult.read(path)
    if isinstance(content, dict) and path.parent.name == "cells":
        if content.get("status") == "failed":
            return None
        if content.get("status") == "done" and isinstance(content.get("results"), dict) and "entry" in content:
            try:
                return ExperimentResult.from_dict({**content["results"], "runs": [content["entry"]]})
            except ValueError as error:
                raise ValueError(
                    f"Got {path}, expected a finished cell of a sweep: {error} Remove the file and "
                    "run the sweep again."
                ) from error
    logger.warning(f"{path} is skipped, because it has no results of an experiment or a sweep.")
    return None


def _rows_of(results: ExperimentResult, path: Path) -> Iterator[dict]:
    """Yields one row per evaluated model."""
    versions = {f"{name}_version": version for name, version in results.versions.items()}
    for run in results.runs:
        for role, score, card in _scored(results, run):
            agreement = card.agreement or {}
            # Not all types of scores have a model, PGR and an output.
            yield {
                "run_name": card.run_name,
                "task": card.task,
                "demo": card.is_demo,
                "setting": card.setting,
                "seed": card.seed,
                "role": role,
                "method": card.method,
                "model": getattr(score, "model", card.base_model),
                **_with_ends("accuracy", score.accuracy, score.ci95),
                "n": score.n,
                **_with_ends("pgr", getattr(score, "pgr", None), getattr(score, "pgr_ci95", None)),
                "pgr_undefined": getattr(score, "pgr_undefined", None),
                "weak_model": run.weak.model,
                "weak_accuracy": run.weak.accuracy,
                "ceiling_accuracy": run.ceiling.accuracy,
                "agreement": agreement.get("overall"),
                "agreement_supervisor_right": agreement.get("supervisor_right"),
                "agreement_supervisor_wrong": agreement.get("supervisor_wrong"),
                "fingerprint": card.fingerprint,
                "output": getattr(score, "output", None),
                "source": str(path),
                **{name: value for name, value in card.trained_with.items() if name not in RESULT_COLUMNS},
                **versions,
            }


def _scored(results: ExperimentResult, run: SeedResult) -> Iterator[tuple[str, AnyScore, StudentCard]]:
    """Yields role, score and card of each evaluated model of a seed."""
    students: list[tuple[str, AnyScore, StudentCard]] = []
    for student in run.students:
        students.append(("student", student, StudentCard.from_results(results, run, student)))
        for link in student.links[:-1]:  # the last link is the student
            students.append(("link", link, StudentCard.from_results(results, run, student, link)))
    settings = shared_settings(results)
    unset: dict[str, Any] = {"agreement": None, "taught_by": None, "n_train": None, "settings": settings}

    def other(role: str, score: AnyScore, method: str | None = None) -> tuple[str, AnyScore, StudentCard]:
        card = students[0][2]
        model = getattr(score, "model", card.base_model)  # direct students have no model name
        trained = None if role == "weak" or not model else replace(Score.of(score), model=model)
        return role, score, replace(card, method=method, student=trained, **unset)

    yield other("weak", run.weak)
    for baseline in run.baselines:
        yield other("baseline", baseline, baseline.name)
    if run.self_trained is not None:
        yield other("baseline", run.self_trained, SELF_TRAINED)
    for control in run.controls:
        yield other("control", control, control.method)
    yield from students
    for student in run.students:
        if "all_rows" in student.direct:
            yield other("direct", student.direct["all_rows"], "naive")
    if run.ceiling_plain is not None:
        yield other("ceiling_plain", run.ceiling_plain)
    yield other("ceiling", run.ceiling)


def _with_ends(name: str, value: float | None, ci95: list[float] | None) -> dict[str, float | None]:
    low, high = ci95 or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}
