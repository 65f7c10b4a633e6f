"""Tests scores against values computed by hand, and the coverage of intervals."""

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
from helpers.running import forked

from w2s_hf import metrics

PROBABILITIES = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]])
LABELS = np.array([0, 1, 0, 1])


def test_accuracy_and_its_interval():
    assert metrics.accuracy(PROBABILITIES, LABELS) == 0.5
    assert metrics.is_correct(np.array([[0.5, 0.5]]), np.array([0])).all()
    # Wilson at 50 of 100: centre 0.5, half width 1.96 sqrt(0.25 / 100 + 1.96^2 / 4e4) / (1 + 1.96^2 / 100).
    low, high = metrics.accuracy_interval(np.arange(100) < 50)
    assert (low, high) == pytest.approx((0.40383, 0.59617), abs=1e-4)
    with pytest.raises(ValueError, match="at least one row"):
        metrics.accuracy(np.empty((0, 2)), np.empty(0))


def test_auroc_counts_ties_half():
    assert metrics.auroc(np.full(4, 0.3), LABELS) == 0.5
    # Pairs (positive, negative): .6 > .1, .6 < .8, .3 > .1, .3 < .8: two of four.
    assert metrics.auroc(PROBABILITIES[:, 1], LABELS) == 0.5
    assert metrics.auroc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([0, 0, 1, 1])) == pytest.approx(3.5 / 4)
    assert metrics.auroc(np.array([0.1, 0.9]), np.array([1, 1])) is None


def test_calibration_error():
    # Confidences .9 (right), .6 (right), .8 (wrong), .7 (wrong), each alone in its bin: (.1 + .4 + .8 + .7) / 4.
    assert metrics.expected_calibration_error(PROBABILITIES, LABELS) == pytest.approx(0.5)
    # One bin: accuracy 0.5, mean confidence 0.75.
    assert metrics.expected_calibration_error(PROBABILITIES, LABELS, n_bins=1) == pytest.approx(0.25)


def test_agreement():
    supervisor = np.array(
        [[0.8, 0.2], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]]
    )  # answers 0 0 0 0: right, wrong, right, wrong
    found = metrics.agreement(PROBABILITIES, supervisor, LABELS)  # answers 0 1 1 0
    assert found == {"overall": 0.5, "supervisor_right": 0.5, "supervisor_wrong": 0.5}
    perfect = np.eye(2)[LABELS]
    assert metrics.agreement(perfect, perfect, LABELS)["supervisor_wrong"] is None


@pytest.mark.parametrize(
    ("weak", "student", "ceiling", "pgr"),
    [(0.6, 0.7, 0.8, 0.5), (0.6, 0.6, 0.8, 0), (0.6, 0.8, 0.8, 1), (0.6, 0.5, 0.8, -0.5), (0.6, 0.9, 0.8, 1.5)],
)
def test_pgr(weak, student, ceiling, pgr):
    assert metrics.performance_gap_recovered(weak, student, ceiling) == pytest.approx(pgr)
    assert metrics.pgr_undefined_reason(weak, ceiling) is None


@pytest.mark.parametrize("ceiling", [0.6, 0.55])
def test_pgr_without_a_gap_is_none_and_says_why(ceiling):
    assert metrics.performance_gap_recovered(0.6, 0.7, ceiling) is None
    assert f"{ceiling:.4f}" in metrics.pgr_undefined_reason(0.6, ceiling)
    with pytest.raises(ValueError, match="student: got nan"):
        metrics.performance_gap_recovered(0.6, float("nan"), 0.8)


def simulate(seed, n=2000, paired=True):
    """Accuracies 0.6, 0.75, 0.9: PGR 0.5. Errors are paired: hard rows are hard for all models."""
    rng = np.random.default_rng(seed)
    difficulty = rng.random(n)
    own = [difficulty if paired else rng.random(n) for _ in range(3)]
    return tuple(row < share for row, share in zip(own, (0.6, 0.75, 0.9), strict=True))


def test_interval_covers_the_truth_about_as_often_as_it_says():
    intervals = [metrics.pgr_interval(*simulate(seed, 400), n_resamples=400, seed=seed) for seed in range(100)]
    covered = sum(low <= 0.5 <= high for low, high in intervals)
    assert 88 <= covered <= 100


def test_pairing_sharpens_the_interval():
    (low, high), (low_apart, high_apart) = (metrics.pgr_interval(*simulate(0, paired=flag)) for flag in (True, False))
    assert high - low < 0.8 * (high_apart - low_apart)


