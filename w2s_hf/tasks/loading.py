"""Rows of a task, from the Hub or from disk."""

from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetNotFoundError

from ..hub import ensure_available
from .task import PARQUET_BRANCH, Source, Task

__all__ = ["load_raw", "pick_split"]

_READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def load_raw(task: Task, dataset_path: str | None = None) -> tuple[DatasetDict, dict]:
    """
    The splits of a dataset as they are, and where they are from.

    Args:
        task ([`Task`]): The task.
        dataset_path (`str`, *optional*): A local directory or file in the dataset's own schema, in place of the
            task's sources.

    Returns:
        [`~datasets.DatasetDict`] and `{"id": ..., "revision": ...}`.

    Raises:
        FileNotFoundError: there is no such directory or file.
        ConnectionError: no source loads; the message says why for each.
    """
    if dataset_path is not None:
        return _load_local(task, dataset_path), {"id": task.sources[0].id, "revision": "local"}
    failures = []
    for source in task.sources:
        if Path(source.id).exists() or Path(source.id).suffix in _READERS:
            return _renamed(_load_local(task, source.id), source), {"id": Path(source.id).name, "revision": "local"}
        try:
            # A Hub that does not answer ends this at once; a repository that is gone has a successor.
            commit = ensure_available(
                source.id, repo_type="dataset", option="--dataset_path", revision=source.revision
            )
        except FileNotFoundError as error:
            failures.append(f"{source.id}: {error}")
            continue
        try:
            return _load_from_hub(task, source, commit)
        except (OSError, ValueError, RuntimeError, DatasetNotFoundError) as error:  # RuntimeError: it is a script
            failures.append(f"{source.id}: {type(error).__name__}: {error}")
    raise ConnectionError(
        f"{task.name}: none of its datasets loads ({'; '.join(failures)}). Give --dataset_path a local copy, "
        "or run the recipe with no model and no data named: the embedded demo needs no network."
    )


def _load_from_hub(task: Task, source: Source, commit: str | None) -> tuple[DatasetDict, dict]:
    revision = commit or source.revision
    if source.revision == PARQUET_BRANCH:
        # Files are CONFIG/SPLIT/0000.parquet; left to itself, `datasets` takes all configurations for one, and only
        # splits with usual names.
        names = (*task.train_split, *(task.test_split or ()))
        files = {name: f"{source.config}/{name}/*.parquet" for name in names}
        raw = load_dataset(source.id, data_files=files, revision=revision)
    else:
        raw = load_dataset(source.id, source.config, revision=revision)
    return _renamed(raw, source), {"id": source.id, "revision": revision or "cached"}


def _renamed(raw: DatasetDict, source: Source) -> DatasetDict:
    return raw.rename_columns(source.rename) if source.rename else raw


def _load_local(task: Task, path: str) -> DatasetDict:
    file = Path(path)
    if file.is_dir():
        return load_dataset(path)
    if file.is_file() and file.suffix in _READERS:
        separator = {"sep": "\t"} if file.suffix == ".tsv" else {}
        return load_dataset(_READERS[file.suffix], data_files=path, **separator)
    raise FileNotFoundError(
        f"--dataset_path: got {path!r}, which is no directory and no file that can be read ({', '.join(_READERS)}); "
        f"expected the rows of {task.name}, with the columns {', '.join(task.columns)}."
    )


def pick_split(task: Task, raw: DatasetDict, names: tuple[str, ...]) -> tuple[str, Dataset]:
    """
    The first of `names` that is among the splits, and its rows.

    Raises:
        ValueError: none is, it is empty, or it lacks a column.
    """
    name = next((name for name in names if name in raw), None)
    if name is None:
        raise ValueError(
            f"{task.name}: no split {' or '.join(map(repr, names))}; the splits found are {', '.join(raw) or 'none'}."
        )
    rows = raw[name]
    missing = [column for column in task.columns if column not in rows.column_names]
    if missing:
        raise ValueError(
            f"{task.name}: the split {name!r} has no column {missing[0]!r}; it has {', '.join(rows.column_names)}, "
            f"expected {', '.join(task.columns)}."
        )
    if len(rows) == 0:
        raise ValueError(f"{task.name}: the split {name!r} is empty.")
    return name, rows
