"""Converts arguments of the analyses, and raises errors that name the expected form."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import ArrayLike

from ..labels import as_probabilities

__all__ = ["classes_of", "probabilities_of", "texts_of", "tokens_of"]


def probabilities_of(values: ArrayLike, name: str, n_rows: int | None = None) -> np.ndarray:
    """
    Converts labels of any form to probabilities of two classes.

    Args:
        values (array-like): Probabilities `(N, 2)`, P(class 1) `(N,)`, or classes 0 and 1 `(N,)`.
        name (`str`): Name of the argument in errors.
        n_rows (`int`, *optional*): Expected number of rows.

    Returns:
        `np.ndarray` of shape `(N, 2)`, float64.

    Raises:
        ValueError: The labels have another form, or another number of rows.
    """
    try:
        probabilities = as_probabilities(values)
    except ValueError as error:
        raise ValueError(f"{name}: {str(error).removeprefix('labels: ')}") from error
    if n_rows is not None and len(probabilities) != n_rows:
        raise ValueError(f"{name}: got {len(probabilities)} rows, expected {n_rows}. Pass one value per row.")
    values = np.asarray(values)
    return values.astype(np.float64) if values.ndim == 2 else probabilities.astype(np.float64)


def classes_of(values: ArrayLike, name: str) -> np.ndarray:
    """Returns classes 0 and 1, `(N,)` int64. Raises `ValueError` for another shape, other values, or probabilities."""
    values = np.asarray(values)
    if values.ndim != 1 or not np.isin(values, (0, 1)).all():
        raise ValueError(
            f"{name}: got {values.dtype} of shape {values.shape}, expected classes 0 and 1 of shape (N,). For "
            "probabilities of shape (N, 2), give their argmax(axis=1)."
        )
    return values.astype(np.int64)


def texts_of(values: Sequence[str], name: str) -> list[str]:
    """Returns texts as a list. Raises `ValueError` for rows, and for a single string."""
    texts = [values] if isinstance(values, str) else list(values)
    if isinstance(values, str) or not all(isinstance(text, str) for text in texts):
        kind = type(values if isinstance(values, str) else next(t for t in texts if not isinstance(t, str))).__name__
        raise ValueError(f"{name}: got {kind}, expected a list of strings, such as the column rows['text'].")
    return texts


def tokens_of(rows: Dataset | Sequence[Mapping] | Mapping, name: str) -> list[list[int]]:
    """
    Returns the token ids of a dataset with `input_ids`, a list of encodings, or the encoding of a list of texts.

    Raises:
        ValueError: There are no rows, or no token ids in them.
    """
    ids: Any = None
    if isinstance(rows, Dataset | Mapping):
        if "input_ids" in (rows.column_names if isinstance(rows, Dataset) else rows):
            ids = rows["input_ids"][:]
    elif isinstance(rows, Sequence) and all(isinstance(row, Mapping) and "input_ids" in row for row in rows):
        ids = [row["input_ids"] for row in rows]
    if ids is None or not len(ids):
        raise ValueError(
            f"{name}: got a {type(rows).__name__} without `input_ids`, expected a datasets.Dataset with `input_ids`, "
            "or a list of encodings with at least one row. Tokenize the texts first."
        )
    if np.ndim(ids[0]) != 1:
        raise ValueError(
            f"{name}: got `input_ids` of shape {np.shape(ids[0])} in a row, expected one list of token ids. Call the "
            "tokenizer on a list of texts, without return_tensors."
        )
    return [row if isinstance(row, list) else np.asarray(row).tolist() for row in ids]