def test_interval_is_none_where_the_gap_is_noise():
    rng = np.random.default_rng(0)
    # 140, 140 and 142 of 200 rows are right, independently.
    weak, student, ceiling = (rng.permutation(np.arange(200) < n_right) for n_right in (140, 140, 142))
    assert metrics.pgr_interval(weak, student, ceiling) is None
    with pytest.raises(ValueError, match="same test rows"):
        metrics.pgr_interval(weak, student, ceiling[:-1])


def test_copy_of_the_supervisor_has_zero_and_copy_of_the_ceiling_one():
    weak, _, ceiling = simulate(0)
    assert metrics.pgr_interval(weak, weak, ceiling) == (0, 0)
    assert metrics.pgr_interval(weak, ceiling, ceiling) == (1, 1)


def test_over_seeds():
    runs = [simulate(seed, 500) for seed in range(5)]
    found = metrics.pgr_over_seeds(runs)
    each = [metrics.performance_gap_recovered(*(float(part.mean()) for part in run)) for run in runs]
    assert found["pgr_median"] == pytest.approx(np.median(each)) and found["n_seeds"] == 5
    assert found["pgr_ci95"][0] < 0.5 < found["pgr_ci95"][1]
    alone = metrics.pgr_over_seeds(runs[:1])
    assert alone["pgr_ci95"] == list(metrics.pgr_interval(*runs[0]))
    weak, student, _ = runs[0]
    none = metrics.pgr_over_seeds([(weak, student, weak)])
    assert none == {"pgr_median": None, "pgr_ci95": None, "n_seeds": 1, "n_undefined": 1}
    mixed = metrics.pgr_over_seeds([*runs, (weak, student, weak)])
    assert mixed["n_undefined"] == 1 and mixed["pgr_median"] == pytest.approx(np.median(each))
    # An undefined PGR counts as infinite: with many seeds it moves the ends, with few the interval is unbounded.
    many = metrics.pgr_over_seeds([*runs * 4, (weak, student, weak)], n_resamples=500)["pgr_ci95"]
    without = metrics.pgr_over_seeds(runs * 4, n_resamples=500)["pgr_ci95"]
    assert many[0] <= without[0] and without[1] <= many[1] and many != without
    assert metrics.pgr_over_seeds([*runs[:3], *[(weak, student, weak)] * 2])["pgr_ci95"] is None


def test_disagreement_between_seeds_widens_the_interval():
    weak, student, ceiling = simulate(0, 500)
    same = metrics.pgr_over_seeds([(weak, student, ceiling)] * 4)["pgr_ci95"]
    apart = metrics.pgr_over_seeds([(weak, student, ceiling), (weak, weak, ceiling)] * 2)["pgr_ci95"]
    assert apart[1] - apart[0] > 2 * (same[1] - same[0])


def test_seeds_with_the_same_test_rows_are_no_more_test_rows():
    run = simulate(0, 500)
    alone = metrics.pgr_over_seeds([run])["pgr_ci95"]
    assert metrics.pgr_over_seeds([run] * 4, same_rows=True)["pgr_ci95"] == alone
    low, high = metrics.pgr_over_seeds([run] * 4)["pgr_ci95"]
    assert high - low < 0.7 * (alone[1] - alone[0])
    with pytest.raises(ValueError, match=r"same_rows: got \[500, 400\] test rows"):
        metrics.pgr_over_seeds([run, simulate(1, 400)], same_rows=True)


def test_interval_of_a_difference():
    rng = np.random.default_rng(0)
    first = rng.random((1, 400)) < 0.8
    second = np.where(rng.random((1, 400)) < 0.2, ~first, first)
    low, high = metrics.difference_interval(first, second)
    difference = first.astype(float) - second
    error = 1.96 * difference.std() / 20  # of paired rows
    assert (low, high) == pytest.approx((difference.mean() - error, difference.mean() + error), abs=0.006)
    # Three equal seeds have no more rows than one. Seeds that differ make the interval wider.
    alike = metrics.difference_interval(*(np.repeat(values, 3, axis=0) for values in (first, second)))
    assert alike == pytest.approx((low, high), abs=0.006)
    apart = metrics.difference_interval(np.concatenate([first, first]), np.concatenate([second, ~first]))
    assert apart[1] - apart[0] > 2 * (high - low)
    # Rows with NaN are left out of the mean.
    more = (np.concatenate([values, np.full((1, 400), np.nan)], axis=1) for values in (first, second))
    assert metrics.difference_interval(*more) == pytest.approx((low, high), abs=0.006)
    assert metrics.difference_interval(first, first) == (0, 0)


