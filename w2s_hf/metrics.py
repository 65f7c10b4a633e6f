"""Scores of an experiment: accuracy, PGR with its interval, agreement, calibration. No torch, no transformers."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

__all__ = [
    "accuracy",
    "accuracy_interval",
    "agreement",
    "agreement_shares",
    "auroc",
    "brier_score",
    "difference_interval",
    "expected_calibration_error",
    "is_correct",
    "performance_gap_recovered",
    "pgr_interval",
    "pgr_over_seeds",
    "pgr_undefined_reason",
    "rounded",
    "squared_distance",
]

_CHUNK = 50  # resamples at a time: bounds the memory of the bootstraps at 50 numbers a test row


def is_correct(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """
    Returns which rows are predicted correctly.

    Args:
        probabilities (`np.ndarray` of shape `(N, C)`): Class probabilities; of equal ones the first class counts.
        labels (`np.ndarray` of shape `(N,)`, integer): True classes.

    Returns:
        `np.ndarray` of shape `(N,)`, bool.

    Raises:
        ValueError: no rows, or shapes that do not fit.
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(
            f"Got probabilities of shape {probabilities.shape} and labels of shape {labels.shape}, expected (N, C) "
            "and (N,) with at least one row."
        )
    return probabilities.argmax(axis=1) == labels


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows in [0, 1] whose most probable class is true; arguments as in [`is_correct`]."""
    return float(is_correct(probabilities, labels).mean())


def accuracy_interval(correct: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's interval of the share that is true in `correct`, `(N,)` bool. Source: scipy.stats.binomtest."""
    correct = np.asarray(correct)
    if correct.ndim != 1 or not len(correct):
        raise ValueError(f"correct: got the shape {correct.shape}, expected (N,) with at least one row.")
    interval = binomtest(int(np.sum(correct)), len(correct)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def auroc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """
    Area under the ROC curve; ties count half, so a constant score has 0.5.

    Args:
        scores (`np.ndarray` of shape `(N,)`): P(class 1) or any increasing function of it. The logit of class 1 is
            none: it says nothing without the other logit.
        labels (`np.ndarray` of shape `(N,)`): 0 or 1.

    Returns:
        `float` in [0, 1], or `None` where only one class occurs.

    Raises:
        ValueError: the shapes differ, or are not `(N,)`.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(
            f"Got scores of shape {scores.shape} and labels of shape {labels.shape}, expected (N,) twice. If they are "
            "probabilities (N, 2), pass their second column."
        )
    if len(np.unique(labels)) < 2:
        return None
    return float(roc_auc_score(labels, scores))


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, n_bins: int = 10) -> float:
    """
    Mean distance between confidence and accuracy over `n_bins` equally wide bins of confidence, weighed by rows.

    Args as in [`is_correct`]. Returns a `float` in [0, 1]. Source: Naeini et al. 2015; Guo et al. 2017, equation 3.
    """
    correct = is_correct(probabilities, labels)
    confidence = np.asarray(probabilities).max(axis=1)
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    distance = 0.0
    for index in np.unique(bins):
        inside = bins == index
        distance += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return float(distance)


def difference_interval(
    first: np.ndarray, second: np.ndarray, *, n_resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """
    Paired bootstrap interval of the difference between two means, first minus second (percentiles).

    A resample has the same test rows for both and for all seeds, and draws the seeds if there are several.

    ```python
    from w2s_hf.metrics import difference_interval
    from w2s_hf.results import read_predictions

    predictions = read_predictions("results/sst2/predictions.parquet")
    correct = {
        role: rows.pivot(index="seed", columns="id", values="correct").to_numpy(float)
        for role, rows in predictions.groupby("role")
    }
    first, second = correct["confidence"], correct["naive"]
    difference = first.mean() - second.mean()
    low, high = difference_interval(first, second)
    ```

    Both arrays must have the same seeds and test rows in the same order; `pivot` sorts them. Without NaN, the
    difference itself is `first.mean() - second.mean()`.

    Args:
        first, second (`np.ndarray` of shape `(seeds, N)`): Scores of the same test rows, such as which are correct. A
            NaN leaves its row out of the mean of its seed.
        n_resamples (`int`), confidence (`float`), seed (`int`): Arguments of the bootstrap.

    Returns:
        Lower and upper end. Resamples in which a mean has no rows are left out.

    Raises:
        ValueError: The shapes differ or are not `(seeds, N)`, or a seed has no score.

    Source: the percentile bootstrap of Efron (1979), with both models on the same resampled rows.
    """
    scores = [np.asarray(values, dtype=np.float64) for values in (first, second)]
    if scores[0].ndim != 2 or scores[0].shape != scores[1].shape or not scores[0].size:
        raise ValueError(f"Got the shapes {scores[0].shape} and {scores[1].shape}, expected (seeds, N) twice.")
    if any(np.isnan(of_seed).all() for values in scores for of_seed in values):
        raise ValueError("Got NaN for all rows of a seed, expected at least one score. Leave the seed out.")
    rng = np.random.default_rng(seed)
    n_seeds, n = scores[0].shape
    with_counted = [(np.nan_to_num(values), ~np.isnan(values)) for values in scores]
    differences = np.empty(n_resamples)
    for start in range(0, n_resamples, _CHUNK):
        size = min(_CHUNK, n_resamples - start)
        rows = rng.integers(0, n, (size, n))
        with np.errstate(invalid="ignore"):  # 0 / 0 where no row counts
            one, other = (
                values[:, rows].sum(axis=2) / counted[:, rows].sum(axis=2) for values, counted in with_counted
            )
        chosen = rng.integers(0, n_seeds, (n_seeds, size))
        differences[start : start + size] = np.take_along_axis(one - other, chosen, axis=0).mean(axis=0)
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(differences, [tail, 1 - tail])
    return float(low), float(high)


def rounded(value: float, digits: int = 3) -> str:
    """
    Returns a score as text, with halves rounded up.

    A half such as 0.8775 is a binary fraction a little above or below it. Without this rule, the mean of equal scores
    could differ from them in the last digit.
    """
    return f"{round(value + 1e-9, digits) + 0.0:.{digits}f}"  # never -0.000


def squared_distance(probabilities: np.ndarray, others: np.ndarray) -> float:
    """
    Returns the mean squared distance between class probabilities, in [0, 1].

    It is half the sum over the classes. For two classes, this is the squared difference of P(class 1).

    Args:
        probabilities, others (`np.ndarray` of shape `(N, C)`): Class probabilities.

    Raises:
        ValueError: the shapes differ, are not `(N, C)`, or have no rows.
    """
    first, second = (np.asarray(values, dtype=np.float64) for values in (probabilities, others))
    if first.ndim != 2 or first.shape != second.shape or not len(first):
        raise ValueError(f"Got the shapes {first.shape} and {second.shape}, expected (N, C) twice, with rows.")
    difference = first - second
    return float((difference**2).sum(axis=1).mean() / 2)


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """
    Returns the [`squared_distance`] between class probabilities and true classes, in [0, 1].

    Source: Brier 1950, halved, as is usual for two classes.

    Args:
        probabilities (`np.ndarray` of shape `(N, C)`): Class probabilities.
        labels (`np.ndarray` of shape `(N,)`): True classes.

    Raises:
        ValueError: the shapes do not fit, as in [`is_correct`].
    """
    is_correct(probabilities, labels)  # the shapes
    return squared_distance(probabilities, np.eye(np.shape(probabilities)[1])[np.asarray(labels)])


def agreement(
    student_probabilities: np.ndarray, supervisor_probabilities: np.ndarray, labels: np.ndarray
) -> dict[str, float | None]:
    """
    Share of test rows on which student and supervisor give the same hard answer (paper, section 5.1.2).

    A student that copies its supervisor agrees on all of them and has PGR 0; one that learned what the supervisor
    meant agrees where it is right and not where it is wrong.

    Args:
        student_probabilities, supervisor_probabilities (`np.ndarray` of shape `(N, C)`): Class probabilities.
        labels (`np.ndarray` of shape `(N,)`): True classes.

    Returns:
        `dict` with `overall`, `supervisor_right`, `supervisor_wrong`, each in [0, 1], or `None` without such rows.
    """
    right = is_correct(supervisor_probabilities, labels)
    same = is_correct(student_probabilities, np.asarray(supervisor_probabilities).argmax(axis=1))
    return agreement_shares(same, right)


def agreement_shares(same: np.ndarray, right: np.ndarray) -> dict[str, float | None]:
    """
    Returns what [`agreement`] does, for answers of any kind.

    Args:
        same (`np.ndarray` of shape `(N,)`, bool): Whether the answers of student and supervisor are the same.
        right (`np.ndarray` of shape `(N,)`, bool): Whether the answer of the supervisor is correct.

    Raises:
        ValueError: the shapes differ, or are not `(N,)`.
    """
    same, right = (np.asarray(values, dtype=bool) for values in (same, right))
    if same.ndim != 1 or same.shape != right.shape:
        raise ValueError(f"Got the shapes {same.shape} and {right.shape}, expected (N,) twice.")

    def share(rows: np.ndarray) -> float | None:
        return float(same[rows].mean()) if rows.any() else None

    return {"overall": share(np.ones_like(right)), "supervisor_right": share(right), "supervisor_wrong": share(~right)}


def pgr_undefined_reason(weak: float, ceiling: float) -> str | None:
    """Returns the reason why PGR is undefined for these accuracies, or `None` where it is defined."""
    if ceiling > weak:
        return None
    return f"the ceiling ({ceiling:.4f}) is not above the weak supervisor ({weak:.4f}): there is no gap to recover"


def performance_gap_recovered(weak: float, student: float, ceiling: float) -> float | None:
    """
    PGR = (student - weak) / (ceiling - weak) (paper, section 3).

    Args:
        weak, student, ceiling (`float` in [0, 1]): Accuracies on the same test rows.

    Returns:
        `float`, never clipped: below 0 the student is worse than its supervisor, above 1 it is better than with ground
        truth. `None` where the ceiling is not above the supervisor, for which the paper has no rule; see
        [`pgr_undefined_reason`].

    Raises:
        ValueError: a score is not in [0, 1].

    Example:

    ```python
    performance_gap_recovered(weak=0.6, student=0.7, ceiling=0.8)  # 0.5
    ```
    """
    for name, score in (("weak", weak), ("student", student), ("ceiling", ceiling)):
        if not 0 <= score <= 1:
            raise ValueError(f"{name}: got {score}, expected an accuracy in [0, 1].")
    if ceiling <= weak:
        return None
    return float((student - weak) / (ceiling - weak))


def _resampled_pgr(run: np.ndarray, rng: np.random.Generator, n_resamples: int) -> np.ndarray:
    """PGR of a run `(N, 3)` (weak, student, ceiling) on resampled rows, `(n_resamples,)`; NaN where undefined."""
    values = np.empty(n_resamples)
    for start in range(0, n_resamples, _CHUNK):
        n = min(_CHUNK, n_resamples - start)
        # The same rows for all three: their errors are related, and the ratio is sharper than its parts.
        weak, student, ceiling = run[rng.integers(0, len(run), (n, len(run)))].mean(axis=1).T
        gap = np.where(ceiling > weak, ceiling - weak, np.nan)
        values[start : start + n] = (student - weak) / gap
    return values


def _percentiles(values: np.ndarray, confidence: float) -> tuple[float, float] | None:
    """
    Returns the ends of an interval of medians over the seeds `(seeds, n_resamples)`, or `None` if one is infinite.

    An undefined PGR may be anything, so it counts as minus infinity at the lower end and as infinity at the upper one.
    """
    tail = (1 - confidence) / 2
    undefined = np.isnan(values)
    lowest = np.median(np.where(undefined, -np.inf, values), axis=0)
    highest = np.median(np.where(undefined, np.inf, values), axis=0)
    low = np.quantile(lowest, tail, method="lower")
    high = np.quantile(highest, 1 - tail, method="higher")
    return (float(low), float(high)) if np.isfinite([low, high]).all() else None


def _stack(weak: np.ndarray, student: np.ndarray, ceiling: np.ndarray) -> np.ndarray:
    columns = [np.asarray(correct, dtype=np.float64) for correct in (weak, student, ceiling)]
    if len({column.shape for column in columns}) != 1 or columns[0].ndim != 1 or not len(columns[0]):
        raise ValueError(
            f"Got shapes {[column.shape for column in columns]}, expected (N,) three times: PGR compares models on "
            "the same test rows."
        )
    return np.stack(columns, axis=1)


def pgr_interval(
    weak_correct: np.ndarray,
    student_correct: np.ndarray,
    ceiling_correct: np.ndarray,
    *,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """
    Paired bootstrap interval of PGR over test rows (percentiles).

    Args:
        weak_correct, student_correct, ceiling_correct (`np.ndarray` of shape `(N,)`, bool):
            Which of the same test rows each has right.
        n_resamples (`int`), confidence (`float`), seed (`int`): Of the bootstrap.

    Returns:
        Lower and upper end, or `None` where more than 2.5 % of the resamples have a ceiling that is not above the
        supervisor. Their PGR is undefined and counts as infinite at either end: the interval is unbounded then.
    """
    rng = np.random.default_rng(seed)
    run = _stack(weak_correct, student_correct, ceiling_correct)
    return _percentiles(_resampled_pgr(run, rng, n_resamples)[None], confidence)


def pgr_over_seeds(
    runs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    *,
    same_rows: bool = False,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict:
    """
    Median PGR over seeds, with a bootstrap interval that resamples seeds and test rows.

    Args:
        runs (sequence of triples): `weak_correct, student_correct, ceiling_correct` of each seed, as in
            [`pgr_interval`]; with one seed its interval is that of [`pgr_interval`].
        same_rows (`bool`, *optional*, defaults to `False`): Whether all seeds are tested on the same rows, in the same
            order. A resample then has the same rows for all seeds: more seeds are not more test rows.

    Returns:
        `dict` with `pgr_median` (over the seeds that have a PGR; `None` if none has), `pgr_ci95` (list of two, or
        `None` if unbounded; a seed without PGR counts as infinite at either end), `n_seeds`, `n_undefined`.
    """
    if not len(runs):
        raise ValueError("runs: got none, expected one triple per seed.")
    stacked = [_stack(*run) for run in runs]
    defined = []
    for run in stacked:
        pgr = performance_gap_recovered(*(float(score) for score in run.mean(axis=0)))
        if pgr is not None:
            defined.append(pgr)
    rng = np.random.default_rng(seed)
    shape = (len(runs), n_resamples)
    # Seeds first, then rows: a seed that is drawn twice has its rows drawn twice.
    chosen = rng.integers(0, len(runs), shape) if len(runs) > 1 else np.zeros(shape, dtype=int)
    if same_rows:
        if len({len(run) for run in stacked}) > 1:
            raise ValueError(
                f"same_rows: got {[len(run) for run in stacked]} test rows, expected as many in all seeds. Pass "
                "same_rows=False if the seeds have other test rows."
            )
        of_all = np.stack([_resampled_pgr(run, np.random.default_rng(seed), n_resamples) for run in stacked])
        values = np.take_along_axis(of_all, chosen, axis=0)
    else:
        values = np.empty(shape)
        for position, run in enumerate(stacked):
            values[chosen == position] = _resampled_pgr(run, rng, int((chosen == position).sum()))
    interval = _percentiles(values, confidence)
    return {
        "pgr_median": float(np.median(defined)) if defined else None,
        "pgr_ci95": None if interval is None else list(interval),
        "n_seeds": len(runs),
        "n_undefined": len(runs) - len(defined),
    }
