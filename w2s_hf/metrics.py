"""The metrics of an experiment: accuracy, PGR with its interval, agreement and calibration, without torch."""

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

_CHUNK = 50  # number of resamples in one step, which limits the memory of a bootstrap to 50 numbers per test row


def is_correct(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """
    Returns which rows are predicted correctly.

    Args:
        probabilities (`np.ndarray` of shape `(N, C)`): Class probabilities. In ties, the first class is predicted.
        labels (`np.ndarray` of shape `(N,)`, integer): True classes.

    Returns:
        `np.ndarray` of shape `(N,)`, bool.

    Raises:
        ValueError: There are no rows, or the shapes do not match.
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(
            f"Got probabilities of shape {probabilities.shape} and labels of shape {labels.shape}, expected (N, C) "
            "and (N,) with at least one row. Pass both arrays for the same rows."
        )
    return probabilities.argmax(axis=1) == labels


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """
    Returns the share of rows whose most probable class is true, in [0, 1].

    The arguments are described in [`is_correct`].
    """
    return float(is_correct(probabilities, labels).mean())


def accuracy_interval(correct: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the Wilson interval of an accuracy from `correct`, `(N,)` bool. Source: scipy.stats.binomtest."""
    correct = np.asarray(correct)
    if correct.ndim != 1 or not len(correct):
        raise ValueError(
            f"correct: got the shape {correct.shape}, expected (N,) with at least one row. "
            "Pass one value per test row."
        )
    interval = binomtest(int(np.sum(correct)), len(correct)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def auroc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """
    Returns the area under the ROC curve. Ties count half, so a constant score has an AUROC of 0.5.

    Args:
        scores (`np.ndarray` of shape `(N,)`): P(class 1) or an increasing function of it. The logit of class 1 alone
            is not such a function, because P(class 1) depends on both logits.
        labels (`np.ndarray` of shape `(N,)`): 0 or 1.

    Returns:
        `float` in [0, 1], or `None` if all labels are of one class.

    Raises:
        ValueError: The shapes differ, or are not `(N,)`.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(
            f"Got scores of shape {scores.shape} and labels of shape {labels.shape}, expected two arrays of shape "
            "(N,). Pass the second column of probabilities (N, 2)."
        )
    if len(np.unique(labels)) < 2:
        return None
    return float(roc_auc_score(labels, scores))


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, n_bins: int = 10) -> float:
    """
    Returns the mean distance between confidence and accuracy over equally wide bins of confidence, weighted by rows.

    Args:
        probabilities, labels: See [`is_correct`].
        n_bins (`int`, *optional*, defaults to 10): Number of bins.

    Returns:
        `float` in [0, 1].

    Source: Naeini et al. 2015; Guo et al. 2017, equation 3.
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
    first: np.ndarray, second: np.ndarray, *, n_resamples: int = 20_000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """
    Returns the paired bootstrap interval (percentiles) of the difference between two means, first minus second.

    A resample has the same test rows for both models and all seeds. Several seeds are resampled, too.

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
        first, second (`np.ndarray` of shape `(seeds, N)`): Scores of the same test rows, such as 1 for a correct
            prediction. NaN leaves a row out of the mean of its seed.
        n_resamples (`int`, *optional*, defaults to 20,000): Number of resamples. With 3 seeds of 400 rows, the
            standard deviation of the ends between values of `seed` is then about 0.0004. Whether an interval that ends
            near 0 contains 0 is not certain.
        confidence (`float`), seed (`int`): Further arguments of the bootstrap.

    Returns:
        The lower and upper end. Resamples in which a mean has no rows are left out.

    Raises:
        ValueError: The shapes differ or are not `(seeds, N)`, or a seed has no score.

    Source: the percentile bootstrap of Efron (1979), with both models on the same resampled rows.
    """
    scores = [np.asarray(values, dtype=np.float64) for values in (first, second)]
    if scores[0].ndim != 2 or scores[0].shape != scores[1].shape or not scores[0].size:
        raise ValueError(
            f"Got the shapes {scores[0].shape} and {scores[1].shape}, expected (seeds, N) for both arrays. "
            "Pass the scores of the same seeds and test rows."
        )
    if any(np.isnan(of_seed).all() for values in scores for of_seed in values):
        raise ValueError("Got NaN for all rows of a seed, expected at least one score. Leave the seed out.")
    rng = np.random.default_rng(seed)
    n_seeds, n = scores[0].shape
    # The columns are the rows' scores, and whether they have a score, for both models and all seeds.
    values = np.concatenate([*map(np.nan_to_num, scores), *(~np.isnan(of_model) for of_model in scores)]).T
    differences = np.empty(n_resamples)
    for start in range(0, n_resamples, _CHUNK):
        size = min(_CHUNK, n_resamples - start)
        rows = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(rows.ravel(), minlength=size * n).reshape(size, n)
        sums, n_scores = np.split(counts @ values, 2, axis=1)
        with np.errstate(invalid="ignore"):  # 0 / 0 occurs if all rows are NaN
            first_means, second_means = np.split((sums / n_scores).T, 2)
        seeds = rng.integers(0, n_seeds, (n_seeds, size))
        differences[start : start + size] = np.take_along_axis(first_means - second_means, seeds, axis=0).mean(axis=0)
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(differences.round(12), [tail, 1 - tail])  # an end at 0 is exactly 0
    return float(low), float(high)


def rounded(value: float, digits: int = 3) -> str:
    """
    Returns a score as text, with halves rounded up.

    A half such as 0.8775 is stored as a binary fraction that is slightly larger or smaller. Without this rounding,
    the mean of equal scores could differ from the scores in the last digit.
    """
    return f"{round(value + 1e-9, digits) + 0.0:.{digits}f}"  # avoids -0.000


def squared_distance(probabilities: np.ndarray, others: np.ndarray) -> float:
    """
    Returns the mean squared distance between class probabilities, in [0, 1].

    The squared distance of a row is half the sum over the classes. For two classes, this is the squared difference of
    P(class 1).

    Args:
        probabilities, others (`np.ndarray` of shape `(N, C)`): Class probabilities.

    Raises:
        ValueError: The shapes differ, are not `(N, C)`, or have no rows.
    """
    first, second = (np.asarray(values, dtype=np.float64) for values in (probabilities, others))
    if first.ndim != 2 or first.shape != second.shape or not len(first):
        raise ValueError(
            f"Got the shapes {first.shape} and {second.shape}, expected (N, C) for both arrays, with N > 0. "
            "Pass both arrays for the same rows."
        )
    difference = first - second
    return float((difference**2).sum(axis=1).mean() / 2)


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """
    Returns the [`squared_distance`] between class probabilities and true classes, in [0, 1].

    Source: Brier 1950, divided by 2, as is usual for two classes.

    Args:
        probabilities (`np.ndarray` of shape `(N, C)`): Class probabilities.
        labels (`np.ndarray` of shape `(N,)`): True classes.

    Raises:
        ValueError: The shapes do not match, as in [`is_correct`].
    """
    is_correct(probabilities, labels)  # checks the shapes
    return squared_distance(probabilities, np.eye(np.shape(probabilities)[1])[np.asarray(labels)])


def agreement(
    student_probabilities: np.ndarray, supervisor_probabilities: np.ndarray, labels: np.ndarray
) -> dict[str, float | None]:
    """
    Returns the share of test rows on which student and supervisor predict the same class (paper, section 5.1.2).

    A student that copies its supervisor agrees with it on all rows and has a PGR of 0. A student that has learned the
    task agrees where the supervisor is right, and disagrees where it is wrong.

    Args:
        student_probabilities, supervisor_probabilities (`np.ndarray` of shape `(N, C)`): Class probabilities.
        labels (`np.ndarray` of shape `(N,)`): True classes.

    Returns:
        `dict` with `overall`, `supervisor_right` and `supervisor_wrong`. Each value is in [0, 1], or `None` if there
        are no such rows.
    """
    right = is_correct(supervisor_probabilities, labels)
    same = is_correct(student_probabilities, np.asarray(supervisor_probabilities).argmax(axis=1))
    return agreement_shares(same, right)


def agreement_shares(same: np.ndarray, right: np.ndarray) -> dict[str, float | None]:
    """
    Returns the shares of [`agreement`] for predictions of any kind.

    Args:
        same (`np.ndarray` of shape `(N,)`, bool): Whether student and supervisor make the same prediction.
        right (`np.ndarray` of shape `(N,)`, bool): Whether the supervisor is correct.

    Raises:
        ValueError: The shapes differ, or are not `(N,)`.
    """
    same, right = (np.asarray(values, dtype=bool) for values in (same, right))
    if same.ndim != 1 or same.shape != right.shape:
        raise ValueError(
            f"Got the shapes {same.shape} and {right.shape}, expected (N,) for both arrays. "
            "Pass both arrays for the same rows."
        )

    def share(rows: np.ndarray) -> float | None:
        return float(same[rows].mean()) if rows.any() else None

    return {"overall": share(np.ones_like(right)), "supervisor_right": share(right), "supervisor_wrong": share(~right)}


def pgr_undefined_reason(weak: float, ceiling: float) -> str | None:
    """Returns the reason why PGR is undefined for these accuracies, or `None` if it is defined."""
    if ceiling > weak:
        return None
    return f"the ceiling ({ceiling:.4f}) is not above the weak supervisor ({weak:.4f}): there is no gap to recover"


def performance_gap_recovered(weak: float, student: float, ceiling: float) -> float | None:
    """
    Returns PGR = (student - weak) / (ceiling - weak) (paper, section 3).

    Args:
        weak, student, ceiling (`float` in [0, 1]): Accuracies on the same test rows.

    Returns:
        `float`, which is never clipped. Below 0 the student is worse than its supervisor. Above 1 it is better than
        the ceiling. The paper does not define PGR if the ceiling is not above the supervisor. `None` is then returned;
        see [`pgr_undefined_reason`].

    Raises:
        ValueError: A score is not in [0, 1].

    Example:

    ```python
    performance_gap_recovered(weak=0.6, student=0.7, ceiling=0.8)  # 0.5
    ```
    """
    for name, score in (("weak", weak), ("student", student), ("ceiling", ceiling)):
        if not 0 <= score <= 1:
            raise ValueError(f"{name}: got {score}, expected an accuracy in [0, 1]. Pass the share of correct rows.")
    if ceiling <= weak:
        return None
    return float((student - weak) / (ceiling - weak))


def _resampled_pgr(run: np.ndarray, rng: np.random.Generator, n_resamples: int) -> np.ndarray:
    """Returns the PGR of `(N, 3)` (weak, student, ceiling) on resampled rows, `(n_resamples,)`; NaN if undefined."""
    values = np.empty(n_resamples)
    for start in range(0, n_resamples, _CHUNK):
        n = min(_CHUNK, n_resamples - start)
        # All three models have the same rows. Their errors are correlated, so that the interval of PGR is narrower.
        weak, student, ceiling = run[rng.integers(0, len(run), (n, len(run)))].mean(axis=1).T
        gap = np.where(ceiling > weak, ceiling - weak, np.nan)
        values[start : start + n] = (student - weak) / gap
    return values


def _percentiles(values: np.ndarray, confidence: float) -> tuple[float, float] | None:
    """
    Returns the ends of an interval of medians over the seeds `(seeds, n_resamples)`, or `None` if an end is infinite.

    An undefined PGR counts as minus infinity at the lower end and as infinity at the upper end.
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
            f"Got the shapes {[column.shape for column in columns]}, expected (N,) for all three models, "
            "with N > 0. Score the models on the same test rows."
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
    Returns the paired bootstrap interval of PGR over test rows (percentiles).

    Args:
        weak_correct, student_correct, ceiling_correct (`np.ndarray` of shape `(N,)`, bool):
            Whether each model is correct on the same test rows.
        n_resamples (`int`), confidence (`float`), seed (`int`): Arguments of the bootstrap.

    Returns:
        The lower and upper end, or `None` if the interval is unbounded. This is the case if the ceiling is not above
        the supervisor in more than 2.5 % of the resamples. The PGR of such resamples is undefined and counts as
        infinite at both ends.
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
    Returns the median PGR over seeds, with a bootstrap interval that resamples seeds and test rows.

    Args:
        runs (sequence of triples): `weak_correct, student_correct, ceiling_correct` of each seed, as in
            [`pgr_interval`]. For one seed, the interval is the same as in [`pgr_interval`].
        same_rows (`bool`, *optional*, defaults to `False`): Whether all seeds are tested on the same rows in the same
            order. A resample then has the same rows for all seeds, because more seeds add no test rows.
        n_resamples (`int`), confidence (`float`), seed (`int`): Arguments of the bootstrap.

    Returns:
        `dict` with `pgr_median`, `pgr_ci95`, `n_seeds` and `n_undefined`. `pgr_median` is over the seeds with a
        defined PGR, or `None` if there are no such seeds. `pgr_ci95` is a list of two numbers, or `None` if unbounded.
        In the interval, an undefined PGR counts as infinite at both ends.
    """
    if not len(runs):
        raise ValueError("runs: got an empty sequence, expected one triple per seed. Pass at least one triple.")
    stacked = [_stack(*run) for run in runs]
    defined = []
    for run in stacked:
        pgr = performance_gap_recovered(*(float(score) for score in run.mean(axis=0)))
        if pgr is not None:
            defined.append(pgr)
    rng = np.random.default_rng(seed)
    shape = (len(runs), n_resamples)
    # Seeds are drawn before rows. A seed that is drawn twice has different resamples of its rows.
    drawn_seeds = rng.integers(0, len(runs), shape) if len(runs) > 1 else np.zeros(shape, dtype=int)
    if same_rows:
        if len({len(run) for run in stacked}) > 1:
            raise ValueError(
                f"same_rows: got {[len(run) for run in stacked]} test rows, expected the same number for all seeds. "
                "Pass same_rows=False if seeds have different test rows."
            )
        of_all = np.stack([_resampled_pgr(run, np.random.default_rng(seed), n_resamples) for run in stacked])
        values = np.take_along_axis(of_all, drawn_seeds, axis=0)
    else:
        values = np.empty(shape)
        for position, run in enumerate(stacked):
            values[drawn_seeds == position] = _resampled_pgr(run, rng, int((drawn_seeds == position).sum()))
    interval = _percentiles(values, confidence)
    return {
        "pgr_median": float(np.median(defined)) if defined else None,
        "pgr_ci95": None if interval is None else list(interval),
        "n_seeds": len(runs),
        "n_undefined": len(runs) - len(defined),
    }
