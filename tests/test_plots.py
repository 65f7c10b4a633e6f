"""Tests figures of experiments and analyses: bars begin at 0, intervals are not cut, undefined PGRs are marked."""

import numpy as np
import pytest
from helpers.sweep_tables import MODELS, make_table
from matplotlib.figure import Figure

from w2s_hf import Score, metrics, plots
from w2s_hf.analysis.figures import bars
from w2s_hf.sweep import plots as sweep_plots

NAMES = ("naive", "confidence")


def entry(accuracy: float, n: int, **more) -> dict:
    correct = np.arange(n) < round(accuracy * n)
    interval = list(metrics.accuracy_interval(correct))
    return {"accuracy": float(correct.mean()), "ci95": interval, "n": n, "model": "demo/a-64x2", **more}


def results(weak: float, student: float, ceiling: float, n: int, n_seeds: int = 1, n_undefined: int = 0) -> dict:
    """Returns results of two methods and a control. The last `n_undefined` seeds have no gap."""
    kept = {"output": "", "weak_labels": "", "pgr": None}
    kept["agreement"] = dict.fromkeys(("overall", "supervisor_right", "supervisor_wrong"), 0.5)
    students = [entry(student, n, method=name, **kept) for name in NAMES]
    run = {"weak": entry(weak, n), "ceiling": entry(ceiling, n), "students": students}
    run["controls"] = [entry(0.5, n, method="naive")]
    pgr = metrics.performance_gap_recovered(weak, student, ceiling)
    summary = {"pgr_median": pgr, "n_seeds": n_seeds, "n_undefined": n_seeds if pgr is None else n_undefined}
    sizes = dict.fromkeys(("n_weak_half", "n_student_half", "n_validation", "n_test"), n)
    return {
        "task": "boolq", "setting": "classification", "preset": "custom", "chance": 0.5,
        "dataset": {"id": "boolq", "revision": "local", **sizes},
        "runs": [{"seed": seed, **run} for seed in range(n_seeds)],
        "summary": [{"method": name, "accuracy_mean": student, **summary} for name in NAMES],
        "settings": {"training": {}, "student": {"use_peft": True}},
    }  # fmt: skip


def texts(axes) -> list[str]:
    return [" ".join(text.get_text().split()) for text in axes.texts]


def is_whole(axes) -> bool:
    """Returns whether the axis begins at 0 and has all bars, intervals and texts above them (0.055 per line)."""
    low, high = axes.get_ylim()
    ends = [segment[:, 1] for bar in axes.containers if bar.__class__.__name__ == "ErrorbarContainer"
            for lines in bar[2] for segment in lines.get_segments()]  # fmt: skip
    ends += [
        [text.xy[1] * (1 + 0.05 * len(text.get_text().splitlines()))] for text in axes.texts if hasattr(text, "xy")
    ]
    ends += [[patch.get_y(), patch.get_y() + patch.get_height()] for patch in axes.patches]
    return low <= 0 and all(low <= end <= high for of_one in ends for end in of_one)


@pytest.mark.parametrize(
    ("accuracies", "n", "pgr"),
    [
        ((0.7, 0.8, 1.0), 1500, "PGR 0.33"),
        ((0.7, 0.8, 0.9), 10, "PGR 0.50"),  # intervals start at 0.39
        ((0.0, 1.0, 1.0), 1, "PGR 1.00"),
        ((1.0, 1.0, 1.0), 1, "PGR undefined"),
        ((0.0, 0.0, 0.0), 5, "PGR undefined"),
        ((0.9, 0.95, 0.8), 40, "PGR undefined"),
        ((0.02, 0.04, 0.06), 100, "PGR 0.50"),
    ],
)
def test_the_figure_of_an_experiment_has_all_of_its_intervals(accuracies, n, pgr, figures, tmp_path):
    plots.plot_accuracies(results(*accuracies, n), tmp_path / "accuracy.png")
    axes = figures[0].axes[0]
    assert axes.get_ylim()[0] == 0 and is_whole(axes)
    assert sum(pgr in text for text in texts(axes)) == len(NAMES)


def test_seeds_without_a_gap_are_counted_in_the_figure(figures, tmp_path):
    plots.plot_accuracies(results(0.7, 0.8, 0.9, 10, n_seeds=3, n_undefined=1), tmp_path / "accuracy.png")
    assert sum("median PGR 0.50 (1 of 3 undefined)" in text for text in texts(figures[0].axes[0])) == len(NAMES)
    plots.plot_accuracies(results(0.9, 0.8, 0.7, 10, n_seeds=3), tmp_path / "accuracy.png")
    assert sum("PGR undefined" in text for text in texts(figures[1].axes[0])) == len(NAMES)


@pytest.mark.parametrize(("accuracies", "n"), [((0, 1, 1), 1), ((1, 1, 1), 5), ((0.9, 0.8, 0.7), 10)])
def test_the_figure_of_a_card_has_all_of_its_intervals(accuracies, n, figures, tmp_path):
    scores = [Score("a/b", each["accuracy"], n, each["ci95"]) for each in (entry(a, n) for a in accuracies)]
    pgr = metrics.performance_gap_recovered(*accuracies)
    plots.plot_gap(*scores, pgr, tmp_path / "pgr.png")
    axes = figures[0].axes[0]
    low, high = axes.get_xlim()
    assert all(low < end < high for score in scores for end in score.ci95)
    assert ("PGR undefined" in texts(axes)) == (pgr is None)


def test_bars_of_an_analysis_have_all_of_their_intervals():
    entries = {"a": entry(0.8, 5), "b": entry(0, 5), "c": entry(1, 1)}
    axes = Figure().subplots()
    intervals = {name: of_one["ci95"] for name, of_one in entries.items()}
    values = {name: np.array([of_one["accuracy"]]) for name, of_one in entries.items()}
    bars(axes, values, ylabel="accuracy", intervals=intervals, notes=dict.fromkeys(entries, "no PGR"))
    assert is_whole(axes)
    bars(axes, {"pgr": np.array([0.1])}, ylabel="PGR", intervals={"pgr": (-2.0, 3.0)})
    assert is_whole(axes)


def test_the_axis_of_pgr_has_its_intervals_or_says_that_they_are_cut(figures, tmp_path):
    table = make_table(tasks=["boolq"], weak=MODELS[:1], seeds=[0])
    for low, high, is_cut in ((-0.4, 1.4, False), (-3.0, 5.0, True)):
        sweep_plots.plot_pgr_by_size(table.assign(pgr_low=low, pgr_high=high), tmp_path)
        figure = figures[-1]
        bottom, top = figure.axes[0].get_ylim()
        assert (bottom <= low and high <= top) != is_cut
        legend = [text.get_text() for text in figure.legends[0].get_texts()]
        assert ("95 % interval over test rows (cut at the axis)" in legend) == is_cut
