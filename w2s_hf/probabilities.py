"""Converts labels of any form to class probabilities, and weights to numbers, and checks every row."""

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["MAX_NAMED_ROWS", "as_probabilities", "as_supervisor_labels", "as_weights", "summary_of_weights"]

MAX_NAMED_ROWS = 5  # number of invalid rows that an error names; the other invalid rows are counted


def _named(ids: list, positions: np.ndarray) -> str:
    names = ", ".join(str(ids[position]) for position in positions[:MAX_NAMED_ROWS])
    more = len(positions) - MAX_NAMED_ROWS
    return f"row{'s' if len(positions) > 1 else ''} {names}" + (f" and {more} more" if more > 0 else "")


def as_probabilities(labels: ArrayLike, n_classes: int = 2, ids: list | None = None) -> np.ndarray:
    """
    Converts labels in one of the three forms of a training column to class probabilities.

    Args:
        labels (array-like): Integer or boolean classes of shape `(N,)`, or class probabilities of shape `(N, C)`. For
            two classes, P(class 1) in [0, 1] of shape `(N,)` is also allowed.
        n_classes (`int`, *optional*, defaults to `2`): Number of classes C.
        ids (`list`, *optional*): N row names for error messages. Defaults to positions.

    Returns:
        `np.ndarray` of shape `(N, C)`, float32. Every row sums to 1.

    Raises:
        ValueError: A label is missing, NaN or out of range. A row does not sum to 1 within 1e-3. The number of classes
            is not `n_classes`. The message names the rows.
    """
    try:
        values = np.asarray(labels)
    except ValueError as error:  # rows of different length
        raise ValueError(
            f"labels: got rows of different length, expected {n_classes} probabilities per row. "
            "Pass rows of equal length."
        ) from error
    ids = list(range(len(values))) if ids is None else ids
    if values.dtype == object:
        missing = np.array([value is None for value in values], dtype=bool)
        problem = f"{_named(ids, np.flatnonzero(missing))} without a label" if missing.any() else "a mixture of types"
        raise ValueError(
            f"labels: got {problem}, expected integers, P(class 1) or {n_classes} probabilities. Correct the labels."
        )
    if values.dtype.kind in "bui" and values.ndim == 1:
        values = values.astype(np.int64)
        wrong = np.flatnonzero((values < 0) | (values >= n_classes))
        if len(wrong):
            raise ValueError(
                f"labels: got class {values[wrong[0]]} in {_named(ids, wrong)}, expected 0 to {n_classes - 1}. "
                "Correct the labels or the number of classes."
            )
        return np.eye(n_classes, dtype=np.float32)[values]
    if values.dtype.kind not in "fui" or values.ndim not in (1, 2):
        raise ValueError(
            f"labels: got {values.dtype} of shape {values.shape}, expected (N,) integers, (N,) probabilities of "
            f"class 1, or (N, {n_classes}) probabilities. Map class names to integers, "
            "such as [0, 1], or pass probabilities."
        )
    values = values.astype(np.float64)
    if values.ndim == 1:
        if n_classes != 2:
            raise ValueError(
                f"labels: got one probability per row for {n_classes} classes, expected {n_classes} per row. "
                "Pass one probability per class."
            )
        values = np.stack([1 - values, values], axis=1)
    if values.shape[1] != n_classes:
        raise ValueError(
            f"labels: got {values.shape[1]} probabilities per row, expected {n_classes}. "
            "Correct the labels or the number of classes."
        )
    not_a_number = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(not_a_number):
        raise ValueError(
            f"labels: got NaN or infinity in {_named(ids, not_a_number)}, expected probabilities. "
            "Correct these labels."
        )
    out_of_range = np.flatnonzero(((values < -1e-6) | (values > 1 + 1e-6)).any(axis=1))
    if len(out_of_range):
        raise ValueError(
            f"labels: got {values[out_of_range[0]].tolist()} in {_named(ids, out_of_range)}, expected values in "
            "[0, 1]. Correct these labels."
        )
    wrong_sum = np.flatnonzero(np.abs(values.sum(axis=1) - 1) > 1e-3)
    if len(wrong_sum):
        raise ValueError(
            f"labels: got probabilities that sum to {values[wrong_sum[0]].sum():.4f} in {_named(ids, wrong_sum)}, "
            "expected 1. Normalize them."
        )
    return values.astype(np.float32)


def as_supervisor_labels(labels: ArrayLike, n_classes: int = 2, ids: list | None = None) -> np.ndarray:
    """
    Converts the labels of several supervisors to class probabilities.

    Args:
        labels (array-like): Class probabilities of K supervisors for N rows, `(N, K, C)`, with K of at least 2.
        n_classes (`int`, *optional*, defaults to `2`): Number of classes C.
        ids (`list`, *optional*): N row names for error messages. Defaults to positions.

    Returns:
        `np.ndarray` of shape `(N, K, C)`, float32.

    Raises:
        ValueError: The shape differs, there are fewer than two supervisors, or labels are invalid, see
            [`as_probabilities`].
    """
    try:
        values = np.asarray(labels, dtype=np.float64)
    except (TypeError, ValueError) as error:  # missing values, or rows of different length
        raise ValueError(
            "supervisor_labels: got rows of different shape, or without numbers, expected the probabilities of all "
            "supervisors in every row. Correct the labels."
        ) from error
    if values.ndim != 3:
        raise ValueError(
            f"supervisor_labels: got shape {values.shape}, expected (rows, supervisors, {n_classes}). Pass "
            f"{n_classes} probabilities of each supervisor per row."
        )
    if values.shape[1] < 2:
        raise ValueError(
            f"supervisor_labels: got labels of {values.shape[1]} supervisor, expected at least two supervisors. Train "
            "on `labels` with another loss, or add the labels of further supervisors."
        )
    of_each = []
    for number in range(values.shape[1]):
        try:
            of_each.append(as_probabilities(values[:, number], n_classes, ids))
        except ValueError as error:
            problem = str(error).removeprefix("labels: ")
            raise ValueError(f"supervisor_labels: supervisor {number + 1}: {problem}") from error
    return np.stack(of_each, axis=1)


def as_weights(weights: ArrayLike, ids: list | None = None) -> np.ndarray:
    """
    Converts the weights of rows to float32.

    Args:
        weights (array-like): N numbers that are at least 0.
        ids (`list`, *optional*): N row names for error messages. Defaults to positions.

    Returns:
        `np.ndarray` of shape `(N,)`, float32.

    Raises:
        ValueError: A weight is missing, negative, NaN or infinite, or there is not one number per row. The message
            names the rows.
    """
    values = np.atleast_1d(np.asarray(weights, dtype=object))  # lists of different length are no error yet
    ids = list(range(len(values))) if ids is None else ids
    no_number = np.flatnonzero([not isinstance(value, int | float | np.number | np.bool_) for value in values])
    if len(no_number):
        raise ValueError(
            f"weight: got {values[no_number[0]]!r} in {_named(ids, no_number)}, expected one number per row. Correct "
            "these weights."
        )
    with np.errstate(over="ignore"):  # a number that is too large for float32 becomes infinity
        values = values.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(values) | (values < 0))
    if len(wrong):
        raise ValueError(
            f"weight: got {values[wrong[0]]} in {_named(ids, wrong)}, expected finite numbers that are at least 0. "
            "Correct these weights."
        )
    return values


def summary_of_weights(weights: np.ndarray) -> dict[str, float | int]:
    """Returns the mean of weights `(N,)`, `mean`, and the number of rows with weight 0, `n_zero`."""
    return {"mean": float(weights.mean()), "n_zero": int((weights == 0).sum())}
