"""Measures whether students overfit to errors of their supervisor, by scores during training (paper, 5.1.1)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..cards.markdown import markdown_table, render
from .figures import accuracy_cell, bars, draw, intervals_of, lines, mean_cell, over_seeds, pgr_cell, pgr_note

__all__ = ["CHEATING", "STOPS", "choose_stops", "overfitting_section", "plot_overfitting"]

# These are the stopping rules, with their names in the report. Methods have no access to the ground truth of
# validation rows. The rule that uses ground truth is a diagnostic of the possible gain.
STOPS = {"last_step": "last step", "weak_labels": "weak labels", "ground_truth": "ground truth (cheats)"}
CHEATING = "ground_truth"


def choose_stops(against_weak: Sequence[float], against_truth: Sequence[float]) -> dict[str, int]:
    """
    Returns the snapshot that each rule of [`STOPS`] selects, or the first of several equal snapshots.

    Args:
        against_weak, against_truth (sequence of `float`): Accuracy of each snapshot on validation rows, against
            weak labels and against ground truth.

    Returns:
        `dict[str, int]`: Position of the snapshot by the name of the rule.
    """
    if not len(against_weak) or len(against_weak) != len(against_truth):
        raise ValueError(
            f"Got accuracies of {len(against_weak)} and {len(against_truth)} snapshots, expected equal numbers, "
            "at least 1. Pass both accuracies of each snapshot."
        )
    return {
        "last_step": len(against_weak) - 1,
        "weak_labels": int(np.argmax(against_weak)),
        "ground_truth": int(np.argmax(against_truth)),
    }


_CURVES = {
    "test, ground truth": ("test_ground_truth", "blue", "-"),
    "test, weak labels": ("test_weak_labels", "vermilion", "-"),
    "validation, ground truth": ("validation_ground_truth", "sky", "--"),
    "validation, weak labels": ("validation_weak_labels", "orange", "--"),
}


def plot_overfitting(entries: Sequence[dict], path: Path) -> None:
    """
    Plots accuracy during training, with a panel per method, and test accuracy by stopping rule.

    Args:
        entries (sequence of `dict`): The results of the analysis, one entry per seed. `weak` and `ceiling` are
            accuracies. Each of `methods` has `steps`, four curves and `stops`.
        path (`Path`): A `.png` file.
    """
    methods, panels = list(entries[0]["methods"]), []
    weak, ceiling = (float(over_seeds(entries, role).mean()) for role in ("weak", "ceiling"))
    for method in methods:

        def panel(axes, method=method):
            curves = {
                name: np.array([entry["methods"][method][key] for entry in entries])
                for name, (key, _, _) in _CURVES.items()
            }
            styles = {name: (colour, style) for name, (_, colour, style) in _CURVES.items()}
            steps = entries[0]["methods"][method]["steps"]
            lines(
                axes, steps, curves, styles=styles, xlabel="optimizer step", ylabel="accuracy",
                title=f"method {method}",
            )  # fmt: skip
            for height, name in ((weak, "weak supervisor"), (ceiling, "strong ceiling")):
                axes.axhline(height, color="black", lw=0.9, ls=":")
                axes.annotate(
                    name, (0.01, height), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
                    fontsize=8.5,
                )  # fmt: skip
            axes.legend(fontsize=8.5, loc="best")
            axes.margins(y=0.12)

        panels.append((4.8, panel))

    def stops(axes):
        at = {
            f"{method}\n" + name.replace(" (", "\n("): ("methods", method, "stops", key)
            for method in methods
            for key, name in STOPS.items()
        }
        bars(
            axes,
            {name: over_seeds(entries, *of_stop, "accuracy") for name, of_stop in at.items()},
            ylabel=f"test accuracy, n = {entries[0]['n_test']}",
            title="test accuracy by stopping rule",
            colours={name: "orange" if of_stop[-1] == CHEATING else "blue" for name, of_stop in at.items()},
            heights={"weak\nsupervisor": weak, "strong\nceiling": ceiling},
            notes={name: pgr_note(entries, *of_stop) for name, of_stop in at.items()},
            intervals={name: intervals_of(entries, *of_stop) for name, of_stop in at.items()},
        )

    draw(path, panels, [(1.6 + 1.0 * 3 * len(methods), stops)])


def overfitting_section(entries: Sequence[dict]) -> str:
    """
    Returns the results in Markdown: means over the seeds, median PGR.

    The arguments are described in [`plot_overfitting`].
    """
    rows = []
    for method in entries[0]["methods"]:
        for key, name in STOPS.items():
            of_stop = ("methods", method, "stops", key)
            steps = ", ".join(f"{step:.0f}" for step in over_seeds(entries, *of_stop, "step"))
            scores = [accuracy_cell(entries, *of_stop), pgr_cell(entries, *of_stop)]
            rows.append([method, name, steps, *scores, mean_cell(entries, *of_stop, "agreement", "overall")])
    return render(
        "analysis_overfitting.md",
        n_snapshots=len(next(iter(entries[0]["methods"].values()))["steps"]),
        n_validation=entries[0]["n_validation"],
        stops=markdown_table(["method", "stopped by", "at step", "accuracy", "PGR", "agreement"], rows),
    )
