"""Starts the auxiliary loss once a student agrees with its weak labels beyond chance."""

from collections.abc import Sequence

import numpy as np

__all__ = ["MIN_ROWS", "agreement_beyond_chance", "latest_half"]

# The decision requires this number of rows and this number of standard deviations above chance. In simulations of
# 80 steps of 16 rows (tests/helpers/false_starts.py), a student with random predictions passes in 3 to 8 % of
# training runs. A student with agreement 0.6 passes in all runs on 1280 rows, and in 82 % of runs on 160 rows in
# 8 epochs.
MIN_ROWS = 128
_STANDARD_DEVIATIONS = 3.0


def latest_half(tables: Sequence[Sequence[Sequence[int]]], epoch_size: int | None = None) -> np.ndarray | None:
    """
    Sums the tables of the latest half of the steps. Earlier steps are added until there are 128 rows. At most one
    epoch is counted, since rows that are counted twice would make the deviation from chance look too significant.

    Args:
        tables (sequence of `(C, C)`): The number of rows of each optimizer step by two classes. The first class
            is the student's prediction before the update. The second is the likelier class of the weak label.
        epoch_size (`int`, *optional*): The number of rows of an epoch, if known.

    Returns:
        `np.ndarray` of shape `(C, C)`, or `None` for fewer than 128 rows.
    """
    if not len(tables):
        return None
    latest = np.array(tables)[::-1]
    n_rows = latest.sum(axis=(1, 2)).cumsum()
    n_steps = max((len(latest) + 1) // 2, int(np.searchsorted(n_rows, MIN_ROWS)) + 1)
    if epoch_size is not None:
        n_steps = min(n_steps, int(np.searchsorted(n_rows, epoch_size, side="right")))
    table = latest[:n_steps].sum(axis=0)
    return table if table.sum() >= MIN_ROWS else None


def agreement_beyond_chance(table: np.ndarray) -> bool:
    """
    Returns whether two classifications agree on more rows than chance explains, by three standard deviations. Chance
    means that the rows of one classification are permuted at random, so that the share of each class stays the same. A
    student that predicts a single class, or the right shares of the classes at random, does not pass.

    Args:
        table (`np.ndarray` of shape `(C, C)`): The number of rows by both classes, at least 2 rows in total.

    Source: Hoeffding 1951, mean and variance of a sum over a random permutation. With two classes, Fisher's exact
    test has the same mean and variance.
    """
    n_rows = table.sum()
    first, second = table.sum(axis=1) / n_rows, table.sum(axis=0) / n_rows
    expected = first @ second
    distances = np.eye(len(table)) - second[:, None] - first[None, :] + expected
    variance = n_rows**2 * (first @ distances**2 @ second) / (n_rows - 1)
    return bool(np.trace(table) - n_rows * expected > _STANDARD_DEVIATIONS * np.sqrt(variance) + 1e-9)