def test_rows_without_a_score_are_left_out_of_each_mean():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 3, 50))
    is_first = rng.random((3, 50)) < 0.5
    first[~is_first], second[is_first] = np.nan, np.nan
    draws, differences = np.random.default_rng(0), []
    for _ in range(4):
        rows = draws.integers(0, 50, (50, 50))
        means = [np.nanmean(values[:, rows], axis=2) for values in (first, second)]
        seeds = draws.integers(0, 3, (3, 50))
        differences.append(np.take_along_axis(means[0] - means[1], seeds, axis=0).mean(axis=0))
    expected = np.quantile(np.concatenate(differences), [0.025, 0.975])
    assert metrics.difference_interval(first, second, n_resamples=200) == pytest.approx(expected, abs=1e-11)


def test_the_interval_of_a_difference_hardly_depends_on_its_seed():
    """Claims about differences depend on whether the interval contains 0."""
    rng = np.random.default_rng(0)
    first = rng.random((3, 400)) < 0.8
    second = np.where(rng.random((3, 400)) < 0.2, ~first, first)
    ends = np.array([metrics.difference_interval(first, second, seed=seed) for seed in range(8)])
    assert ends.std(axis=0).max() < 0.0005
    few = np.array([metrics.difference_interval(first, second, seed=seed, n_resamples=500) for seed in range(8)])
    assert few.std(axis=0).max() > 0.001


def test_the_example_of_a_difference_runs(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", metrics.difference_interval.__doc__, flags=re.S)
    monkeypatch.chdir(Path(__file__).parents[1])
    names: dict = {}
    exec(textwrap.dedent(code), names)
    assert names["first"].shape == names["second"].shape == (3, 400)
    assert names["low"] < names["difference"] < names["high"]
    rows = names["predictions"]
    accuracies = [rows[rows["role"] == role]["correct"].mean() for role in ("confidence", "naive")]
    assert names["difference"] == pytest.approx(accuracies[0] - accuracies[1])


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.ones(3), np.ones(3), r"\(seeds, N\)"),
        (np.ones((1, 3)), np.ones((2, 3)), r"\(seeds, N\)"),
        (np.ones((1, 0)), np.ones((1, 0)), r"\(seeds, N\)"),
        (np.ones((2, 2)), np.array([[1, 0], [np.nan, np.nan]]), "all rows of a seed"),
    ],
)
def test_what_has_no_difference_is_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        metrics.difference_interval(first, second)


def test_halves_are_rounded_up():
    score = 337 / 400  # as a binary fraction it is not 0.8425, and differs from the mean of equal scores
    mean = np.mean([score] * 3)
    assert f"{score:.3f}" != f"{mean:.3f}" and metrics.rounded(score) == metrics.rounded(mean) == "0.843"
    assert metrics.rounded(351 / 400) == "0.878" and metrics.rounded(0.8774) == "0.877"
    assert metrics.rounded(0.125, digits=2) == "0.13" and metrics.rounded(1.0) == "1.000"
    assert metrics.rounded(-0.0002) == "0.000"


def test_evaluate_module_loads_offline(tmp_path):
    path = Path(metrics.__file__).with_name("pgr_metric")
    script = tmp_path / "script.py"
    script.write_text(f"""
import evaluate
metric = evaluate.load({str(path)!r})
print(metric.compute(predictions=[1, 1, 0, 1], weak_predictions=[1, 0, 0, 1], ceiling_predictions=[1, 1, 0, 0],
                     references=[1, 1, 0, 0]))
print(metric.compute(predictions=[1, 0], weak_predictions=[1, 1], ceiling_predictions=[0, 0], references=[1, 1]))
""")
    # (The process has not imported evaluate, which reads both when it is imported.)
    process = forked(script, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert process.returncode == 0, process.stderr[-2000:]
    assert any((tmp_path / "modules").rglob("pgr_metric.py")), "another cache was read"
    first, second = (eval(line) for line in process.stdout.splitlines()[-2:])
    # Weak 0.5, student 0.75, ceiling 1.
    assert first["pgr"] == 0.5 and first["ceiling_accuracy"] == 1 and first["pgr_undefined"] is None
    assert second["pgr"] is None and "0.0000" in second["pgr_undefined"]
