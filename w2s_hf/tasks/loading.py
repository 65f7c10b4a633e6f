"""Loads the dataset of a task from the Hub or from disk."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from ..command_line import did_you_mean, did_you_mean_path
from ..hub import ensure_available
from .task import PARQUET_BRANCH, AnyTask, Source, Task, sources_of

__all__ = ["check_class_names", "load_raw", "pick_split"]

# Text such as "NA" stays text. In a TSV, a quotation mark is an ordinary character. In a CSV, it starts a quoted
# field, which includes all lines up to the next quotation mark.
_CSV = {"path": "csv", "keep_default_na": False}
_READERS: dict[str, dict[str, Any]] = {
    ".csv": _CSV,
    ".tsv": {**_CSV, "sep": "\t", "quoting": csv.QUOTE_NONE},
    ".json": {"path": "json"},
    ".jsonl": {"path": "json"},
    ".parquet": {"path": "parquet"},
}


def load_raw(task: AnyTask, dataset_path: str | None = None) -> tuple[DatasetDict, dict]:
    """
    Loads all splits of a task's dataset, unchanged.

    Args:
        task ([`AnyTask`]): The task.
        dataset_path (`str`, *optional*): A local directory or file with the columns of the task's dataset. It is used
            instead of the task's `sources`.

    Returns:
        The splits as a [`~datasets.DatasetDict`], and their origin, `{"id": ..., "revision": ...}`.

    Raises:
        FileNotFoundError: The directory or file does not exist.
        ValueError: The directory or file cannot be read.
        ConnectionError: No source loads. The message gives the reason for each source.
    """
    if dataset_path is not None:
        raw = _load_local(task, dataset_path, "--dataset_path")
        dataset = Path(dataset_path).name if task.has_several_schemas else sources_of(task)[0].id
        return raw, {"id": dataset, "revision": "local"}
    failures = []
    for source in sources_of(task):
        if Path(source.id).exists() or Path(source.id).suffix in _READERS:
            raw = _load_local(task, source.id, "`sources` of the task")
            return _renamed(raw, source), {"id": Path(source.id).name, "revision": "local"}
        try:
            # If the Hub does not respond, no other source is tried. If a repository does not exist, the
            # next source is tried.
            commit = ensure_available(
                source.id, repo_type="dataset", option="--dataset_path", revision=source.revision
            )
        except FileNotFoundError as error:
            failures.append(f"{source.id}: {error}")
            continue
        try:
            return _load_from_hub(task, source, commit)
        except (OSError, ValueError, RuntimeError, StopIteration, DatasetsError) as error:
            # A RuntimeError means that the dataset is a script. A StopIteration means that the dataset has no rows.
            failures.append(f"{source.id}: {type(error).__name__}: {error}")
    raise ConnectionError(
        f"{task.name}: got no rows from any source of the task ({'; '.join(failures)}). Pass a local copy of the "
        "dataset as --dataset_path, or run without options for models and data: the embedded demo needs no network."
    )


def _load_from_hub(task: AnyTask, source: Source, commit: str | None) -> tuple[DatasetDict, dict]:
    revision = commit or source.revision
    if source.revision == PARQUET_BRANCH:
        # The files are CONFIG/SPLIT/0000.parquet. By default, `datasets` merges all configurations and ignores splits
        # with unusual names.
        names = (*task.train_split, *(task.test_split or ()))
        files = {name: f"{source.config}/{name}/*.parquet" for name in names}
        raw = load_dataset(source.id, data_files=files, revision=revision)
    else:
        raw = load_dataset(source.id, source.config, revision=revision)
    return _renamed(raw, source), {"id": source.id, "revision": revision or "cached"}


def _renamed(raw: DatasetDict, source: Source) -> DatasetDict:
    return raw.rename_columns(source.rename) if source.rename else raw


def _load_local(task: AnyTask, path: str, option: str) -> DatasetDict:
    file = Path(path)
    if not file.is_dir() and not (file.is_file() and file.suffix in _READERS):
        problem, hint = "which has another file format", ""
        if not file.exists():
            where = "" if file.is_absolute() else " in the working directory"
            problem, hint = f"which does not exist{where}", did_you_mean_path(path)
        raise FileNotFoundError(
            f"{option}: got {path!r}, {problem}; expected the rows of {task.name} in a file ({', '.join(_READERS)}) "
            f"or a directory of such files, with the columns {task.expected_columns}. Correct the path.{hint}"
        )
    try:
        if file.is_file():
            return load_dataset(**_READERS[file.suffix], data_files=path)
        if any((file / name).is_file() for name in ("dataset_dict.json", "state.json")):
            dataset = load_from_disk(path)
            return DatasetDict(train=dataset) if isinstance(dataset, Dataset) else dataset
        return load_dataset(path)
    except Exception as error:  # the file readers raise many types of errors, even a bare StopIteration
        raise ValueError(f"{option}: got {path!r}, " + _why_unreadable(file, error)) from error


def _why_unreadable(file: Path, error: Exception) -> str:
    """Returns the reason why `datasets` does not load a file or directory, and what to do about it."""
    cause = error.__cause__ or error
    kinds = ", ".join(_READERS)
    # These are the errors of `datasets` (4.7 and 5.2) for a file without rows. The file is empty (JSON, CSV), has only
    # a header, or has no row group (Parquet).
    has_no_rows = isinstance(cause, StopIteration) or any(
        text in str(cause) for text in ("corresponds to no data", "No columns to parse", "BatchSize must be greater")
    )
    if has_no_rows or file.is_file() and file.stat().st_size < 1000 and not file.read_bytes().strip():
        return f"which has no rows, expected a file of rows ({kinds}) or a directory of such files. Add rows."
    if not file.is_file() and (isinstance(error, FileNotFoundError) or "Dataset scripts" in str(cause)):
        return f"a directory without data files, expected files such as train.csv and test.csv ({kinds}). Add them."
    reason = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    if isinstance(cause, UnicodeDecodeError):
        return f"which is not UTF-8 ({reason}). Save it as UTF-8."
    return f"which cannot be read ({reason}). Correct the file."


def pick_split(task: AnyTask, raw: DatasetDict, names: Sequence[str]) -> tuple[str, Dataset]:
    """
    Returns the name and the rows of the first split in `names` that exists.

    Raises:
        ValueError: None of the splits exists, or the split is empty or lacks a column.
    """
    name = next((name for name in names if name in raw), None)
    if name is None:
        raise ValueError(
            f"{task.name}: got the splits {', '.join(raw) or '(none)'}, expected {' or '.join(map(repr, names))}. "
            "Rename the files of a local directory (train.csv, test.csv), or set `train_split` and `test_split` of "
            "the task. With `test_split=None`, a fifth of the training rows is held out for testing."
            + did_you_mean(names[0], raw)
        )
    rows = raw[name]
    missing = [column for column in task.columns if column not in rows.column_names]
    if missing:
        raise ValueError(
            f"{task.name}: the split {name!r} has no column {missing[0]!r}. Got {', '.join(rows.column_names)}, "
            f"expected {task.expected_columns}. Rename the columns, or correct the task."
            f"{did_you_mean(missing[0], rows.column_names)}"
        )
    if len(rows) == 0:
        raise ValueError(f"{task.name}: the split {name!r} has no rows. Add rows.")
    return name, rows


def check_class_names(task: Task, name: str, rows: Dataset) -> None:
    """Raises `ValueError` if a split has the class names of the task in reverse order."""
    feature = rows.features[task.label] if isinstance(task.label, str) else None
    if isinstance(feature, ClassLabel) and feature.names == [*reversed(task.class_names)]:
        raise ValueError(
            f"{task.name}: got the class names {tuple(feature.names)} in the column {task.label!r}, expected "
            f"{task.class_names}, the `class_names` of the task. Swap the `class_names`."
        )
