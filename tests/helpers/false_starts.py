"""
Simulates how often `aux_start="agreement"` starts by chance.

python tests/helpers/false_starts.py    # takes about a minute

The student predicts each row at random, with the same prediction in every epoch.
"""

import numpy as np

from w2s_hf.trainers.agreement import agreement_beyond_chance, latest_half


def share_of_starts(n_rows: int, n_epochs: int, n_trainings: int, agreement: float = 0.5, step: int = 16) -> float:
    """Returns the share of trainings in which the term starts, given the agreement of the student with its labels."""
    rng = np.random.default_rng(0)
    return float(np.mean([_starts(rng, n_rows, n_epochs, agreement, step) for _ in range(n_trainings)]))


def _starts(rng: np.random.Generator, n_rows: int, n_epochs: int, agreement: float, step: int) -> bool:
    labels = rng.integers(0, 2, n_rows)
    predictions = np.where(rng.random(n_rows) < agreement, labels, 1 - labels)
    cells = 2 * predictions + labels
    steps = [
        np.bincount(cells[rows], minlength=4).reshape(2, 2)
        for _ in range(n_epochs)
        for rows in np.split(rng.permutation(n_rows), range(step, n_rows, step))
    ]
    tables = np.array(steps)
    latest = (latest_half(tables[:n], n_rows) for n in range(1, len(tables) + 1))
    return any(table is not None and agreement_beyond_chance(table) for table in latest)


if __name__ == "__main__":
    for n_rows, n_epochs in ((1280, 1), (640, 2), (320, 4), (160, 8), (160, 16)):
        by_chance, learned = (share_of_starts(n_rows, n_epochs, 200, agreement) for agreement in (0.5, 0.6))
        print(f"{n_rows} rows, {n_epochs} epochs: {by_chance:.3f} by chance, {learned:.3f} with an agreement of 0.6")
